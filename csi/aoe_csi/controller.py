"""CSI's Controller service: volumes, snapshots and grants, asked of one Provisioner.

Every method has the same order: arguments to typed values, the object's lock, one act, the reply. Decides nothing
about storage. Methods of CSI 1.13 that are not here answer UNIMPLEMENTED. Source: csi.proto.
"""
# ruff: noqa: ARG002 - the generated servicers give every method its arguments.

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import Int64Value

from aoe_core.errors import Invalid, NotFound, Unsupported
from aoe_core.locks import Locks
from aoe_core.model import (
    FromSnapshot,
    FromVolume,
    Grant,
    SanName,
    Snapshot,
    SnapshotId,
    Source,
    Volume,
    VolumeId,
    VolumeSpec,
    VolumeStatus,
)
from aoe_csi import parameters, requests, topology
from aoe_csi.capabilities import parse_capabilities, parse_capability, require_fitting
from aoe_csi.paging import Pages
from aoe_csi.proto import csi_pb2 as csi
from aoe_csi.proto import csi_pb2_grpc
from aoe_csi.provisioner import Provisioner

CONTEXT_FILESYSTEM = "fstype"
"""The one key of volume_context: the file system the StorageClass names, for capabilities that name none."""

_Rpc = csi.ControllerServiceCapability.RPC
_OFFERED = (
    _Rpc.CREATE_DELETE_VOLUME,
    _Rpc.PUBLISH_UNPUBLISH_VOLUME,
    _Rpc.LIST_VOLUMES,
    _Rpc.LIST_VOLUMES_PUBLISHED_NODES,
    _Rpc.GET_VOLUME,
    _Rpc.GET_CAPACITY,
    _Rpc.EXPAND_VOLUME,
    _Rpc.CLONE_VOLUME,
    _Rpc.PUBLISH_READONLY,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
)
_OFFERED_WITH_SNAPSHOTS = (_Rpc.CREATE_DELETE_SNAPSHOT, _Rpc.LIST_SNAPSHOTS, _Rpc.GET_SNAPSHOT)


class Controller(csi_pb2_grpc.ControllerServicer):
    """Serves one Provisioner."""

    def __init__(self, provisioner: Provisioner) -> None:
        self._provisioner = provisioner
        self._locks = Locks()
        self._pages = Pages()

    def ControllerGetCapabilities(
        self, request: csi.ControllerGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi.ControllerGetCapabilitiesResponse:
        """Return what is offered; snapshots only where a pool can take them."""
        offered = _OFFERED + (_OFFERED_WITH_SNAPSHOTS if self._provisioner.has_snapshots() else ())
        return csi.ControllerGetCapabilitiesResponse(
            capabilities=[csi.ControllerServiceCapability(rpc=_Rpc(type=kind)) for kind in offered]
        )

    # --- volumes ------------------------------------------------------------------------------------------------

    def CreateVolume(self, request: csi.CreateVolumeRequest, context: grpc.ServicerContext) -> csi.CreateVolumeResponse:
        """Make a volume, or return the one this name made before."""
        volume_id = VolumeId(requests.parse_name(request.name))
        capabilities = parse_capabilities(request.volume_capabilities)
        wanted = parameters.parse_parameters(request.parameters)
        parameters.refuse_mutable(request.mutable_parameters)
        for capability in capabilities:
            if wanted.filesystem and capability.filesystem not in (None, wanted.filesystem):
                raise Invalid(
                    f"parameter {parameters.FSTYPE} is {wanted.filesystem} and a volume capability asks for "
                    f"{capability.filesystem}; say the same in both"
                )
        sizes = requests.parse_range(request.capacity_range)
        source = _parse_source(request)
        sans = parameters.choose_sans(wanted.san, self._provisioner.sans())
        reach = topology.required_sans(request.accessibility_requirements, sans)
        spec = VolumeSpec(
            volume_id=volume_id,
            pool=parameters.choose_pool(wanted.pool, self._provisioner.pools()),
            size_bytes=sizes.smallest(self._default_size(source)),
            limit_bytes=sizes.limit_bytes,
            durability=wanted.durability,
            wipe=wanted.wipe,
            san=wanted.san,
            reach=reach,
            source=source,
        )
        require_fitting(capabilities, wanted.filesystem, spec.size_bytes)
        with self._locks.hold(f"volume/{volume_id}"):
            volume = self._provisioner.create_volume(spec)
        message = _volume_message(volume, sans)
        if wanted.filesystem:
            message.volume_context[CONTEXT_FILESYSTEM] = wanted.filesystem
        return csi.CreateVolumeResponse(volume=message)

    def DeleteVolume(self, request: csi.DeleteVolumeRequest, context: grpc.ServicerContext) -> csi.DeleteVolumeResponse:
        """Delete a volume; one that cannot be ours is deleted."""
        volume_id = requests.find_volume_id(request.volume_id)
        if volume_id is not None:
            with self._locks.hold(f"volume/{volume_id}"):
                self._provisioner.delete_volume(volume_id)
        return csi.DeleteVolumeResponse()

    def ValidateVolumeCapabilities(
        self, request: csi.ValidateVolumeCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi.ValidateVolumeCapabilitiesResponse:
        """Confirm that a volume can be used as asked, or say why not."""
        volume_id = requests.get_volume_id(request.volume_id)
        if not request.volume_capabilities:
            raise Invalid(f"volume_capabilities is empty for volume {volume_id}; say what to check")
        volume = self._provisioner.get_volume(volume_id).volume
        try:
            parse_capabilities(request.volume_capabilities)
            _require_made_with(volume, request)
        except Invalid as refusal:
            return csi.ValidateVolumeCapabilitiesResponse(message=str(refusal))
        return csi.ValidateVolumeCapabilitiesResponse(
            confirmed=csi.ValidateVolumeCapabilitiesResponse.Confirmed(
                volume_context=request.volume_context,
                volume_capabilities=request.volume_capabilities,
                parameters=request.parameters,
            )
        )

    def ControllerGetVolume(
        self, request: csi.ControllerGetVolumeRequest, context: grpc.ServicerContext
    ) -> csi.ControllerGetVolumeResponse:
        """Return a volume and the nodes it is published on."""
        status = self._provisioner.get_volume(requests.get_volume_id(request.volume_id))
        return csi.ControllerGetVolumeResponse(
            volume=_volume_message(status.volume, self._provisioner.sans()),
            status=csi.ControllerGetVolumeResponse.VolumeStatus(published_node_ids=_node_ids(status.grants)),
        )

    def ListVolumes(self, request: csi.ListVolumesRequest, context: grpc.ServicerContext) -> csi.ListVolumesResponse:
        """Return a page of all volumes with the nodes they are published on."""
        page = self._pages.cut(
            self._provisioner.list_volumes(),
            _id_of_status,
            of="volumes",
            max_entries=request.max_entries,
            token=request.starting_token,
        )
        sans = self._provisioner.sans()
        return csi.ListVolumesResponse(
            entries=[
                csi.ListVolumesResponse.Entry(
                    volume=_volume_message(status.volume, sans),
                    status=csi.ListVolumesResponse.VolumeStatus(published_node_ids=_node_ids(status.grants)),
                )
                for status in page.entries
            ],
            next_token=page.next_token,
        )

    def ControllerExpandVolume(
        self, request: csi.ControllerExpandVolumeRequest, context: grpc.ServicerContext
    ) -> csi.ControllerExpandVolumeResponse:
        """Grow a volume; a node that has it has to see to the new size, raw block or not."""
        volume_id = requests.get_volume_id(request.volume_id)
        sizes = requests.parse_range(request.capacity_range)
        if not (sizes.required_bytes or sizes.limit_bytes):
            raise Invalid(f"capacity_range is missing for volume {volume_id}; say how large it is to be")
        told = request.HasField("volume_capability")
        block = told and parse_capability(request.volume_capability).block
        with self._locks.hold(f"volume/{volume_id}"):
            size_bytes = sizes.required_bytes or self._provisioner.get_volume(volume_id).volume.size_bytes
            volume = self._provisioner.expand_volume(volume_id, size_bytes, sizes.limit_bytes)
            on_node = not block or self._is_on_a_node(volume_id)
        return csi.ControllerExpandVolumeResponse(capacity_bytes=volume.size_bytes, node_expansion_required=on_node)

    def _is_on_a_node(self, volume_id: VolumeId) -> bool:
        """Whether a kubelet has the volume. Where none has, nobody would call NodeExpandVolume, and a growth that waits
        for it holds up the next one: a guest is told by other means, and who attaches a device reads its size."""
        status = self._provisioner.get_volume(volume_id)
        return any(grant.node not in status.guest_nodes for grant in status.grants)

    def GetCapacity(self, request: csi.GetCapacityRequest, context: grpc.ServicerContext) -> csi.GetCapacityResponse:
        """Return what can still be made with these parameters in reach of these nodes."""
        if request.volume_capabilities:
            parse_capabilities(request.volume_capabilities)
        wanted = parameters.parse_parameters(request.parameters)
        sans = self._provisioner.sans() if wanted.san is None else (wanted.san,)
        shared = topology.shared_sans(request.accessible_topology, sans)
        if shared is None:
            return csi.GetCapacityResponse(available_capacity=0, maximum_volume_size=Int64Value(value=0))
        everywhere = wanted.san is None and not request.accessible_topology.segments
        capacity = self._provisioner.capacity(wanted.pool, None if everywhere else shared)
        return csi.GetCapacityResponse(
            available_capacity=capacity.available_bytes,
            maximum_volume_size=Int64Value(value=min(capacity.maximum_volume_bytes, requests.LARGEST_VOLUME_BYTES)),
        )

    # --- grants -------------------------------------------------------------------------------------------------

    def ControllerPublishVolume(
        self, request: csi.ControllerPublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi.ControllerPublishVolumeResponse:
        """Grant a node a volume."""
        volume_id = requests.get_volume_id(request.volume_id)
        capability = parse_capability(request.volume_capability)
        node = requests.get_node(request.node_id)
        read_only = request.readonly or not capability.mode.writes
        with self._locks.hold(f"volume/{volume_id}"):
            attachment = self._provisioner.publish(
                volume_id, node, capability.mode, read_only=read_only, block=capability.block
            )
        return csi.ControllerPublishVolumeResponse(publish_context=attachment.context())

    def ControllerUnpublishVolume(
        self, request: csi.ControllerUnpublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi.ControllerUnpublishVolumeResponse:
        """Take a volume away from a node, or from all when none is named."""
        volume_id = requests.find_volume_id(request.volume_id)
        node = requests.find_node_name(request.node_id)
        names_nobody = bool(request.node_id) and node is None
        if volume_id is not None and not names_nobody:
            with self._locks.hold(f"volume/{volume_id}"):
                self._provisioner.unpublish(volume_id, node)
        return csi.ControllerUnpublishVolumeResponse()

    # --- snapshots ----------------------------------------------------------------------------------------------

    def CreateSnapshot(
        self, request: csi.CreateSnapshotRequest, context: grpc.ServicerContext
    ) -> csi.CreateSnapshotResponse:
        """Take a snapshot, or return the one this name took before."""
        self._require_snapshots()
        snapshot_id = SnapshotId(requests.parse_name(request.name))
        parameters.refuse_snapshot_parameters(request.parameters)
        source = requests.get_volume_id(request.source_volume_id, "source_volume_id")
        with self._locks.hold(f"snapshot/{snapshot_id}"):
            snapshot = self._provisioner.create_snapshot(snapshot_id, source)
        return csi.CreateSnapshotResponse(snapshot=_snapshot_message(snapshot))

    def DeleteSnapshot(
        self, request: csi.DeleteSnapshotRequest, context: grpc.ServicerContext
    ) -> csi.DeleteSnapshotResponse:
        """Delete a snapshot; one that cannot be ours is deleted."""
        self._require_snapshots()
        snapshot_id = requests.find_snapshot_id(request.snapshot_id)
        if snapshot_id is not None:
            with self._locks.hold(f"snapshot/{snapshot_id}"):
                self._provisioner.delete_snapshot(snapshot_id)
        return csi.DeleteSnapshotResponse()

    def GetSnapshot(self, request: csi.GetSnapshotRequest, context: grpc.ServicerContext) -> csi.GetSnapshotResponse:
        """Return a snapshot."""
        self._require_snapshots()
        snapshot = self._provisioner.get_snapshot(requests.get_snapshot_id(request.snapshot_id))
        return csi.GetSnapshotResponse(snapshot=_snapshot_message(snapshot))

    def ListSnapshots(
        self, request: csi.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> csi.ListSnapshotsResponse:
        """Return a page of the snapshots that match; an id that is not there matches none."""
        self._require_snapshots()
        page = self._pages.cut(
            self._matching_snapshots(request),
            _id_of_snapshot,
            of=f"snapshots/{request.source_volume_id}/{request.snapshot_id}",
            max_entries=request.max_entries,
            token=request.starting_token,
        )
        return csi.ListSnapshotsResponse(
            entries=[csi.ListSnapshotsResponse.Entry(snapshot=_snapshot_message(one)) for one in page.entries],
            next_token=page.next_token,
        )

    # --- what several of them need ------------------------------------------------------------------------------

    def _require_snapshots(self) -> None:
        if not self._provisioner.has_snapshots():
            raise Unsupported("snapshots are not offered: no pool is a thin pool; configure one to have them")

    def _default_size(self, source: Source | None) -> int:
        match source:
            case FromSnapshot(snapshot_id=snapshot_id):
                return self._provisioner.get_snapshot(snapshot_id).size_bytes
            case FromVolume(volume_id=volume_id):
                return self._provisioner.get_volume(volume_id).volume.size_bytes
            case None:
                return requests.DEFAULT_SIZE_BYTES

    def _matching_snapshots(self, request: csi.ListSnapshotsRequest) -> tuple[Snapshot, ...]:
        if request.snapshot_id:
            try:
                snapshots: tuple[Snapshot, ...] = (
                    self._provisioner.get_snapshot(requests.get_snapshot_id(request.snapshot_id)),
                )
            except NotFound:
                return ()
        else:
            snapshots = self._provisioner.list_snapshots()
        return tuple(one for one in snapshots if request.source_volume_id in ("", one.source))


def _id_of_status(status: VolumeStatus) -> str:
    return status.volume.volume_id


def _id_of_snapshot(snapshot: Snapshot) -> str:
    return snapshot.snapshot_id


def _parse_source(request: csi.CreateVolumeRequest) -> Source | None:
    if not request.HasField("volume_content_source"):
        return None
    source = request.volume_content_source
    match source.WhichOneof("type"):
        case "snapshot":
            return FromSnapshot(snapshot_id=requests.get_snapshot_id(source.snapshot.snapshot_id))
        case "volume":
            return FromVolume(volume_id=requests.get_volume_id(source.volume.volume_id, "source volume_id"))
        case _:
            raise Invalid("volume_content_source names neither a snapshot nor a volume; name one, or leave it out")


def _require_made_with(volume: Volume, request: csi.ValidateVolumeCapabilitiesRequest) -> None:
    parameters.refuse_mutable(request.mutable_parameters)
    wanted = parameters.parse_parameters(request.parameters)
    for key, asked, given in (
        ("pool", wanted.pool, volume.pool),
        ("durability", wanted.durability.value, volume.durability.value),
        ("wipe", wanted.wipe.value, volume.wipe.value),
    ):
        if key in request.parameters and asked != given:
            raise Invalid(f"volume {volume.volume_id} has {key} {given}, not {asked}; make a new volume for that")


def _node_ids(grants: tuple[Grant, ...]) -> list[str]:
    return [grant.node_id for grant in grants]


def _volume_message(volume: Volume, sans: tuple[SanName, ...]) -> csi.Volume:
    message = csi.Volume(
        volume_id=volume.volume_id,
        capacity_bytes=volume.size_bytes,
        accessible_topology=topology.volume_topologies((volume.san,) if volume.san else volume.reach or sans),
    )
    match volume.source:
        case FromSnapshot(snapshot_id=snapshot_id):
            message.content_source.snapshot.snapshot_id = snapshot_id
        case FromVolume(volume_id=volume_id):
            message.content_source.volume.volume_id = volume_id
        case None:
            pass
    return message


def _snapshot_message(snapshot: Snapshot) -> csi.Snapshot:
    return csi.Snapshot(
        snapshot_id=snapshot.snapshot_id,
        source_volume_id=snapshot.source,
        size_bytes=snapshot.size_bytes,
        creation_time=Timestamp(seconds=snapshot.created_s),
        ready_to_use=True,
    )
