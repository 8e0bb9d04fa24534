"""The controller over the wire: what it grants, and every kind of bad input with its code, sentence and no effect."""

import threading
from collections.abc import Callable

import pytest
from grpc import StatusCode

from aoe_core.model import MAX_NODE_ID_BYTES, NodeName, PoolName, SanName, VolumeId
from aoe_csi.proto import csi_pb2 as csi

from .memory import NODE
from .plugin import GIB, MODES, Plugin, block, create, mount, refused

MAIN = csi.Topology(segments={"san.aoe-csi.dev/main": "true"})
RPC = csi.ControllerServiceCapability.RPC


def requirement(*requisite: dict[str, str]) -> csi.TopologyRequirement:
    return csi.TopologyRequirement(requisite=[csi.Topology(segments=segments) for segments in requisite])


def publish(
    volume_id: str = "pvc-1",
    node_id: str = str(NODE),
    capability: csi.VolumeCapability | None = None,
    *,
    readonly: bool = False,
) -> csi.ControllerPublishVolumeRequest:
    return csi.ControllerPublishVolumeRequest(
        volume_id=volume_id, node_id=node_id, volume_capability=capability or mount(), readonly=readonly
    )


def for_fstype(fstype: str, *capabilities: csi.VolumeCapability) -> csi.CreateVolumeRequest:
    request = create(*capabilities)
    request.parameters["csi.storage.k8s.io/fstype"] = fstype
    return request


# --- what is offered --------------------------------------------------------------------------------------------


def offered(plugin: Plugin) -> set[int]:
    reply = plugin.controller.ControllerGetCapabilities(csi.ControllerGetCapabilitiesRequest())
    return {one.rpc.type for one in reply.capabilities}


def test_snapshots_are_offered_where_a_pool_can_take_them(plugin: Plugin) -> None:
    snapshots = {RPC.CREATE_DELETE_SNAPSHOT, RPC.LIST_SNAPSHOTS, RPC.GET_SNAPSHOT}
    with_thin = offered(plugin)
    plugin.provisioner.thin = False
    assert offered(plugin) == with_thin - snapshots
    assert snapshots <= with_thin
    assert {RPC.CREATE_DELETE_VOLUME, RPC.SINGLE_NODE_MULTI_WRITER, RPC.LIST_VOLUMES_PUBLISHED_NODES} <= with_thin


def test_without_a_thin_pool_every_snapshot_call_is_unimplemented(plugin: Plugin) -> None:
    plugin.volume()
    plugin.provisioner.thin = False
    calls: list[Callable[[], object]] = [
        lambda: plugin.controller.CreateSnapshot(csi.CreateSnapshotRequest(name="s", source_volume_id="pvc-1")),
        lambda: plugin.controller.DeleteSnapshot(csi.DeleteSnapshotRequest(snapshot_id="s")),
        lambda: plugin.controller.ListSnapshots(csi.ListSnapshotsRequest()),
        lambda: plugin.controller.GetSnapshot(csi.GetSnapshotRequest(snapshot_id="s")),
    ]
    for call in calls:
        with refused(StatusCode.UNIMPLEMENTED, "snapshots are not offered"):
            call()


# --- creating ---------------------------------------------------------------------------------------------------


def test_a_volume_says_where_it_is_and_has_the_size_asked_for(plugin: Plugin) -> None:
    volume = plugin.controller.CreateVolume(create(required=GIB + 1)).volume
    assert volume.volume_id == "pvc-1"
    assert volume.capacity_bytes == GIB + 1
    assert list(volume.accessible_topology) == [MAIN]
    assert dict(volume.volume_context) == {}
    assert not volume.HasField("content_source")


def test_the_same_request_again_gives_the_same_reply(plugin: Plugin) -> None:
    request = create(block(), mount(fs_type="xfs"), pool="fast", durability="direct-sync", wipe="discard-and-zero")
    request.parameters["csi.storage.k8s.io/pvc/name"] = "claim"
    first = plugin.controller.CreateVolume(request)
    assert plugin.controller.CreateVolume(request) == first
    assert plugin.changes == 1


def test_the_same_name_with_other_content_is_refused(plugin: Plugin) -> None:
    plugin.controller.CreateVolume(create(required=GIB, limit=GIB))
    with refused(StatusCode.ALREADY_EXISTS, "pvc-1"):
        plugin.controller.CreateVolume(create(required=2 * GIB, limit=2 * GIB))
    assert plugin.changes == 1


def test_a_san_can_be_chosen(plugin: Plugin) -> None:
    plugin.provisioner.san_names = (SanName("main"), SanName("second"))
    assert len(plugin.controller.CreateVolume(create(name="both")).volume.accessible_topology) == 2
    chosen = plugin.controller.CreateVolume(create(name="one", san="second")).volume.accessible_topology
    assert [dict(one.segments) for one in chosen] == [{"san.aoe-csi.dev/second": "true"}]


def test_the_file_system_of_the_storage_class_is_remembered(plugin: Plugin) -> None:
    assert dict(plugin.controller.CreateVolume(for_fstype("xfs")).volume.volume_context) == {"fstype": "xfs"}


@pytest.mark.parametrize(
    ("required", "limit", "size"),
    [(0, 0, GIB), (1, 0, 1), (0, 5, 5), (0, 5 * GIB, GIB), (GIB, 2 * GIB, GIB), (7, 7, 7)],
)
def test_sizes_that_will_do(plugin: Plugin, required: int, limit: int, size: int) -> None:
    assert plugin.controller.CreateVolume(create(required=required, limit=limit)).volume.capacity_bytes == size


@pytest.mark.parametrize(
    "name", ["x" * 128, "🦀" * 32, "../../etc", "-rf", "snapshot-1", "a/b c", "tab\there", "e\u0301"]
)
def test_any_name_makes_a_volume_with_an_id_that_is_safe(plugin: Plugin, name: str) -> None:
    volume = plugin.volume(name)
    assert set(volume.volume_id) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert plugin.volume(name).volume_id == volume.volume_id
    assert plugin.changes == 1


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (create(name=""), StatusCode.INVALID_ARGUMENT, ("name is missing",)),
        (create(name="x" * 129), StatusCode.INVALID_ARGUMENT, ("xxx", "129 bytes")),
        (create(name="🦀" * 33), StatusCode.INVALID_ARGUMENT, ("132 bytes",)),
        (create(name="a\x00b"), StatusCode.INVALID_ARGUMENT, ("U+0000",)),
        (create(name="a\x85b"), StatusCode.INVALID_ARGUMENT, ("U+0085",)),
        (create(required=-1), StatusCode.INVALID_ARGUMENT, ("required_bytes is -1",)),
        (create(limit=-1), StatusCode.INVALID_ARGUMENT, ("limit_bytes is -1",)),
        (create(required=2**63 - 1), StatusCode.OUT_OF_RANGE, ("131072 TiB",)),
        (create(required=2, limit=1), StatusCode.OUT_OF_RANGE, ("limit_bytes is 1",)),
        (create(required=2000 * GIB), StatusCode.OUT_OF_RANGE, ("pvc-1",)),
        (create(size="1"), StatusCode.INVALID_ARGUMENT, ("'size'", "durability", "wipe")),
        (create(Pool="fast"), StatusCode.INVALID_ARGUMENT, ("'Pool'", "pool")),
        (create(pool="slow"), StatusCode.INVALID_ARGUMENT, ("'slow'", "fast")),
        (create(pool=""), StatusCode.INVALID_ARGUMENT, ("''", "fast")),
        (create(san="elsewhere"), StatusCode.INVALID_ARGUMENT, ("'elsewhere'", "main")),
        (create(durability="none"), StatusCode.INVALID_ARGUMENT, ("'none'", "sync or direct-sync")),
        (create(wipe="none"), StatusCode.INVALID_ARGUMENT, ("'none'", "zero or discard-and-zero")),
        (for_fstype("btrfs"), StatusCode.INVALID_ARGUMENT, ("'btrfs'", "ext4 or xfs")),
        (create(mount(fs_type="btrfs")), StatusCode.INVALID_ARGUMENT, ("'btrfs'", "ext4 or xfs")),
        (create(mount(fs_type="-t")), StatusCode.INVALID_ARGUMENT, ("'-t'",)),
        (create(mount(fs_type="ext4"), mount(fs_type="xfs")), StatusCode.INVALID_ARGUMENT, ("ext4 and xfs",)),
        (
            for_fstype("xfs", mount(fs_type="ext4")),
            StatusCode.INVALID_ARGUMENT,
            ("is xfs", "ext4"),
        ),
        (create(mount(flags=("-o",))), StatusCode.INVALID_ARGUMENT, ("mount_flags[0]",)),
        (create(mount(flags=("ro", "a\nb"))), StatusCode.INVALID_ARGUMENT, ("mount_flags[1]",)),
        (create(mount(flags=("",))), StatusCode.INVALID_ARGUMENT, ("mount_flags[0]",)),
        (create(mount(flags=("x" * 5000,))), StatusCode.INVALID_ARGUMENT, ("5000 bytes",)),
        (create(mount(MODES.MULTI_NODE_MULTI_WRITER)), StatusCode.INVALID_ARGUMENT, ("MULTI_NODE_MULTI_WRITER",)),
        (create(mount(), mount(MODES.MULTI_NODE_MULTI_WRITER)), StatusCode.INVALID_ARGUMENT, ("two nodes",)),
        (create(block(MODES.MULTI_NODE_SINGLE_WRITER)), StatusCode.INVALID_ARGUMENT, ("MULTI_NODE_SINGLE_WRITER",)),
        (create(block(MODES.UNKNOWN)), StatusCode.INVALID_ARGUMENT, ("UNKNOWN",)),
        (create(csi.VolumeCapability()), StatusCode.INVALID_ARGUMENT, ("access_type",)),
        (
            create(csi.VolumeCapability(block=csi.VolumeCapability.BlockVolume())),
            StatusCode.INVALID_ARGUMENT,
            ("access_mode",),
        ),
        (
            create(csi.VolumeCapability(mount=csi.VolumeCapability.MountVolume(volume_mount_group="1"))),
            StatusCode.INVALID_ARGUMENT,
            ("access_mode",),
        ),
    ],
)
def test_bad_create_requests(
    plugin: Plugin, request_: csi.CreateVolumeRequest, code: StatusCode, words: tuple[str, ...]
) -> None:
    with refused(code, *words):
        plugin.controller.CreateVolume(request_)
    assert plugin.changes == 0


def test_a_mount_group_is_refused(plugin: Plugin) -> None:
    capability = mount()
    capability.mount.volume_mount_group = "1000"
    with refused(StatusCode.INVALID_ARGUMENT, "volume_mount_group"):
        plugin.controller.CreateVolume(create(capability))


def test_a_volume_needs_capabilities(plugin: Plugin) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "volume_capabilities is empty"):
        plugin.controller.CreateVolume(csi.CreateVolumeRequest(name="pvc-1"))


def test_mutable_parameters_are_refused(plugin: Plugin) -> None:
    request = create()
    request.mutable_parameters["iops"] = "5"
    with refused(StatusCode.INVALID_ARGUMENT, "'iops'"):
        plugin.controller.CreateVolume(request)
    assert plugin.changes == 0


def test_the_pool_must_be_said_where_there_are_several(plugin: Plugin) -> None:
    plugin.provisioner.pool_names = (PoolName("fast"), PoolName("large"))
    with refused(StatusCode.INVALID_ARGUMENT, "pool is missing", "fast, large"):
        plugin.volume()
    assert plugin.controller.CreateVolume(create(pool="large")).volume.volume_id == "pvc-1"


def test_without_any_pool_there_is_no_room(plugin: Plugin) -> None:
    plugin.provisioner.pool_names = ()
    with refused(StatusCode.RESOURCE_EXHAUSTED, "no pool"):
        plugin.volume()


@pytest.mark.parametrize(
    "requisite",
    [
        [{"san.aoe-csi.dev/main": "true"}],
        [{"san.aoe-csi.dev/main": "true", "san.aoe-csi.dev/other": "true"}],
        [{"san.aoe-csi.dev/other": "true"}, {"san.aoe-csi.dev/main": "true"}],
        [{}],
        [],
    ],
)
def test_topologies_that_reach_the_storage(plugin: Plugin, requisite: list[dict[str, str]]) -> None:
    request = create()
    request.accessibility_requirements.CopyFrom(requirement(*requisite))
    assert list(plugin.controller.CreateVolume(request).volume.accessible_topology) == [MAIN]


@pytest.mark.parametrize(
    "requisite",
    [
        [{"san.aoe-csi.dev/other": "true"}],
        [{"san.aoe-csi.dev/main": "false"}],
        [{"topology.kubernetes.io/zone": "a"}],
        [{"san.aoe-csi.dev/main": "true", "topology.kubernetes.io/zone": "a"}],
        [{"san.aoe-csi.dev/MAIN": "true"}],
    ],
)
def test_topologies_that_do_not_reach_the_storage(plugin: Plugin, requisite: list[dict[str, str]]) -> None:
    request = create()
    request.accessibility_requirements.CopyFrom(requirement(*requisite))
    with refused(StatusCode.RESOURCE_EXHAUSTED, "accessibility_requirements", "main"):
        plugin.controller.CreateVolume(request)
    assert plugin.changes == 0


def test_a_wish_for_an_unknown_topology_is_not_a_demand(plugin: Plugin) -> None:
    request = create()
    request.accessibility_requirements.preferred.add(segments={"san.aoe-csi.dev/other": "true"})
    assert plugin.controller.CreateVolume(request).volume.volume_id == "pvc-1"


def test_a_demand_for_sans_is_passed_on(plugin: Plugin) -> None:
    plugin.provisioner.san_names = (SanName("main"), SanName("second"), SanName("third"))
    request = create()
    request.accessibility_requirements.CopyFrom(
        requirement({"san.aoe-csi.dev/third": "true", "san.aoe-csi.dev/second": "true"}, {"zone": "a"})
    )
    reached = plugin.controller.CreateVolume(request).volume.accessible_topology
    assert [list(one.segments) for one in reached] == [["san.aoe-csi.dev/second"], ["san.aoe-csi.dev/third"]]


# --- sources ----------------------------------------------------------------------------------------------------


def from_volume(name: str, source: str, required: int = 0) -> csi.CreateVolumeRequest:
    request = create(name=name, required=required)
    request.volume_content_source.volume.volume_id = source
    return request


def test_a_clone_has_its_sources_size_and_names_it(plugin: Plugin) -> None:
    plugin.controller.CreateVolume(create(required=3 * GIB))
    clone = plugin.controller.CreateVolume(from_volume("clone", "pvc-1")).volume
    assert clone.capacity_bytes == 3 * GIB
    assert clone.content_source.volume.volume_id == "pvc-1"


def test_a_restore_names_its_snapshot(plugin: Plugin) -> None:
    plugin.volume()
    plugin.controller.CreateSnapshot(csi.CreateSnapshotRequest(name="snap", source_volume_id="pvc-1"))
    request = create(name="restored", required=0)
    request.volume_content_source.snapshot.snapshot_id = "snap"
    restored = plugin.controller.CreateVolume(request).volume
    assert restored.content_source.snapshot.snapshot_id == "snap"
    assert restored.capacity_bytes == GIB


def test_a_smaller_clone_is_refused(plugin: Plugin) -> None:
    plugin.volume()
    with refused(StatusCode.OUT_OF_RANGE):
        plugin.controller.CreateVolume(from_volume("clone", "pvc-1", required=1))
    assert plugin.changes == 1


@pytest.mark.parametrize("source", ["pvc-2", "../etc", "UPPER", "x" * 500])
def test_an_absent_source_is_not_found(plugin: Plugin, source: str) -> None:
    snapshot = create(name="restored")
    snapshot.volume_content_source.snapshot.snapshot_id = source
    for request in (from_volume("clone", source), from_volume("clone", source, GIB), snapshot):
        with refused(StatusCode.NOT_FOUND):
            plugin.controller.CreateVolume(request)
    assert plugin.changes == 0


def test_a_source_must_be_named(plugin: Plugin) -> None:
    nothing = create()
    nothing.volume_content_source.SetInParent()
    for request in (from_volume("clone", ""), nothing):
        with refused(StatusCode.INVALID_ARGUMENT):
            plugin.controller.CreateVolume(request)


# --- deleting, looking, growing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("volume_id", ["absent", "fake-vol-id", "../..", "-rf", "UPPER", "x" * 500, "é"])
def test_deleting_what_is_not_there_succeeds(plugin: Plugin, volume_id: str) -> None:
    plugin.controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id=volume_id))
    plugin.controller.DeleteSnapshot(csi.DeleteSnapshotRequest(snapshot_id=volume_id))
    plugin.controller.ControllerUnpublishVolume(
        csi.ControllerUnpublishVolumeRequest(volume_id=volume_id, node_id=str(NODE))
    )
    assert plugin.changes == 0


def test_a_published_volume_is_not_deleted(plugin: Plugin) -> None:
    plugin.published()
    with refused(StatusCode.FAILED_PRECONDITION, "pvc-1"):
        plugin.controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id="pvc-1"))
    assert VolumeId("pvc-1") in plugin.provisioner.volumes


@pytest.mark.parametrize(
    "call",
    [
        lambda plugin: plugin.controller.DeleteVolume(csi.DeleteVolumeRequest()),
        lambda plugin: plugin.controller.ControllerGetVolume(csi.ControllerGetVolumeRequest()),
        lambda plugin: plugin.controller.ControllerExpandVolume(csi.ControllerExpandVolumeRequest()),
        lambda plugin: plugin.controller.ControllerPublishVolume(csi.ControllerPublishVolumeRequest()),
        lambda plugin: plugin.controller.ControllerUnpublishVolume(csi.ControllerUnpublishVolumeRequest()),
        lambda plugin: plugin.controller.ValidateVolumeCapabilities(csi.ValidateVolumeCapabilitiesRequest()),
        lambda plugin: plugin.controller.DeleteSnapshot(csi.DeleteSnapshotRequest()),
        lambda plugin: plugin.controller.GetSnapshot(csi.GetSnapshotRequest()),
        lambda plugin: plugin.controller.CreateSnapshot(csi.CreateSnapshotRequest(name="s")),
        lambda plugin: plugin.controller.CreateSnapshot(csi.CreateSnapshotRequest(source_volume_id="pvc-1")),
    ],
)
def test_a_missing_id_is_an_invalid_argument(plugin: Plugin, call: Callable[[Plugin], object]) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "is missing"):
        call(plugin)
    assert plugin.changes == 0


def test_a_volume_tells_who_has_it(plugin: Plugin) -> None:
    plugin.published()
    volume = plugin.controller.ControllerGetVolume(csi.ControllerGetVolumeRequest(volume_id="pvc-1"))
    listed = plugin.controller.ListVolumes(csi.ListVolumesRequest()).entries
    assert list(volume.status.published_node_ids) == [str(NODE)]
    assert [(one.volume, list(one.status.published_node_ids)) for one in listed] == [(volume.volume, [str(NODE)])]


def test_volumes_are_listed_in_pages(plugin: Plugin) -> None:
    for name in ("c", "a", "b"):
        plugin.volume(name)
    first = plugin.controller.ListVolumes(csi.ListVolumesRequest(max_entries=2))
    rest = plugin.controller.ListVolumes(csi.ListVolumesRequest(starting_token=first.next_token))
    assert [one.volume.volume_id for one in (*first.entries, *rest.entries)] == ["a", "b", "c"]
    assert rest.next_token == ""


def test_bad_page_requests(plugin: Plugin) -> None:
    for name in ("a", "b"):
        plugin.volume(name)
        plugin.controller.CreateSnapshot(csi.CreateSnapshotRequest(name=f"s-{name}", source_volume_id=name))
    volumes = plugin.controller.ListVolumes(csi.ListVolumesRequest(max_entries=1)).next_token
    for token in ("invalid-token", volumes[:-2], volumes.swapcase()):
        with refused(StatusCode.ABORTED, "starting_token"):
            plugin.controller.ListVolumes(csi.ListVolumesRequest(starting_token=token))
    with refused(StatusCode.ABORTED, "starting_token"):
        plugin.controller.ListSnapshots(csi.ListSnapshotsRequest(starting_token=volumes))
    with refused(StatusCode.INVALID_ARGUMENT, "max_entries is -1"):
        plugin.controller.ListVolumes(csi.ListVolumesRequest(max_entries=-1))
    with refused(StatusCode.INVALID_ARGUMENT, "max_entries is -1"):
        plugin.controller.ListSnapshots(csi.ListSnapshotsRequest(max_entries=-1))


def expand(volume_id: str = "pvc-1", required: int = 2 * GIB, limit: int = 0) -> csi.ControllerExpandVolumeRequest:
    return csi.ControllerExpandVolumeRequest(
        volume_id=volume_id, capacity_range=csi.CapacityRange(required_bytes=required, limit_bytes=limit)
    )


def test_growing_needs_the_node_where_one_has_the_volume(plugin: Plugin) -> None:
    """A file system grows when a pod comes, if none has it; a device that nobody has needs nobody."""
    plugin.volume()
    requests = (expand(), expand(), expand(required=1), expand(required=0, limit=3 * GIB))

    def grow(capability: csi.VolumeCapability | None) -> set[bool]:
        for request in requests:
            if capability is not None:
                request.volume_capability.CopyFrom(capability)
        replies = [plugin.controller.ControllerExpandVolume(request) for request in requests]
        assert {reply.capacity_bytes for reply in replies} == {2 * GIB}
        return {reply.node_expansion_required for reply in replies}

    assert grow(None) == {True}
    assert grow(mount()) == {True}
    assert grow(block()) == {False}
    plugin.controller.ControllerPublishVolume(publish(capability=block()))
    assert grow(block()) == {True}
    plugin.provisioner.guest_nodes = frozenset({NODE.name})
    assert grow(block()) == {False}


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (csi.ControllerExpandVolumeRequest(volume_id="pvc-1"), StatusCode.INVALID_ARGUMENT),
        (expand(required=0), StatusCode.INVALID_ARGUMENT),
        (expand(required=-5), StatusCode.INVALID_ARGUMENT),
        (expand(required=2**63 - 1), StatusCode.OUT_OF_RANGE),
        (expand(required=3, limit=2), StatusCode.OUT_OF_RANGE),
        (expand(required=0, limit=1), StatusCode.OUT_OF_RANGE),
        (expand(required=2000 * GIB), StatusCode.OUT_OF_RANGE),
        (expand("absent"), StatusCode.NOT_FOUND),
        (expand("no/id"), StatusCode.NOT_FOUND),
    ],
)
def test_bad_expand_requests(plugin: Plugin, request_: csi.ControllerExpandVolumeRequest, code: StatusCode) -> None:
    plugin.volume()
    with refused(code, ";"):
        plugin.controller.ControllerExpandVolume(request_)
    assert plugin.changes == 1


def test_validation_confirms_or_says_why_not(plugin: Plugin) -> None:
    plugin.volume()

    def validate(*capabilities: csi.VolumeCapability, **parameters: str) -> csi.ValidateVolumeCapabilitiesResponse:
        return plugin.controller.ValidateVolumeCapabilities(
            csi.ValidateVolumeCapabilitiesRequest(
                volume_id="pvc-1", volume_capabilities=capabilities, parameters=parameters
            )
        )

    confirmed = validate(mount(), block(MODES.MULTI_NODE_MULTI_WRITER), pool="fast", durability="sync")
    assert list(confirmed.confirmed.volume_capabilities) == [mount(), block(MODES.MULTI_NODE_MULTI_WRITER)]
    assert dict(confirmed.confirmed.parameters) == {"pool": "fast", "durability": "sync"}
    for refusal, word in (
        (validate(mount(MODES.MULTI_NODE_MULTI_WRITER)), "two nodes"),
        (validate(mount(fs_type="vfat")), "vfat"),
        (validate(mount(), durability="direct-sync"), "durability sync, not direct-sync"),
        (validate(mount(), pool="other"), "pool"),
        (validate(mount(), colour="red"), "colour"),
    ):
        assert not refusal.HasField("confirmed")
        assert word in refusal.message
    with refused(StatusCode.INVALID_ARGUMENT, "volume_capabilities is empty"):
        validate()
    with refused(StatusCode.NOT_FOUND):
        plugin.controller.ValidateVolumeCapabilities(
            csi.ValidateVolumeCapabilitiesRequest(volume_id="absent", volume_capabilities=[mount()])
        )


def test_capacity_is_what_these_nodes_could_get(plugin: Plugin) -> None:
    def capacity(segments: dict[str, str] | None = None, **parameters: str) -> int:
        request = csi.GetCapacityRequest(parameters=parameters)
        if segments is not None:
            request.accessible_topology.segments.update(segments)
        reply = plugin.controller.GetCapacity(request)
        assert reply.maximum_volume_size.value == reply.available_capacity
        return reply.available_capacity

    whole = capacity()
    assert whole > 0
    assert capacity({"san.aoe-csi.dev/main": "true"}, pool="fast", san="main") == whole
    assert capacity({"san.aoe-csi.dev/other": "true"}) == 0
    assert capacity({"zone": "a"}) == 0
    assert capacity(pool="slow") == 0
    assert capacity(san="elsewhere") == 0
    with refused(StatusCode.INVALID_ARGUMENT, "'colour'"):
        capacity(colour="red")
    with refused(StatusCode.INVALID_ARGUMENT, "'vfat'"):
        plugin.controller.GetCapacity(csi.GetCapacityRequest(volume_capabilities=[mount(fs_type="vfat")]))


# --- granting ---------------------------------------------------------------------------------------------------


def test_publishing_is_idempotent_and_exclusive(plugin: Plugin) -> None:
    context = plugin.published()
    assert context["address"] == "e10.0"
    assert dict(plugin.controller.ControllerPublishVolume(publish()).publish_context) == context
    with refused(StatusCode.ALREADY_EXISTS, "pvc-1"):
        plugin.controller.ControllerPublishVolume(publish(readonly=True))
    with refused(StatusCode.FAILED_PRECONDITION, "pvc-1"):
        plugin.controller.ControllerPublishVolume(publish(node_id="compute2|0badcafe|main=525400000216"))
    assert len(plugin.provisioner.grants) == 1


@pytest.mark.parametrize(
    ("capability", "readonly", "writable"),
    [
        (mount(), False, "true"),
        (mount(), True, "false"),
        (mount(MODES.MULTI_NODE_READER_ONLY), False, "false"),
        (block(MODES.SINGLE_NODE_READER_ONLY), False, "false"),
        (block(MODES.MULTI_NODE_MULTI_WRITER), False, "true"),
    ],
)
def test_a_grant_is_read_only_by_mode_or_by_flag(
    plugin: Plugin, capability: csi.VolumeCapability, readonly: bool, writable: str
) -> None:
    plugin.volume()
    reply = plugin.controller.ControllerPublishVolume(publish(capability=capability, readonly=readonly))
    assert reply.publish_context["writable"] == writable


@pytest.mark.parametrize(
    "node_id",
    [
        "fake-node-id-12345",
        "compute1",
        "nobody|0badcafe|main=525400000115",
        "compute1|xyz|",
        "compute1|0badcafe|main=zz",
        "|0badcafe|",
        "../..|0badcafe|",
        "x" * (MAX_NODE_ID_BYTES + 1),
        "é|0badcafe|",
    ],
)
def test_an_unknown_or_malformed_node_is_not_found(plugin: Plugin, node_id: str) -> None:
    plugin.volume()
    with refused(StatusCode.NOT_FOUND, "node"):
        plugin.controller.ControllerPublishVolume(publish(node_id=node_id))
    assert plugin.changes == 1


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (publish("absent"), StatusCode.NOT_FOUND),
        (publish("fake-vol-id", "fake-node-id"), StatusCode.NOT_FOUND),
        (publish("no/id"), StatusCode.NOT_FOUND),
        (publish(node_id=""), StatusCode.INVALID_ARGUMENT),
        (
            csi.ControllerPublishVolumeRequest(volume_id="pvc-1", node_id="fake-node-id"),
            StatusCode.INVALID_ARGUMENT,
        ),
        (publish(capability=mount(MODES.MULTI_NODE_MULTI_WRITER)), StatusCode.INVALID_ARGUMENT),
    ],
)
def test_bad_publish_requests(plugin: Plugin, request_: csi.ControllerPublishVolumeRequest, code: StatusCode) -> None:
    plugin.volume()
    with refused(code, ";"):
        plugin.controller.ControllerPublishVolume(request_)
    assert plugin.changes == 1


def unpublish(plugin: Plugin, node_id: str) -> int:
    plugin.controller.ControllerUnpublishVolume(
        csi.ControllerUnpublishVolumeRequest(volume_id="pvc-1", node_id=node_id)
    )
    return len(plugin.provisioner.grants)


def test_a_node_loses_its_grant_by_name_whatever_else_its_id_says(plugin: Plugin) -> None:
    for node_id in (str(NODE), "compute1|ffffffff|main=525400009999", "compute1", "compute1|an older|layout|of ids"):
        plugin.published()
        assert unpublish(plugin, node_id) == 0


def test_other_nodes_keep_their_grants(plugin: Plugin) -> None:
    plugin.published()
    for node_id in ("compute2|0badcafe|", "fake-node-id", "|0badcafe|", "compute"):
        assert unpublish(plugin, node_id) == 1


def test_without_a_node_every_grant_goes(plugin: Plugin) -> None:
    shared = block(MODES.MULTI_NODE_MULTI_WRITER)
    plugin.volume()
    for node in ("compute1", "compute2"):
        plugin.controller.ControllerPublishVolume(
            publish(node_id=f"{node}|0badcafe|main=525400000115", capability=shared)
        )
    assert {node for _, node in plugin.provisioner.grants} == {NodeName("compute1"), NodeName("compute2")}
    assert unpublish(plugin, "") == 0


# --- snapshots --------------------------------------------------------------------------------------------------


def snapshot(plugin: Plugin, name: str = "snap", source: str = "pvc-1") -> csi.Snapshot:
    return plugin.controller.CreateSnapshot(csi.CreateSnapshotRequest(name=name, source_volume_id=source)).snapshot


def listed(plugin: Plugin, **fields: str) -> list[str]:
    reply = plugin.controller.ListSnapshots(
        csi.ListSnapshotsRequest(
            snapshot_id=fields.get("snapshot_id", ""), source_volume_id=fields.get("source_volume_id", "")
        )
    )
    return [one.snapshot.snapshot_id for one in reply.entries]


def test_a_snapshot_is_taken_found_and_deleted(plugin: Plugin) -> None:
    plugin.volume("a")
    plugin.volume("b")
    taken = snapshot(plugin, "s-1", "a")
    assert taken.ready_to_use
    assert taken.size_bytes == GIB
    assert taken.creation_time.seconds > 0
    assert snapshot(plugin, "s-1", "a") == taken
    snapshot(plugin, "s-2", "b")
    assert listed(plugin) == ["s-1", "s-2"]
    assert listed(plugin, snapshot_id="s-2") == ["s-2"]
    assert listed(plugin, source_volume_id="a") == ["s-1"]
    assert listed(plugin, source_volume_id="a", snapshot_id="s-2") == []
    assert plugin.controller.GetSnapshot(csi.GetSnapshotRequest(snapshot_id="s-1")).snapshot == taken
    plugin.controller.DeleteSnapshot(csi.DeleteSnapshotRequest(snapshot_id="s-1"))
    with refused(StatusCode.NOT_FOUND, "s-1"):
        plugin.controller.GetSnapshot(csi.GetSnapshotRequest(snapshot_id="s-1"))


@pytest.mark.parametrize("text", ["none-exist-id", "../etc", "UPPER", "é", "x" * 500])
def test_listing_by_an_id_that_is_not_there_is_empty(plugin: Plugin, text: str) -> None:
    plugin.volume()
    snapshot(plugin)
    assert listed(plugin, snapshot_id=text) == []
    assert listed(plugin, source_volume_id=text) == []


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (csi.CreateSnapshotRequest(name="snap", source_volume_id="other"), StatusCode.ALREADY_EXISTS),
        (csi.CreateSnapshotRequest(name="new", source_volume_id="absent"), StatusCode.NOT_FOUND),
        (csi.CreateSnapshotRequest(name="new", source_volume_id="no/id"), StatusCode.NOT_FOUND),
        (csi.CreateSnapshotRequest(name="x" * 129, source_volume_id="pvc-1"), StatusCode.INVALID_ARGUMENT),
        (
            csi.CreateSnapshotRequest(name="new", source_volume_id="pvc-1", parameters={"k": "v"}),
            StatusCode.INVALID_ARGUMENT,
        ),
    ],
)
def test_bad_snapshot_requests(plugin: Plugin, request_: csi.CreateSnapshotRequest, code: StatusCode) -> None:
    plugin.volume()
    plugin.volume("other")
    snapshot(plugin)
    before = plugin.changes
    with refused(code, ";"):
        plugin.controller.CreateSnapshot(request_)
    assert plugin.changes == before


def test_what_the_snapshotter_adds_is_tolerated(plugin: Plugin) -> None:
    plugin.volume()
    plugin.controller.CreateSnapshot(
        csi.CreateSnapshotRequest(
            name="snap", source_volume_id="pvc-1", parameters={"csi.storage.k8s.io/volumesnapshot/name": "x"}
        )
    )


# --- concurrency ------------------------------------------------------------------------------------------------


def test_a_volume_at_work_is_refused_and_another_is_not(plugin: Plugin) -> None:
    entered, leave = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        assert leave.wait(30)

    plugin.volume("other")
    plugin.provisioner.trouble["create_volume"] = wait
    slow = plugin.controller.CreateVolume.future(create())
    assert entered.wait(30)
    with refused(StatusCode.ABORTED, "volume/pvc-1"):
        plugin.controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id="pvc-1"))
    plugin.controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id="other"))
    leave.set()
    assert slow.result(30).volume.volume_id == "pvc-1"
    del plugin.provisioner.trouble["create_volume"]
    assert plugin.volume().volume_id == "pvc-1"


def test_fifty_calls_at_once_are_all_served(plugin: Plugin) -> None:
    together = threading.Barrier(50)

    def meet() -> None:
        together.wait(30)

    plugin.provisioner.trouble["create_volume"] = meet
    calls = [plugin.controller.CreateVolume.future(create(name=f"pvc-{number}")) for number in range(50)]
    assert {call.result(60).volume.volume_id for call in calls} == {f"pvc-{number}" for number in range(50)}
