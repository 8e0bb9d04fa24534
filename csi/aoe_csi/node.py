"""CSI's Node service: volumes on this machine, asked of one Attacher.

Every method has the same order: arguments to typed values, the volume's lock, one act, the reply. Knows nothing of
devices or mounts. Methods of CSI 1.13 that are not here answer UNIMPLEMENTED. Source: csi.proto.
"""
# ruff: noqa: ARG002 - the generated servicers give every method its arguments.

from collections.abc import Callable

import grpc

from aoe_core.errors import InUse, Invalid, Unreachable
from aoe_core.host.contracts import Usage
from aoe_core.locks import Locks
from aoe_core.model import MAX_NODE_ID_BYTES
from aoe_csi import requests, topology
from aoe_csi.attacher import Attacher, Use
from aoe_csi.capabilities import parse_capability, parse_filesystem
from aoe_csi.controller import CONTEXT_FILESYSTEM
from aoe_csi.proto import csi_pb2 as csi
from aoe_csi.proto import csi_pb2_grpc

_Rpc = csi.NodeServiceCapability.RPC
_OFFERED = (_Rpc.STAGE_UNSTAGE_VOLUME, _Rpc.GET_VOLUME_STATS, _Rpc.EXPAND_VOLUME, _Rpc.SINGLE_NODE_MULTI_WRITER)


class Node(csi_pb2_grpc.NodeServicer):
    """Serves one Attacher. Its locks are its own: revoking a grant must not wait for a stuck unmount."""

    def __init__(self, attacher: Attacher, check: Callable[[], str | None] = lambda: None) -> None:
        """`check`: says what this machine lacks, with the remedy; asked before it is offered to a cluster."""
        self._attacher = attacher
        self._check = check
        self._locks = Locks()

    def NodeGetCapabilities(
        self, request: csi.NodeGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi.NodeGetCapabilitiesResponse:
        """Return what is offered."""
        return csi.NodeGetCapabilitiesResponse(
            capabilities=[csi.NodeServiceCapability(rpc=_Rpc(type=kind)) for kind in _OFFERED]
        )

    def NodeGetInfo(self, request: csi.NodeGetInfoRequest, context: grpc.ServicerContext) -> csi.NodeGetInfoResponse:
        """Return this node's id, its SANs and how many volumes it takes; refused while the machine lacks something."""
        lacking = self._check()
        if lacking is not None:
            raise Unreachable(lacking)
        node_id = str(self._attacher.identity())
        if len(node_id.encode()) > MAX_NODE_ID_BYTES:
            raise Invalid(
                f"the node id {requests.shown(node_id)} has {len(node_id.encode())} bytes and CSI allows "
                f"{MAX_NODE_ID_BYTES}; give the node a shorter name or fewer SANs"
            )
        return csi.NodeGetInfoResponse(
            node_id=node_id,
            max_volumes_per_node=self._attacher.max_volumes(),
            accessible_topology=topology.node_topology(self._attacher.sans()),
        )

    def NodeStageVolume(
        self, request: csi.NodeStageVolumeRequest, context: grpc.ServicerContext
    ) -> csi.NodeStageVolumeResponse:
        """Bring a granted volume up on this node, proven, and mounted if it is for a file system."""
        volume_id = requests.get_volume_id(request.volume_id)
        staging_path = requests.parse_mount_path(request.staging_target_path, "staging_target_path")
        use = _parse_use(request)
        attachment = requests.parse_attachment(dict(request.publish_context), volume_id)
        with self._locks.hold(f"volume/{volume_id}"):
            self._attacher.stage(attachment, staging_path, use)
        return csi.NodeStageVolumeResponse()

    def NodeUnstageVolume(
        self, request: csi.NodeUnstageVolumeRequest, context: grpc.ServicerContext
    ) -> csi.NodeUnstageVolumeResponse:
        """Undo staging; a volume that cannot be ours is not staged."""
        volume_id = requests.find_volume_id(request.volume_id)
        staging_path = requests.parse_mount_path(request.staging_target_path, "staging_target_path")
        if volume_id is not None:
            with self._locks.hold(f"volume/{volume_id}"):
                self._attacher.unstage(volume_id, staging_path)
        return csi.NodeUnstageVolumeResponse()

    def NodePublishVolume(
        self, request: csi.NodePublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi.NodePublishVolumeResponse:
        """Make a staged volume appear at a path, through the grant that the request is about."""
        volume_id = requests.get_volume_id(request.volume_id)
        target_path = requests.parse_mount_path(request.target_path, "target_path")
        use = _parse_use(request)
        if not request.staging_target_path:
            raise InUse(f"volume {volume_id} cannot be published: staging_target_path is missing; stage it first")
        staging_path = requests.parse_mount_path(request.staging_target_path, "staging_target_path")
        granted = dict(request.publish_context)
        attachment = requests.parse_attachment(granted, volume_id) if granted else None
        with self._locks.hold(f"volume/{volume_id}"):
            self._attacher.publish(
                volume_id,
                staging_path,
                target_path,
                use,
                read_only=request.readonly or use.read_only,
                attachment=attachment,
            )
        return csi.NodePublishVolumeResponse()

    def NodeUnpublishVolume(
        self, request: csi.NodeUnpublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi.NodeUnpublishVolumeResponse:
        """Undo publishing; a volume that cannot be ours is not published."""
        volume_id = requests.find_volume_id(request.volume_id)
        target_path = requests.parse_mount_path(request.target_path, "target_path")
        if volume_id is not None:
            with self._locks.hold(f"volume/{volume_id}"):
                self._attacher.unpublish(volume_id, target_path)
        return csi.NodeUnpublishVolumeResponse()

    def NodeGetVolumeStats(
        self, request: csi.NodeGetVolumeStatsRequest, context: grpc.ServicerContext
    ) -> csi.NodeGetVolumeStatsResponse:
        """Return how full a volume is."""
        volume_id = requests.get_volume_id(request.volume_id)
        path = requests.parse_volume_path(request.volume_path, "volume_path")
        # A lock of its own: reading must not make an unmount fail, and a dead target may hold one thread, not many.
        with self._locks.hold(f"statistics/{volume_id}"):
            usage = self._attacher.usage(volume_id, path)
        return csi.NodeGetVolumeStatsResponse(usage=_usage_messages(usage))

    def NodeExpandVolume(
        self, request: csi.NodeExpandVolumeRequest, context: grpc.ServicerContext
    ) -> csi.NodeExpandVolumeResponse:
        """Let the device, and its file system, take the volume's new size."""
        volume_id = requests.get_volume_id(request.volume_id)
        path = requests.parse_volume_path(request.volume_path, "volume_path")
        sizes = requests.parse_range(request.capacity_range)
        if request.HasField("volume_capability"):
            parse_capability(request.volume_capability)
        with self._locks.hold(f"volume/{volume_id}"):
            size_bytes = self._attacher.expand(volume_id, path, sizes.required_bytes)
        return csi.NodeExpandVolumeResponse(capacity_bytes=size_bytes)


def _parse_use(request: csi.NodeStageVolumeRequest | csi.NodePublishVolumeRequest) -> Use:
    made_for = request.volume_context.get(CONTEXT_FILESYSTEM)
    return parse_capability(request.volume_capability).use(
        writable=request.publish_context.get("writable") != "false",
        filesystem=parse_filesystem(made_for, f"volume_context.{CONTEXT_FILESYSTEM}") if made_for else None,
    )


def _usage_messages(usage: Usage | int) -> list[csi.VolumeUsage]:
    if isinstance(usage, int):
        return [csi.VolumeUsage(total=usage, unit=csi.VolumeUsage.BYTES)]
    return [
        csi.VolumeUsage(
            available=usage.available_bytes, total=usage.total_bytes, used=usage.used_bytes, unit=csi.VolumeUsage.BYTES
        ),
        csi.VolumeUsage(
            available=usage.available_inodes,
            total=usage.total_inodes,
            used=usage.used_inodes,
            unit=csi.VolumeUsage.INODES,
        ),
    ]
