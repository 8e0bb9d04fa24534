"""CSI's Provisioner over a real API server: wishes written there, done by the storage role on a host of fakes."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Self

import kopf
import pytest
from tests.simulated.cluster import COMPUTE_NODES, INTERFACE, SAN, SHELF
from tests.simulated.cluster import Cluster as Machines

from aoe_core.errors import Busy, Conflict, InUse, NoSpace, NotFound, Unfinished
from aoe_core.model import (
    AccessMode,
    Address,
    FromSnapshot,
    PoolName,
    SanName,
    SnapshotId,
    Transport,
    VolumeId,
    VolumeSpec,
)
from aoe_core.resources.fields import GROUP, ObjectMeta
from aoe_core.resources.kubernetes import KubernetesLeases, KubernetesStore
from aoe_core.resources.leases import LeaseStore, LiveNodes
from aoe_core.resources.node import AoENode, AoENodeSpec, PoolSpec, SanSpec, SanStatus, ShelfRange
from aoe_core.resources.provisioner import ClusterProvisioner
from aoe_core.resources.snapshot import AoESnapshot
from aoe_core.resources.store import Store
from aoe_core.resources.volume import AoEVolume
from aoe_core.settings import Settings
from aoe_core.units import GIB, MIB
from aoe_core.volumes.engine import Engine
from aoe_lab.kubernetes.control_plane import ControlPlane
from aoe_operator import handlers
from aoe_operator.placing import ClusterRole
from aoe_operator.storage import FINALIZER, StorageRole
from aoe_operator.storage_process import StorageProcess

WRITER = AccessMode.SINGLE_NODE_SINGLE_WRITER
V = VolumeId("v")


class Paused(StorageRole):
    """A storage role that can be held up."""

    def __init__(self, machines: Machines, store: Store) -> None:
        super().__init__("storage1", machines.engine, store, lambda: int(machines.world.clock.now()))
        self.paused = threading.Event()

    def reconcile_volume(self, name: str) -> float | None:
        if self.paused.is_set():
            raise Busy("held up by a test")
        return super().reconcile_volume(name)


class Roles:
    """The cluster role and storage1's storage role, each under a kopf of its own, as they are in a cluster."""

    def __init__(self, store: Store, leases: LeaseStore, machines: Machines) -> None:
        self._stop = threading.Event()

        def open_engine(settings: Settings) -> Engine:
            assert (settings.san, settings.pool) == (machines.settings.san, machines.settings.pool)
            return machines.engine

        self._process = StorageProcess(
            "storage1", store, leases, open_engine, _card, boot="b", stop=self._stop, heartbeat_s=0.2
        )
        self.storage = Paused(machines, store)
        self.live = LiveNodes(leases)
        cluster = ClusterRole(store, self.live)
        self._threads = [
            self._operator("storage", FINALIZER, handlers.storage(self.storage, "storage1")),
            self._operator("cluster", f"{GROUP}/cluster", handlers.cluster(cluster)),
        ]

    def _operator(self, role: str, finalizer: str, registry: kopf.OperatorRegistry) -> threading.Thread:
        async def run() -> None:
            await handlers.operator(role, finalizer, registry, stop=self._stop, liveness=None)
            # aiohttp closes TLS connections a moment after it was told to, if the loop still runs.
            await asyncio.sleep(0.5)

        return threading.Thread(target=lambda: asyncio.run(run()), name=role)

    def sweep(self) -> None:
        """Go after what has changed on the host unasked, as the process does now and then."""
        for name in self.storage.find_drifted():
            # Somebody else may write just now; what is not mended is found by the next sweep.
            with suppress(Busy):
                self.storage.reconcile_volume(name)

    def __enter__(self) -> Self:
        self._process.__enter__()
        for thread in self._threads:
            thread.start()
        self._threads.append(self.live.watch(self._stop, every_s=0.1))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._process.__exit__()


def _card(interface: str) -> SanStatus:
    return SanStatus(name="", interface=interface, macs=("52:54:00:00:01:0b",), mtu=9000, up=True)


@pytest.fixture
def machines() -> Machines:
    return Machines(threads=True)


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
def roles(
    store: KubernetesStore, machines: Machines, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Roles]:
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
    spec = AoENodeSpec(
        pools=(PoolSpec(name="thick", volume_group="vg0"), PoolSpec(name="thin", volume_group="vg0", thin_pool="tp0")),
        sans=(SanSpec(name=SAN, interface=INTERFACE, shelves=(ShelfRange(first=SHELF, last=SHELF),)),),
    )
    store.create(AoENode(metadata=ObjectMeta(name="storage1"), spec=spec))
    leases = KubernetesLeases(plane.kubeconfig, "default")
    with Roles(store, leases, machines) as running:
        yield running
    leases.close()


@pytest.fixture
def provisioner(store: KubernetesStore, roles: Roles) -> ClusterProvisioner:
    cluster = ClusterProvisioner(store, patience_s=60)
    deadline = time.monotonic() + 60
    while cluster.capacity(None, None).available_bytes == 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    while not roles.live() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert cluster.capacity(PoolName("thin"), (SAN,)).maximum_volume_bytes > GIB
    assert cluster.capacity(None, (SanName("elsewhere"),)).available_bytes == 0
    assert (cluster.pools(), cluster.sans()) == (("thick", "thin"), (SAN,))
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
    roles.storage.paused.set()
    with pytest.raises(Unfinished, match=r"being made on storage node storage1.*kubectl describe"):
        ClusterProvisioner(store, patience_s=0.5).create_volume(spec())
    roles.storage.paused.clear()
    assert provisioner.create_volume(spec()).size_bytes == 64 * MIB


def looked_again(roles: Roles) -> float | None:
    """Reconcile beside kopf, which may be writing the same status."""
    for _ in range(20):
        try:
            return roles.storage.reconcile_volume(V)
        except Busy:
            time.sleep(0.1)
    raise AssertionError("the resource never came to rest")


def test_a_volume_gone_from_lvm_is_lost_and_never_made_anew(
    provisioner: ClusterProvisioner, store: KubernetesStore, machines: Machines, roles: Roles
) -> None:
    provisioner.create_volume(spec())
    machines.engine.delete_volume(V)
    deadline = time.monotonic() + 60
    while (lost := store.get(AoEVolume, V)).status.phase != "Lost" and time.monotonic() < deadline:
        roles.sweep()
    assert any("never made anew" in one.message for one in lost.status.conditions)
    assert roles.storage.find_drifted() == (V,)
    assert looked_again(roles) is not None
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
