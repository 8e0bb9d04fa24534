"""The node over the wire: uses, stage to unstage, statistics, and every kind of bad input."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from grpc import StatusCode

from aoe_core.errors import IdentityMismatch, Unreachable
from aoe_core.model import AccessMode, VolumeId
from aoe_csi.attacher import BlockUse, FilesystemUse, Use
from aoe_csi.proto import csi_pb2 as csi

from .memory import NODE
from .plugin import GIB, MODES, Plugin, block, mount, refused

Call = Callable[[], object]

STAGING, TARGET = "/staging/pvc-1", "/pods/1/target"
VOLUME = VolumeId("pvc-1")


def stage(context: dict[str, str], capability: csi.VolumeCapability | None = None) -> csi.NodeStageVolumeRequest:
    return csi.NodeStageVolumeRequest(
        volume_id=VOLUME,
        publish_context=context,
        staging_target_path=STAGING,
        volume_capability=capability or mount(),
        volume_context={"storage.kubernetes.io/csiProvisionerIdentity": "1"},
    )


def publish(
    context: dict[str, str],
    capability: csi.VolumeCapability | None = None,
    *,
    target: str = TARGET,
    readonly: bool = False,
) -> csi.NodePublishVolumeRequest:
    return csi.NodePublishVolumeRequest(
        volume_id=VOLUME,
        publish_context=context,
        staging_target_path=STAGING,
        target_path=target,
        volume_capability=capability or mount(),
        readonly=readonly,
    )


def staged(plugin: Plugin, capability: csi.VolumeCapability | None = None) -> dict[str, str]:
    context = plugin.published(capability=capability)
    plugin.node.NodeStageVolume(stage(context, capability))
    return context


def test_the_node_says_who_and_where_it_is(plugin: Plugin) -> None:
    info = plugin.node.NodeGetInfo(csi.NodeGetInfoRequest())
    assert info.node_id == str(NODE)
    assert info.max_volumes_per_node == 128
    assert dict(info.accessible_topology.segments) == {"san.aoe-csi.dev/main": "true"}


def test_a_node_that_cannot_tell_its_sans_is_unavailable(plugin: Plugin) -> None:
    def down() -> None:
        raise Unreachable("interface san0 is down; bring it up")

    plugin.attacher.trouble["identity"] = down
    with refused(StatusCode.UNAVAILABLE, "san0"):
        plugin.node.NodeGetInfo(csi.NodeGetInfoRequest())


def test_a_node_id_longer_than_csi_allows_is_refused_with_what_to_do(plugin: Plugin) -> None:
    plugin.attacher.node = replace(NODE, macs=NODE.macs * 8)
    with refused(StatusCode.INVALID_ARGUMENT, "256", "shorter name"):
        plugin.node.NodeGetInfo(csi.NodeGetInfoRequest())


def test_what_the_node_offers(plugin: Plugin) -> None:
    kinds = csi.NodeServiceCapability.RPC
    reply = plugin.node.NodeGetCapabilities(csi.NodeGetCapabilitiesRequest())
    assert {one.rpc.type for one in reply.capabilities} == {
        kinds.STAGE_UNSTAGE_VOLUME,
        kinds.GET_VOLUME_STATS,
        kinds.EXPAND_VOLUME,
        kinds.SINGLE_NODE_MULTI_WRITER,
    }


@pytest.mark.parametrize(
    ("capability", "use"),
    [
        (mount(), FilesystemUse(mode=AccessMode.SINGLE_NODE_WRITER)),
        (
            mount(MODES.SINGLE_NODE_MULTI_WRITER, "xfs", ("noatime", 'context="a:b:c0,c1"')),
            FilesystemUse(
                mode=AccessMode.SINGLE_NODE_MULTI_WRITER,
                filesystem="xfs",
                options=("noatime", 'context="a:b:c0,c1"'),
            ),
        ),
        (
            mount(MODES.MULTI_NODE_READER_ONLY),
            FilesystemUse(mode=AccessMode.MULTI_NODE_READER_ONLY, read_only=True),
        ),
        (block(MODES.MULTI_NODE_MULTI_WRITER), BlockUse(mode=AccessMode.MULTI_NODE_MULTI_WRITER)),
        (
            block(MODES.SINGLE_NODE_READER_ONLY),
            BlockUse(mode=AccessMode.SINGLE_NODE_READER_ONLY, read_only=True),
        ),
    ],
)
def test_a_capability_becomes_a_use(plugin: Plugin, capability: csi.VolumeCapability, use: Use) -> None:
    staged(plugin, capability)
    assert plugin.attacher.staged[VOLUME].use == use


def test_a_read_only_grant_is_staged_read_only_in_any_mode(plugin: Plugin) -> None:
    plugin.volume()
    reply = plugin.controller.ControllerPublishVolume(
        csi.ControllerPublishVolumeRequest(
            volume_id=VOLUME, node_id=str(NODE), volume_capability=mount(), readonly=True
        )
    )
    context = dict(reply.publish_context)
    plugin.node.NodeStageVolume(stage(context))
    plugin.node.NodePublishVolume(publish(context))
    assert plugin.attacher.staged[VOLUME].use.read_only
    assert plugin.attacher.staged[VOLUME].targets == {TARGET: True}


def test_the_storage_classs_file_system_counts_where_the_capability_names_none(plugin: Plugin) -> None:
    request = stage(plugin.published())
    request.volume_context["fstype"] = "xfs"
    plugin.node.NodeStageVolume(request)
    use = plugin.attacher.staged[VOLUME].use
    assert isinstance(use, FilesystemUse)
    assert use.filesystem == "xfs"


def test_a_life_on_the_node_twice_over(plugin: Plugin) -> None:
    context = plugin.published()
    for _ in range(2):
        plugin.node.NodeStageVolume(stage(context))
    for _ in range(2):
        plugin.node.NodePublishVolume(publish(context))
    assert plugin.attacher.staged[VOLUME].targets == {TARGET: False}
    assert plugin.attacher.published_through == plugin.attacher.staged[VOLUME].attachment
    with refused(StatusCode.FAILED_PRECONDITION, VOLUME):
        plugin.node.NodeUnstageVolume(csi.NodeUnstageVolumeRequest(volume_id=VOLUME, staging_target_path=STAGING))
    for _ in range(2):
        plugin.node.NodeUnpublishVolume(csi.NodeUnpublishVolumeRequest(volume_id=VOLUME, target_path=TARGET))
    for _ in range(2):
        plugin.node.NodeUnstageVolume(csi.NodeUnstageVolumeRequest(volume_id=VOLUME, staging_target_path=STAGING))
    assert plugin.attacher.staged == {}


@pytest.mark.parametrize(
    ("mode", "allowed"),
    [
        (MODES.SINGLE_NODE_WRITER, False),
        (MODES.SINGLE_NODE_SINGLE_WRITER, False),
        (MODES.SINGLE_NODE_MULTI_WRITER, True),
        (MODES.MULTI_NODE_READER_ONLY, True),
    ],
)
def test_a_second_path_is_for_modes_that_share(plugin: Plugin, mode: MODES.Mode.ValueType, allowed: bool) -> None:
    context = staged(plugin, mount(mode))
    plugin.node.NodePublishVolume(publish(context, mount(mode)))
    second = publish(context, mount(mode), target="/pods/2/target")
    if allowed:
        plugin.node.NodePublishVolume(second)
    else:
        with refused(StatusCode.FAILED_PRECONDITION, VOLUME):
            plugin.node.NodePublishVolume(second)
    assert len(plugin.attacher.staged[VOLUME].targets) == 1 + allowed


def test_publishing_read_only_is_the_targets_affair(plugin: Plugin) -> None:
    context = staged(plugin)
    plugin.node.NodePublishVolume(publish(context, readonly=True))
    assert plugin.attacher.staged[VOLUME].targets == {TARGET: True}
    assert not plugin.attacher.staged[VOLUME].use.read_only


def test_publishing_without_staging_is_refused(plugin: Plugin) -> None:
    context = plugin.published()
    request = publish(context)
    with refused(StatusCode.FAILED_PRECONDITION, VOLUME):
        plugin.node.NodePublishVolume(request)
    request.staging_target_path = ""
    with refused(StatusCode.FAILED_PRECONDITION, VOLUME, "staging_target_path is missing"):
        plugin.node.NodePublishVolume(request)
    assert plugin.attacher.changes == 0


def test_a_wrong_disk_is_a_failed_precondition(plugin: Plugin) -> None:
    def wrong() -> None:
        raise IdentityMismatch("e10.0 has serial x, not y; find out who answers there")

    context = plugin.published()
    plugin.attacher.trouble["stage"] = wrong
    with refused(StatusCode.FAILED_PRECONDITION, "e10.0"):
        plugin.node.NodeStageVolume(stage(context))


def statistics(plugin: Plugin, path: str = TARGET) -> list[csi.VolumeUsage]:
    request = csi.NodeGetVolumeStatsRequest(volume_id=VOLUME, volume_path=path)
    return list(plugin.node.NodeGetVolumeStats(request).usage)


def test_statistics_of_a_file_system_and_of_a_block_device(plugin: Plugin) -> None:
    plugin.node.NodePublishVolume(publish(staged(plugin)))
    assert statistics(plugin) == [
        csi.VolumeUsage(total=1000, used=400, available=600, unit=csi.VolumeUsage.BYTES),
        csi.VolumeUsage(total=100, used=11, available=89, unit=csi.VolumeUsage.INODES),
    ]
    plugin.attacher.staged.clear()
    plugin.provisioner.grants.clear()
    plugin.node.NodePublishVolume(publish(staged(plugin, block()), block()))
    assert statistics(plugin) == [csi.VolumeUsage(total=GIB, unit=csi.VolumeUsage.BYTES)]


@pytest.mark.parametrize("path", ["some/path", "/elsewhere", "../x", "/x" * 400])
def test_a_path_that_is_not_the_volumes_is_not_found(plugin: Plugin, path: str) -> None:
    plugin.node.NodePublishVolume(publish(staged(plugin)))
    with refused(StatusCode.NOT_FOUND, VOLUME):
        statistics(plugin, path)
    with refused(StatusCode.NOT_FOUND, VOLUME):
        plugin.node.NodeExpandVolume(csi.NodeExpandVolumeRequest(volume_id=VOLUME, volume_path=path))


def test_growing_on_the_node(plugin: Plugin) -> None:
    plugin.node.NodePublishVolume(publish(staged(plugin)))
    request = csi.NodeExpandVolumeRequest(
        volume_id=VOLUME, volume_path=TARGET, capacity_range=csi.CapacityRange(required_bytes=2 * GIB)
    )
    assert plugin.node.NodeExpandVolume(request).capacity_bytes == 2 * GIB
    request.capacity_range.limit_bytes = 1
    with refused(StatusCode.OUT_OF_RANGE, "limit_bytes"):
        plugin.node.NodeExpandVolume(request)


@pytest.mark.parametrize("volume_id", ["absent", "../..", "-rf", "UPPER", "x" * 500, "é"])
def test_undoing_for_a_volume_that_is_not_there_succeeds(plugin: Plugin, volume_id: str) -> None:
    plugin.node.NodeUnpublishVolume(csi.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=TARGET))
    plugin.node.NodeUnstageVolume(csi.NodeUnstageVolumeRequest(volume_id=volume_id, staging_target_path=STAGING))
    for call in (
        lambda: plugin.node.NodeGetVolumeStats(csi.NodeGetVolumeStatsRequest(volume_id=volume_id, volume_path="x")),
        lambda: plugin.node.NodeExpandVolume(csi.NodeExpandVolumeRequest(volume_id=volume_id, volume_path="x")),
    ):
        with refused(StatusCode.NOT_FOUND):
            call()
    assert plugin.changes == 0


BAD_PATHS = ["", "relative", "./x", "/a/../b", "/..", "/nul\x00", "/new\nline", "/" + "x" * 5000]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_bad_paths(plugin: Plugin, path: str) -> None:
    context = staged(plugin)
    before = plugin.changes
    bad_stage = stage(context)
    bad_stage.staging_target_path = path
    calls: list[Call] = [
        lambda: plugin.node.NodeStageVolume(bad_stage),
        lambda: plugin.node.NodePublishVolume(publish(context, target=path)),
        lambda: plugin.node.NodeUnstageVolume(csi.NodeUnstageVolumeRequest(volume_id=VOLUME, staging_target_path=path)),
        lambda: plugin.node.NodeUnpublishVolume(csi.NodeUnpublishVolumeRequest(volume_id=VOLUME, target_path=path)),
    ]
    for call in calls:
        with refused(StatusCode.INVALID_ARGUMENT, "target_path"):
            call()
    assert plugin.changes == before


@pytest.mark.parametrize("field", ["volume_id", "publish_context", "staging_target_path", "volume_capability"])
def test_staging_needs_every_field(plugin: Plugin, field: str) -> None:
    request = stage(plugin.published())
    clear: Any = request.ClearField
    clear(field)
    with refused(StatusCode.INVALID_ARGUMENT, field):
        plugin.node.NodeStageVolume(request)
    assert plugin.attacher.changes == 0


@pytest.mark.parametrize(
    "change",
    [
        {"version": "2"},
        {"version": ""},
        {"transport": "nvme"},
        {"address": "e4095.0"},
        {"address": "e1.255"},
        {"address": "-rf"},
        {"size_bytes": "many"},
        {"writable": "perhaps"},
        {"target_mac": "zz"},
        {"volume_id": "pvc-2"},
        {"transport": "local", "device": "-"},
    ],
)
def test_a_malformed_publish_context_is_refused(plugin: Plugin, change: dict[str, str]) -> None:
    context = plugin.published() | change
    with refused(StatusCode.INVALID_ARGUMENT, ";"):
        plugin.node.NodeStageVolume(stage(context))
    assert plugin.attacher.changes == 0


def test_the_nodes_ids_are_checked_too(plugin: Plugin) -> None:
    request = stage(plugin.published())
    request.volume_id = "../etc"
    with refused(StatusCode.NOT_FOUND, "../etc"):
        plugin.node.NodeStageVolume(request)
    calls: list[Call] = [
        lambda: plugin.node.NodeGetVolumeStats(csi.NodeGetVolumeStatsRequest(volume_path="/x")),
        lambda: plugin.node.NodeGetVolumeStats(csi.NodeGetVolumeStatsRequest(volume_id="pvc-1")),
        lambda: plugin.node.NodeExpandVolume(csi.NodeExpandVolumeRequest(volume_path="/x")),
        lambda: plugin.node.NodeExpandVolume(csi.NodeExpandVolumeRequest(volume_id="pvc-1")),
        lambda: plugin.node.NodeUnstageVolume(csi.NodeUnstageVolumeRequest(staging_target_path="/x")),
        lambda: plugin.node.NodeUnpublishVolume(csi.NodeUnpublishVolumeRequest()),
    ]
    for call in calls:
        with refused(StatusCode.INVALID_ARGUMENT, "is missing"):
            call()
