"""CSI's Provisioner over a real API server: wishes written there, done by the storage role on a host of fakes."""

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Self

import pytest
from tests.simulated.cluster import COMPUTE_NODES, INTERFACE, SAN, SHELF
from tests.simulated.cluster import Cluster as Machines

from aoe_core.errors import AoECsiError, Conflict, InUse, NoSpace, NotFound, Unfinished
from aoe_core.model import (
    AccessMode,
    Address,
    FromSnapshot,
    PoolName,
    SnapshotId,
    Transport,
    VolumeId,
    VolumeSpec,
)
from aoe_core.resources import placement
from aoe_core.resources.fields import ObjectMeta
from aoe_core.resources.kubernetes import KubernetesStore
from aoe_core.resources.node import AoENode, AoENodeSpec, PoolSpec, SanSpec, SanStatus, ShelfRange
from aoe_core.resources.provisioner import ClusterProvisioner
from aoe_core.resources.snapshot import AoESnapshot
from aoe_core.resources.store import Store
from aoe_core.resources.volume import AoEVolume
from aoe_core.units import GIB, MIB
from aoe_lab.kubernetes.control_plane import ControlPlane
from aoe_operator import storage_node
from aoe_operator.storage import StorageRole

WRITER = AccessMode.SINGLE_NODE_SINGLE_WRITER
V = VolumeId("v")


class Roles:
    """The cluster role and storage1's storage role, asked again and again: what kopf does by events."""

    def __init__(self, store: Store, machines: Machines) -> None:
        self._store = store
        self._machines = machines
        self._stop = threading.Event()
        self.paused = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="roles")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _go_on(self) -> None:
        while not self._stop.wait(0.02):
            if not self.paused.is_set():
                self._round()

    def _round(self) -> None:
        now_s = int(self._machines.world.clock.now())
        engine = self._machines.engine
        role = StorageRole("storage1", engine, self._store, lambda: now_s)
        with suppress(AoECsiError):
            node = self._store.get(AoENode, "storage1")
            storage_node.report(self._store, node, engine, boot="b", card=_card, now_s=now_s)
            self._place()
            for volume in self._store.list(AoEVolume):
                role.reconcile_volume(volume.metadata.name)
            for snapshot in self._store.list(AoESnapshot):
                role.reconcile_snapshot(snapshot.metadata.name)

    def _place(self) -> None:
        volumes, nodes = self._store.list(AoEVolume), self._store.list(AoENode)
        for volume in volumes:
            placement.place(self._store, volume, nodes, volumes, live={"storage1"}, now_s=0)


def _card(interface: str) -> SanStatus:
    return SanStatus(name="", interface=interface, macs=("52:54:00:00:01:0b",), mtu=9000, up=True)


@pytest.fixture
def machines() -> Machines:
    return Machines()


@pytest.fixture
def store(clean: ControlPlane) -> Iterator[KubernetesStore]:
    with KubernetesStore(clean.kubeconfig) as opened:
        yield opened
        left = [("aoev", one.metadata.name) for one in opened.list(AoEVolume)]
        left += [("aoes", one.metadata.name) for one in opened.list(AoESnapshot)]
    for kind, name in left:
        # Its storage role has ended; the finalizer would hold it for ever.
        clean.kubectl("patch", kind, name, "--type=merge", '-p={"metadata":{"finalizers":[]}}')


@pytest.fixture
def roles(store: KubernetesStore, machines: Machines) -> Iterator[Roles]:
    spec = AoENodeSpec(
        pools=(PoolSpec(name="thick", volume_group="vg0"), PoolSpec(name="thin", volume_group="vg0", thin_pool="tp0")),
        sans=(SanSpec(name=SAN, interface=INTERFACE, shelves=(ShelfRange(first=SHELF, last=SHELF),)),),
    )
    node = store.create(AoENode(metadata=ObjectMeta(name="storage1"), spec=spec))
    claims = storage_node.ensure_claims(store, node)
    assert storage_node.settings_of(node, claims).san == machines.settings.san
    with Roles(store, machines) as running:
        yield running


@pytest.fixture
def provisioner(store: KubernetesStore, roles: Roles) -> ClusterProvisioner:  # noqa: ARG001 - they answer it.
    cluster = ClusterProvisioner(store, patience_s=60)
    deadline = time.monotonic() + 60
    while cluster.capacity(None, None).available_bytes == 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    return cluster


def spec(volume_id: str = V, pool: str = "thin", size_bytes: int = 64 * MIB) -> VolumeSpec:
    return VolumeSpec(volume_id=VolumeId(volume_id), pool=PoolName(pool), size_bytes=size_bytes)


def test_a_volume_s_whole_life(provisioner: ClusterProvisioner, store: KubernetesStore, machines: Machines) -> None:
    made = provisioner.create_volume(spec())
    assert (made.size_bytes, made.pool) == (64 * MIB, "thin")
    assert provisioner.create_volume(spec()) == made
    assert [one.volume for one in provisioner.list_volumes()] == [made]
    assert machines.engine.get_volume(V).volume.size_bytes == 64 * MIB

    node = machines.identity(COMPUTE_NODES[0])
    attachment = provisioner.publish(V, node, WRITER, read_only=False, block=True)
    assert attachment.transport is Transport.AOE
    assert attachment == machines.engine.publish(V, node, WRITER, read_only=False, block=True)
    assert provisioner.publish(V, node, WRITER, read_only=False, block=True) == attachment
    (held,) = provisioner.get_volume(V).grants
    assert (held.node, held.node_id, held.address) == (node.name, str(node), attachment.address)
    assert store.get(AoEVolume, V).status.holders == f"{node.name} ({attachment.address})"

    assert provisioner.expand_volume(V, 128 * MIB).size_bytes == 128 * MIB
    assert machines.engine.get_volume(V).volume.size_bytes == 128 * MIB

    with pytest.raises(InUse, match=r"compute1.*unpublish it there first"):
        provisioner.delete_volume(V)
    provisioner.unpublish(V, node.name)
    assert provisioner.get_volume(V).grants == ()
    assert machines.engine.get_volume(V).grants == ()
    provisioner.delete_volume(V)
    with pytest.raises(NotFound):
        machines.engine.get_volume(V)
    with pytest.raises(NotFound):
        provisioner.get_volume(V)
    provisioner.delete_volume(V)
    provisioner.unpublish(V, node.name)


def test_a_second_writer_is_refused_by_name(provisioner: ClusterProvisioner, machines: Machines) -> None:
    provisioner.create_volume(spec())
    first, second = (machines.identity(node) for node in COMPUTE_NODES)
    provisioner.publish(V, first, WRITER, read_only=False, block=True)
    with pytest.raises(InUse, match=first.name):
        provisioner.publish(V, second, WRITER, read_only=False, block=True)
    with pytest.raises(Conflict, match="already as"):
        provisioner.publish(V, first, AccessMode.SINGLE_NODE_MULTI_WRITER, read_only=False, block=True)
    provisioner.unpublish(V, first.name)
    moved = provisioner.publish(V, second, WRITER, read_only=False, block=True)
    assert moved.address != Address(SHELF, 0)


def test_what_has_no_room_leaves_no_wish_behind(provisioner: ClusterProvisioner, store: KubernetesStore) -> None:
    with pytest.raises(NoSpace, match="storage1 takes at most"):
        provisioner.create_volume(spec(pool="thick", size_bytes=100 * GIB))
    assert provisioner.list_volumes() == ()
    deadline = time.monotonic() + 30
    while store.list(AoEVolume) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert store.list(AoEVolume) == ()


def test_the_same_name_for_something_else_is_a_conflict(provisioner: ClusterProvisioner) -> None:
    provisioner.create_volume(spec())
    with pytest.raises(Conflict, match="another pool"):
        provisioner.create_volume(spec(pool="thick"))
    with pytest.raises(Conflict, match="another size"):
        provisioner.create_volume(spec(size_bytes=GIB))


def test_snapshots_are_taken_restored_and_removed(provisioner: ClusterProvisioner, machines: Machines) -> None:
    assert provisioner.has_snapshots()
    provisioner.create_volume(spec())
    taken = provisioner.create_snapshot(SnapshotId("s"), V)
    assert provisioner.create_snapshot(SnapshotId("s"), V) == taken
    assert (taken.source, taken.size_bytes) == (V, 64 * MIB)
    provisioner.create_volume(spec("other"))
    with pytest.raises(Conflict, match="of volume v"):
        provisioner.create_snapshot(SnapshotId("s"), VolumeId("other"))
    restored = provisioner.create_volume(
        VolumeSpec(
            volume_id=VolumeId("restored"),
            pool=PoolName("thin"),
            size_bytes=96 * MIB,
            source=FromSnapshot(snapshot_id=SnapshotId("s")),
        )
    )
    assert restored.size_bytes == 96 * MIB
    assert provisioner.list_snapshots() == (taken,)
    provisioner.delete_snapshot(SnapshotId("s"))
    assert provisioner.list_snapshots() == ()
    with pytest.raises(NotFound):
        machines.engine.get_snapshot(SnapshotId("s"))


def test_patience_ends_with_a_sentence_and_the_next_call_goes_on(
    store: KubernetesStore, provisioner: ClusterProvisioner, roles: Roles
) -> None:
    roles.paused.set()
    with pytest.raises(Unfinished, match=r"being made on no storage node yet.*kubectl describe"):
        ClusterProvisioner(store, patience_s=0.5).create_volume(spec())
    roles.paused.clear()
    assert provisioner.create_volume(spec()).size_bytes == 64 * MIB


def test_a_volume_gone_from_lvm_is_lost_and_never_made_anew(
    provisioner: ClusterProvisioner, store: KubernetesStore, machines: Machines, roles: Roles
) -> None:
    provisioner.create_volume(spec())
    roles.paused.set()
    machines.engine.delete_volume(V)
    roles.paused.clear()
    lost = store.await_(AoEVolume, V, lambda one: one if one and one.status.phase == "Lost" else None, timeout_s=60)
    assert lost is not None
    assert any("never made anew" in one.message for one in lost.status.conditions)
    time.sleep(0.5)
    with pytest.raises(NotFound):
        machines.engine.get_volume(V)


@pytest.mark.usefixtures("provisioner")
def test_a_person_makes_and_removes_a_volume_with_kubectl(clean: ControlPlane, machines: Machines) -> None:
    manifest = """
apiVersion: aoe-csi.dev/v1alpha1
kind: AoEVolume
metadata: {name: by-hand}
spec: {size: 32Mi, pool: thick}
"""
    clean.kubectl("apply", "-f-", stdin=manifest)
    clean.kubectl("wait", "--for=jsonpath={.status.phase}=Ready", "--timeout=60s", "aoev/by-hand", timeout_s=90)
    assert machines.engine.get_volume(VolumeId("by-hand")).volume.size_bytes == 32 * MIB
    clean.kubectl("delete", "aoev/by-hand", "--timeout=60s", timeout_s=90)
    with pytest.raises(NotFound):
        machines.engine.get_volume(VolumeId("by-hand"))
