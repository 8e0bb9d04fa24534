"""Bad input to the whole driver: servicers, engine and attacher together, on fakes. Whatever is refused has changed
nothing, and the next good call is served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest
from hypothesis import given, settings
from tests.simulated.cluster import COMPUTE_NODES, Cluster
from tests.unit.csi.plugin import Stubs, block, connected, create, mount, outcome
from tests.unit.csi.test_every_request import METHODS, NOT_OFFERED, answer, messages

from aoe_core.units import MIB
from aoe_csi.proto import csi_pb2 as csi

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from google.protobuf.descriptor import MethodDescriptor
    from google.protobuf.message import Message

    from aoe_core.fakes.lvm import Group

NODE = COMPUTE_NODES[0]


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def plugin(cluster: Cluster, tmp_path: Path) -> Iterator[Stubs]:
    """One socket for both ends: the controller of the storage machine, the node of the first compute machine."""
    with connected(tmp_path / "csi.sock", cluster.engine, cluster.attachers[NODE]) as channel:
        yield Stubs(channel)


def state_of(cluster: Cluster) -> tuple[object, ...]:
    """Return all that a call could have changed, on every machine."""
    storage = cluster.storage.lvm.groups["vg0"]
    lvs = {name: (lv.size_bytes, frozenset(lv.tags), lv.active) for name, lv in storage.volumes.items()}
    machines = [
        (
            name,
            tuple(one.mount.target for one in machine.mounts.table),
            frozenset(machine.mounts.paths),
            dict(machine.record_directory("staged").seen),
            {interface: frozenset(pins) for interface, pins in machine.ingress.pins.items()},
        )
        for name, machine in cluster.compute.items()
    ]
    files = dict(cluster.storage.record_directory("exports").seen)
    return (lvs, files, frozenset(cluster.storage.exports.exporters), tuple(machines))


def make(plugin: Stubs, name: str = "pvc-1", **more: Any) -> csi.Volume:
    request = create(name=name, required=12 * MIB, **{"pool": "thick", **more})
    return plugin.controller.CreateVolume(request).volume


def exported(group: Group) -> None:
    group.exported = True


def foreign(group: Group) -> None:
    group.system_id, group.foreign = "somebody-else", True


def partial(group: Group) -> None:
    group.partial = True


def read_only(group: Group) -> None:
    group.writable = False


@pytest.mark.parametrize(
    ("spoil", "word"),
    [(exported, "vgimport"), (foreign, "lvmsystemid"), (partial, "physical volume"), (read_only, "read-only")],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_volume_group_that_cannot_be_used_is_named_with_its_remedy(
    cluster: Cluster, plugin: Stubs, spoil: Callable[[Group], None], word: str
) -> None:
    make(plugin)
    group = cluster.storage.lvm.groups["vg0"]
    before_flags = (group.exported, group.foreign, group.system_id, group.partial, group.writable)
    spoil(group)
    before = state_of(cluster)
    for call in (
        lambda: make(plugin, "pvc-2"),
        lambda: plugin.controller.ControllerExpandVolume(
            csi.ControllerExpandVolumeRequest(
                volume_id="pvc-1", capacity_range=csi.CapacityRange(required_bytes=20 * MIB), volume_capability=mount()
            )
        ),
    ):
        with pytest.raises(grpc.RpcError) as refusal:
            call()
        code, words = outcome(refusal.value)
        assert code is grpc.StatusCode.UNAVAILABLE, words
        assert word in words
    assert state_of(cluster) == before
    assert plugin.controller.GetCapacity(csi.GetCapacityRequest(parameters={"pool": "thick"})).available_capacity == 0
    group.exported, group.foreign, group.system_id, group.partial, group.writable = before_flags
    make(plugin, "pvc-2")


def test_a_full_volume_group_is_exhaustion_and_leaves_nothing(cluster: Cluster, plugin: Stubs) -> None:
    capacity = plugin.controller.GetCapacity(csi.GetCapacityRequest(parameters={"pool": "thick"})).available_capacity
    request = create(name="all", required=capacity, pool="thick")
    plugin.controller.CreateVolume(request)
    before = state_of(cluster)
    with pytest.raises(grpc.RpcError) as refusal:
        make(plugin)
    assert outcome(refusal.value)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert state_of(cluster) == before


def test_a_source_of_another_pool_is_refused_by_name(cluster: Cluster, plugin: Stubs) -> None:
    make(plugin, "thin-one", pool="thin")
    before = state_of(cluster)
    request = create(name="copy", required=12 * MIB, pool="thick")
    request.volume_content_source.volume.volume_id = "thin-one"
    with pytest.raises(grpc.RpcError) as refusal:
        plugin.controller.CreateVolume(request)
    code, words = outcome(refusal.value)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "'thin'" in words
    assert state_of(cluster) == before


def test_xfs_on_too_little_is_refused_when_it_is_made(cluster: Cluster, plugin: Stubs) -> None:
    before = state_of(cluster)
    with pytest.raises(grpc.RpcError) as refusal:
        plugin.controller.CreateVolume(create(mount(fs_type="xfs"), required=64 * MIB, pool="thin"))
    assert outcome(refusal.value)[0] is grpc.StatusCode.OUT_OF_RANGE
    assert state_of(cluster) == before
    plugin.controller.CreateVolume(create(mount(fs_type="xfs"), required=300 * MIB, pool="thin"))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_whatever_is_refused_has_changed_nothing(cluster: Cluster, plugin: Stubs, method: MethodDescriptor) -> None:
    """On a volume that is there, published and staged."""
    context = plugin.controller.ControllerPublishVolume(
        csi.ControllerPublishVolumeRequest(
            volume_id=make(plugin).volume_id, node_id=str(cluster.identity(NODE)), volume_capability=block()
        )
    ).publish_context
    plugin.node.NodeStageVolume(
        csi.NodeStageVolumeRequest(
            volume_id="pvc-1", publish_context=context, staging_target_path="/staging", volume_capability=block()
        )
    )
    refused = 0

    @settings(max_examples=40)
    @given(request=messages(method.input_type))
    def ask(request: Message) -> None:
        nonlocal refused
        before = state_of(cluster)
        code = answer(plugin.channel, method, request)
        assert code not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
        if code is not grpc.StatusCode.OK:
            refused += 1
            assert state_of(cluster) == before
        cluster.check_always()

    ask()
    if method.name not in NOT_OFFERED and any(field.name.endswith("_id") for field in method.input_type.fields):
        assert refused > 0
    assert plugin.identity.Probe(csi.ProbeRequest()).ready.value
    make(plugin, "pvc-after")
