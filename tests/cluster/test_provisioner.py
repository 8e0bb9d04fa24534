"""CSI's Provisioner over a real API server: wishes written there, done by the storage role on a host of fakes."""

import dataclasses
import functools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec
import prometheus_client
import pytest
from msgspec.structs import replace
from tests.cluster.operators import operator_thread
from tests.simulated.cluster import COMPUTE_NODES, GROUP_BYTES, INTERFACE, SAN, SHELF, STORAGE_NODE
from tests.simulated.cluster import Cluster as Machines

from aoe_core.errors import Busy, CommandFailed, Conflict, InUse, NoSpace, NotFound, Unfinished
from aoe_core.fakes.world import Step
from aoe_core.host.files import DurableFiles
from aoe_core.model import (
    AccessMode,
    Address,
    FromSnapshot,
    FromVolume,
    Mac,
    NodeIdentity,
    PoolName,
    SanName,
    SnapshotId,
    Transport,
    VolumeId,
    VolumeSpec,
)
from aoe_core.resources import placement
from aoe_core.resources.conditions import find, put, put_error
from aoe_core.resources.conversion import wanted_of
from aoe_core.resources.events import Event, Events, Subject
from aoe_core.resources.fields import Condition, ObjectMeta, parse_quantity
from aoe_core.resources.kubernetes import KubernetesEvents, KubernetesLeases, KubernetesRegistrations, KubernetesStore
from aoe_core.resources.leases import LeaseStore, Liveness, LiveNodes
from aoe_core.resources.node import (
    AoENode,
    AoENodeSpec,
    AoENodeStatus,
    Finding,
    PoolSpec,
    PoolStatus,
    SanSpec,
    SanStatus,
    ShelfRange,
)
from aoe_core.resources.provisioner import ClusterProvisioner
from aoe_core.resources.shelf import AoEShelf, AoEShelfSpec
from aoe_core.resources.snapshot import AoESnapshot
from aoe_core.resources.store import Store
from aoe_core.resources.volume import AoEVolume, AoEVolumeSpec
from aoe_core.settings import Settings
from aoe_core.units import GIB, MIB
from aoe_core.volumes.engine import Engine
from aoe_lab.kubernetes.control_plane import ControlPlane
from aoe_operator import finalizer, handlers, storage_node
from aoe_operator.placing import ClusterRole
from aoe_operator.registration import Registrations
from aoe_operator.seen import Seen
from aoe_operator.shelves import ensure_claims
from aoe_operator.storage import POOL_IS_GONE, StorageRole
from aoe_operator.storage_process import StorageProcess

WRITER = AccessMode.SINGLE_NODE_SINGLE_WRITER
T = TypeVar("T")
V = VolumeId("v")
MACHINE = "1" * 32


class Paused(StorageRole):
    """A storage role that can be held up."""

    def __init__(self, machines: Machines, store: Store, events: Events, seen: Seen) -> None:
        clock = machines.world.clock
        super().__init__("storage1", machines.engine, store, events, seen=seen, now_s=lambda: int(clock.now()))
        self.paused = threading.Event()
        self.looked_at: set[str] = set()
        """Volumes and snapshots."""

    def reconcile_snapshot(self, name: str) -> float | None:
        self.looked_at.add(name)
        return super().reconcile_snapshot(name)

    def reconcile_volume(self, name: str) -> float | None:
        self.looked_at.add(name)
        if self.paused.is_set():
            raise Busy("held up by a test")
        return super().reconcile_volume(name)


class Roles:
    """The cluster role and storage1's storage role, each under a kopf of its own, as they are in a cluster."""

    def __init__(
        self, store: KubernetesStore, leases: LeaseStore, events: Events, machines: Machines, state: Path
    ) -> None:
        self.again = functools.partial(Roles, store, leases, events, machines, state)
        self.store = store
        self.stopped = threading.Event()

        def open_engine(settings: Settings) -> Engine:
            assert (settings.san, settings.pool) == (machines.settings.san, machines.settings.pool)
            return machines.engine

        seen = Seen(DurableFiles(state / "seen"))
        self._process = StorageProcess(
            "storage1",
            store,
            leases,
            events,
            seen,
            open_engine=open_engine,
            card=_card,
            prepare=lambda _: None,
            check=lambda _: (),
            boot="b",
            machine_id=MACHINE,
            stop=self.stopped,
            heartbeat_s=0.2,
        )
        self.storage = Paused(machines, store, events, seen)
        self.live = LiveNodes(leases)
        self.cluster = ClusterRole(store, self.live, events)
        self._threads = [
            operator_thread(handlers.storage(self.storage, "storage1"), self.stopped),
            operator_thread(handlers.cluster(self.cluster), self.stopped),
        ]

    def find_drifted(self) -> tuple[str, ...]:
        return self.storage.find_drifted(self._process.engine.inspect())

    def sweep(self) -> None:
        """Go after what has changed on the host unasked, as the process does now and then."""
        for name in self.find_drifted():
            # Somebody else may write just now; what is not mended is found by the next sweep.
            with suppress(Busy):
                self.storage.reconcile_volume(name)

    def __enter__(self) -> Self:
        self._process.__enter__()
        for thread in self._threads:
            thread.start()
        self._threads.append(self.live.watch(self.stopped, self.cluster.tell_liveness, every_s=0.1))
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End all threads; once is enough."""
        self.stopped.set()
        for thread in self._threads:
            thread.join()
        self._threads = []
        self._process.__exit__()


def _card(interface: str) -> SanStatus:
    return SanStatus(name="", interface=interface, macs=("52:54:00:00:01:0b",), mtu=9000, up=True)


@pytest.fixture
def machines(request: pytest.FixtureRequest) -> Machines:
    """Parametrized, so many addresses are left on the storage machine's shelf; else all."""
    return Machines(threads=True, free_addresses=getattr(request, "param", 0))


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
    store: KubernetesStore, machines: Machines, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Roles]:
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
    # What a person must mend, a test mends at once.
    monkeypatch.setattr("aoe_operator.storage._LATER_S", 3.0)
    spec = AoENodeSpec(
        pools=(PoolSpec(name="thick", volume_group="vg0"), PoolSpec(name="thin", volume_group="vg0", thin_pool="tp0")),
        sans=(SanSpec(name=SAN, interface=INTERFACE, shelves=(ShelfRange(first=SHELF, last=SHELF + 1),)),),
    )
    store.create(AoENode(metadata=ObjectMeta(name="storage1"), spec=spec))
    leases = KubernetesLeases(plane.kubeconfig, "default")
    events = KubernetesEvents(plane.kubeconfig, "aoe-csi-tests")
    with Roles(store, leases, events, machines, tmp_path) as running:
        yield running
    leases.close()
    events.close()


@pytest.fixture
def provisioner(store: KubernetesStore, roles: Roles) -> ClusterProvisioner:
    cluster = ClusterProvisioner(store, patience_s=60, nodes_age_s=0)
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
    (san,) = store.get(AoENode, "storage1").status.sans
    assert (san.name, san.shelves, san.up) == (SAN, (SHELF,), True)

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


def test_a_storage_machine_that_has_rebooted_uses_its_own_volume_on(
    provisioner: ClusterProvisioner, machines: Machines
) -> None:
    """Its id is another after the boot, and external-attacher asks again with that."""
    provisioner.create_volume(spec())
    for boot in ("00000000", "11111111"):
        here = NodeIdentity(name=STORAGE_NODE, boot=boot, macs=((SAN, (Mac("52:54:00:00:01:0b"),)),))
        attachment = provisioner.publish(V, here, WRITER, read_only=False, block=True)
        assert attachment.transport is Transport.LOCAL
        assert [one.node_id for one in machines.engine.list_grants(V)] == [str(here)]
    provisioner.unpublish(V, STORAGE_NODE)
    assert machines.engine.list_grants(V) == ()


def test_a_grant_is_taken_back_from_a_volume_whose_deletion_is_refused(
    provisioner: ClusterProvisioner, store: KubernetesStore, machines: Machines
) -> None:
    """Whoever waits for the one does not wait for the other."""
    provisioner.create_volume(spec(pool="thick"))
    node = machines.identity(COMPUTE_NODES[0])
    provisioner.publish(V, node, WRITER, read_only=False, block=True)
    machines.storage.open(f"/dev/vg0/v-{V}", "dd")
    store.delete(AoEVolume, V)
    provisioner.unpublish(V, node.name)
    said = store.get(AoEVolume, V)
    assert said.status.grants == ()
    machines.storage.close(f"/dev/vg0/v-{V}", "dd")
    assert store.await_(AoEVolume, V, lambda one: one is None or None, timeout_s=60)


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


def test_a_guest_and_pods_have_a_volume_one_after_the_other(
    provisioner: ClusterProvisioner, machines: Machines
) -> None:
    provisioner.create_volume(spec())
    first, second = (machines.identity(node) for node in COMPUTE_NODES)
    as_guest: dict[str, Any] = {"read_only": False, "block": True, "guest": "shop/data/1"}
    granted = provisioner.publish(V, first, WRITER, **as_guest)
    assert provisioner.publish(V, first, WRITER, **as_guest) == granted
    for node in (first, second):
        with pytest.raises(InUse, match=r"compute1.*AoEGuestDisk shop/data\).*delete that AoEGuestDisk first"):
            provisioner.publish(V, node, WRITER, read_only=False, block=True)
    with pytest.raises(InUse, match="shop/data"):
        provisioner.publish(V, first, WRITER, read_only=False, block=True, guest="shop/data/2")
    # Of a VolumeAttachment that is left over, or of another guest's disk: none of them takes it from the guest.
    provisioner.unpublish(V, first.name)
    provisioner.unpublish(V, None)
    provisioner.unpublish(V, first.name, guest="shop/data/2")
    assert provisioner.publish(V, first, WRITER, **as_guest) == granted
    provisioner.expand_volume(V, 128 * MIB)
    assert provisioner.device_bytes(V) == 128 * MIB
    assert provisioner.publish(V, first, WRITER, **as_guest).size_bytes == 128 * MIB
    assert provisioner.get_volume(V).guest_nodes == {first.name}

    provisioner.unpublish(V, first.name, guest="shop/data/1")
    assert machines.engine.get_volume(V).grants == ()
    provisioner.publish(V, first, WRITER, read_only=False, block=True)
    assert provisioner.get_volume(V).guest_nodes == frozenset()
    with pytest.raises(InUse, match="remove the pods that use it there first"):
        provisioner.publish(V, first, WRITER, **as_guest)
    provisioner.unpublish(V, first.name, guest="shop/data/1")
    assert [one.node for one in machines.engine.get_volume(V).grants] == [first.name]


def test_of_pods_and_a_guest_that_come_at_once_one_wins(provisioner: ClusterProvisioner, machines: Machines) -> None:
    provisioner.create_volume(spec())
    node = machines.identity(COMPUTE_NODES[0])
    together = threading.Barrier(2)

    def ask(guest: str | None) -> str | None:
        together.wait(60)
        try:
            provisioner.publish(V, node, WRITER, read_only=False, block=True, guest=guest)
        except InUse as refusal:
            return str(refusal)
        return None

    for _ in range(5):
        with ThreadPoolExecutor(2) as pool:
            refused = [one for one in pool.map(ask, (None, "shop/data/1")) if one is not None]
        assert len(refused) == 1
        assert node.name in refused[0]
        provisioner.unpublish(V, node.name)
        provisioner.unpublish(V, node.name, guest="shop/data/1")


def test_what_has_no_room_leaves_no_wish_behind(provisioner: ClusterProvisioner, store: KubernetesStore) -> None:
    with pytest.raises(NoSpace, match="storage1 takes at most"):
        provisioner.create_volume(spec(pool="thick", size_bytes=100 * GIB))
    assert provisioner.list_volumes() == ()
    await_until(lambda: store.list(AoEVolume) == (), 30)


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
        ClusterProvisioner(store, patience_s=5).create_volume(spec())
    roles.storage.paused.clear()
    assert provisioner.create_volume(spec()).size_bytes == 64 * MIB


def beside_kopf(write: Callable[[], T]) -> T:
    """Write what kopf may be writing too: a finalizer, a status."""
    for _ in range(20):
        try:
            return write()
        except Busy:
            time.sleep(0.1)
    raise AssertionError("the resource never came to rest")


def test_a_refusal_of_the_past_is_no_answer(
    store: KubernetesStore, provisioner: ClusterProvisioner, roles: Roles
) -> None:
    """A node was chosen after all; before it has taken the volume on, the call must go on waiting, and say for whom."""
    roles.storage.paused.set()
    placed = placement.placed_on(AoEVolume(metadata=ObjectMeta(name=V), spec=wanted_of(spec())), "storage1")
    past = store.create(placed).metadata.generation - 1
    said = put_error((), "Placed", NoSpace("no room"), generation=past, now_s=0)

    def refuse() -> None:
        wish = store.get(AoEVolume, V)
        store.update_status(replace(wish, status=replace(wish.status, conditions=said)))

    beside_kopf(refuse)
    with pytest.raises(Unfinished, match=r"being made on storage node storage1"):
        ClusterProvisioner(store, patience_s=2).create_volume(spec())
    roles.storage.paused.clear()
    assert provisioner.create_volume(spec()).size_bytes == 64 * MIB


def test_a_volume_gone_from_lvm_is_lost_and_never_made_anew(
    provisioner: ClusterProvisioner, store: KubernetesStore, machines: Machines, roles: Roles
) -> None:
    provisioner.create_volume(spec())
    machines.engine.delete_volume(V)
    deadline = time.monotonic() + 60
    while (lost := store.get(AoEVolume, V)).status.phase != "Lost" and time.monotonic() < deadline:
        roles.sweep()
    assert any("never made anew" in one.message for one in lost.status.conditions)
    assert roles.find_drifted() == (V,)
    assert beside_kopf(lambda: roles.storage.reconcile_volume(V)) is not None
    with pytest.raises(NotFound):
        machines.engine.get_volume(V)


def test_a_lost_volume_can_be_taken_back_and_deleted(
    provisioner: ClusterProvisioner, store: KubernetesStore, machines: Machines, roles: Roles
) -> None:
    """To revoke an export needs no LVM."""
    node = machines.identity(COMPUTE_NODES[0])
    provisioner.create_volume(spec())
    provisioner.publish(V, node, WRITER, read_only=False, block=True)
    machines.storage.lvm.groups["vg0"].volumes.pop(f"v-{V}")
    deadline = time.monotonic() + 60
    while store.get(AoEVolume, V).status.phase != "Lost" and time.monotonic() < deadline:
        roles.sweep()
    assert store.get(AoEVolume, V).status.grants
    provisioner.unpublish(V, node.name)
    assert machines.engine.list_grants(V) == ()
    provisioner.delete_volume(V)
    with pytest.raises(NotFound):
        store.get(AoEVolume, V)


def test_a_ticket_taken_back_before_it_was_granted_is_answered(
    store: KubernetesStore, provisioner: ClusterProvisioner, machines: Machines
) -> None:
    """The spec is then what it was when it was handled last; its generation is not."""
    first, second = (machines.identity(node) for node in COMPUTE_NODES)
    shared = AccessMode.MULTI_NODE_MULTI_WRITER
    provisioner.create_volume(spec())
    provisioner.publish(V, first, shared, read_only=False, block=True)
    unreachable = dataclasses.replace(second, macs=((SanName("elsewhere"), (Mac("52:54:00:00:01:98"),)),))
    with pytest.raises(Unfinished):
        ClusterProvisioner(store, patience_s=2).publish(V, unreachable, shared, read_only=False, block=True)
    seen = store.await_(AoEVolume, V, lambda one: one if one and one.status.refusals else None, timeout_s=60)
    assert seen is not None
    said = find(seen.status.conditions, "Granted")
    assert said is not None
    assert (said.status, "shares no SAN" in said.message) == ("False", True)
    provisioner.unpublish(V, second.name)
    seen = store.get(AoEVolume, V)
    assert seen.status.observed_generation == seen.metadata.generation
    assert (seen.status.refusals, [grant.node for grant in seen.status.grants]) == ((), [first.name])


def test_who_takes_back_again_waits_for_the_storage_node_again(
    store: KubernetesStore, provisioner: ClusterProvisioner, machines: Machines, roles: Roles
) -> None:
    """Ticket and grant are not to be seen any more, and the export may be there."""
    node, hurried = machines.identity(COMPUTE_NODES[0]), ClusterProvisioner(store, patience_s=1)
    provisioner.create_volume(spec())
    roles.storage.paused.set()
    with pytest.raises(Unfinished):
        hurried.publish(V, node, WRITER, read_only=False, block=True)
    for _ in range(2):
        with pytest.raises(Unfinished):
            hurried.unpublish(V, node.name)
    roles.storage.paused.clear()
    provisioner.unpublish(V, node.name)
    hurried.unpublish(V, node.name)


def test_what_was_granted_and_never_told_is_taken_back_before_it_is_over(
    provisioner: ClusterProvisioner, store: KubernetesStore, machines: Machines, roles: Roles
) -> None:
    """As when the role's process dies, or its status is refused, after an export was begun."""
    node = machines.identity(COMPUTE_NODES[0])
    provisioner.create_volume(spec())
    address = provisioner.publish(V, node, WRITER, read_only=False, block=True).address
    assert address is not None
    roles.storage.paused.set()
    made = store.get(AoEVolume, V)
    store.update_status(replace(made, status=replace(made.status, grants=(), holders="")))
    hurried = ClusterProvisioner(store, patience_s=2)
    exports = machines.storage.exports
    exports.stick(address)
    with pytest.raises(Unfinished):
        hurried.unpublish(V, node.name)
    roles.storage.paused.clear()
    told = store.await_(AoEVolume, V, lambda one: (one and one.status.holders) or None, timeout_s=60)
    assert told == f"{node.name} ({address})"
    with pytest.raises(Unfinished):
        hurried.unpublish(V, node.name)
    exports.release(address)
    provisioner.unpublish(V, node.name)
    assert machines.engine.get_volume(V).grants == ()


def test_a_status_that_tells_of_a_former_grant_is_put_right(
    provisioner: ClusterProvisioner, store: KubernetesStore, machines: Machines
) -> None:
    """As after etcd was restored: of the same node, in the same boot, and at another address."""
    node = machines.identity(COMPUTE_NODES[0])
    provisioner.create_volume(spec())
    now = provisioner.publish(V, node, WRITER, read_only=False, block=True)
    seen = store.get(AoEVolume, V)
    (grant,) = seen.status.grants
    former = replace(grant, address="e9.200")
    store.update_status(replace(seen, status=replace(seen.status, grants=(former,), observed_generation=0)))
    # Anything that has the role look at it.
    provisioner.expand_volume(V, 128 * MIB)
    assert provisioner.publish(V, node, WRITER, read_only=False, block=True).address == now.address
    assert [one.address for one in store.get(AoEVolume, V).status.grants] == [str(now.address)]


def test_another_ticket_of_the_same_node_gets_a_grant_of_its_own(
    provisioner: ClusterProvisioner, store: KubernetesStore, machines: Machines, roles: Roles
) -> None:
    """Taken back and asked for anew with other rights, while the storage node looked away."""
    node = machines.identity(COMPUTE_NODES[0])
    provisioner.create_volume(spec())
    before = provisioner.publish(V, node, WRITER, read_only=True, block=True)
    roles.storage.paused.set()
    with pytest.raises(Unfinished):
        ClusterProvisioner(store, patience_s=1).unpublish(V, node.name)
    with pytest.raises(Unfinished):
        ClusterProvisioner(store, patience_s=1).publish(V, node, WRITER, read_only=False, block=True)
    roles.storage.paused.clear()
    now = provisioner.publish(V, node, WRITER, read_only=False, block=True)
    assert (before.writable, now.writable) == (False, True)
    assert before.address != now.address
    (grant,) = machines.engine.get_volume(V).grants
    assert grant.writable


def _hangs(*_: object) -> None:
    raise Unfinished("LVM does not answer; a test")


def test_a_grant_on_its_way_out_is_no_answer_to_the_next_ticket(
    provisioner: ClusterProvisioner,
    store: KubernetesStore,
    machines: Machines,
    roles: Roles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Taken back and asked for anew with the same rights, before the storage node has seen, or ended, the first."""
    node, hurried = machines.identity(COMPUTE_NODES[0]), ClusterProvisioner(store, patience_s=2)
    provisioner.create_volume(spec())
    before = provisioner.publish(V, node, WRITER, read_only=False, block=True).address
    assert before is not None
    roles.storage.paused.set()
    with pytest.raises(Unfinished):
        hurried.unpublish(V, node.name)
    for _ in range(2):
        with pytest.raises(Unfinished):
            hurried.publish(V, node, WRITER, read_only=False, block=True)
    roles.storage.paused.clear()
    # The storage node never saw that it was unwanted for a while: it serves as before.
    assert provisioner.publish(V, node, WRITER, read_only=False, block=True).address == before
    exports = machines.storage.exports
    exports.stick(before)
    with pytest.raises(Unfinished):
        hurried.unpublish(V, node.name)
    for _ in range(2):
        with pytest.raises(Unfinished):
            hurried.publish(V, node, WRITER, read_only=False, block=True)
    # LVM is away, too: the next ticket is not answered with what could not be revoked either.
    with monkeypatch.context() as lvm:
        lvm.setattr(machines.engine, "get_volume", _hangs)
        with pytest.raises(Unfinished):
            hurried.unpublish(V, node.name)
        with pytest.raises(Unfinished, match="still being revoked"):
            ClusterProvisioner(store, patience_s=20).publish(V, node, WRITER, read_only=False, block=True)
    exports.release(before)
    assert provisioner.publish(V, node, WRITER, read_only=False, block=True).address != before
    assert [grant.half_revoked for grant in machines.engine.list_grants(V)] == [False]


def test_what_is_held_back_is_granted_to_nobody_and_says_why(
    provisioner: ClusterProvisioner, store: KubernetesStore, machines: Machines, roles: Roles, tmp_path: Path
) -> None:
    """What a restored status tells of may be revoked since."""
    node = machines.identity(COMPUTE_NODES[0])
    provisioner.create_volume(spec())
    provisioner.publish(V, node, WRITER, read_only=False, block=True)
    roles.storage.paused.set()

    def hold_back() -> None:
        seen = store.get(AoEVolume, V)
        said = put(
            seen.status.conditions, "Current", holds=False, reason="Restored", message="it is of the past",
            generation=seen.metadata.generation, now_s=1,
        )  # fmt: skip
        store.update_status(replace(seen, status=replace(seen.status, conditions=said)))

    beside_kopf(hold_back)
    with pytest.raises(Unfinished, match="it is of the past"):
        provisioner.publish(V, node, WRITER, read_only=False, block=True)
    hurried = ClusterProvisioner(store, patience_s=1)
    with pytest.raises(Unfinished, match="it is of the past"):
        hurried.unpublish(V, machines.identity(COMPUTE_NODES[1]).name)
    # Followed: until it was looked at, what the status says is of the past all the same.
    seen = store.get(AoEVolume, V)
    role = StorageRole(
        "storage1", machines.engine, store, _Deaf(), seen=Seen(DurableFiles(tmp_path / "afresh")), now_s=lambda: 1
    )
    assert role.reconcile_volume(V) is not None
    assert store.get(AoEVolume, V).status.observed_generation == 0
    with pytest.raises(Unfinished, match="is being exported"):
        hurried.publish(V, node, WRITER, read_only=False, block=True)
    roles.storage.paused.clear()
    beside_kopf(lambda: roles.storage.reconcile_volume(V))
    address = provisioner.publish(V, node, WRITER, read_only=False, block=True).address
    assert [str(address)] == [grant.address for grant in seen.status.grants]


def test_whoever_waits_for_a_person_hears_of_a_new_wish_at_once(
    store: KubernetesStore, provisioner: ClusterProvisioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kopf would wait out the time that was written down."""
    monkeypatch.setattr("aoe_operator.storage._LATER_S", 600.0)
    monkeypatch.setattr("aoe_operator.handlers._LONGEST_WAIT_S", 1000.0)
    wish = AoEVolumeSpec(size="1Ti", pool="thin", node="storage1")
    store.create(AoEVolume(metadata=ObjectMeta(name="large"), spec=wish))

    def refused(one: AoEVolume | None) -> bool | None:
        said = find(one.status.conditions, "Ready") if one else None
        return True if said and said.reason == NoSpace.__name__ else None

    assert store.await_(AoEVolume, "large", refused, timeout_s=60)
    provisioner.delete_volume(VolumeId("large"))
    assert store.find(AoEVolume, "large") is None


def test_a_wish_that_is_fulfilled_meanwhile_is_not_taken_back(
    provisioner: ClusterProvisioner, store: KubernetesStore, machines: Machines, roles: Roles
) -> None:
    """Whoever read that there is no room, and slept over it, finds a volume that may be in use."""
    roles.storage.paused.set()
    wish = AoEVolumeSpec(size="64Mi", pool="thin", node="storage1")
    seen = store.create(AoEVolume(metadata=ObjectMeta(name=V), spec=wish))
    roles.storage.paused.clear()
    provisioner.create_volume(spec())
    with pytest.raises(Busy):
        store.delete_as_seen(seen)
    assert store.get(AoEVolume, V).metadata.deletion_timestamp is None
    provisioner.delete_volume(V)
    # Gone is gone, and a later one of its name is another one.
    store.delete_as_seen(seen)
    provisioner.create_volume(spec())
    with pytest.raises(Busy):
        store.delete_as_seen(seen)
    assert machines.engine.get_volume(V).volume.size_bytes == 64 * MIB


def test_a_volume_whose_pool_nobody_names_any_more_is_not_lost(
    provisioner: ClusterProvisioner, store: KubernetesStore, machines: Machines, roles: Roles
) -> None:
    """Out of sight is not gone; until a person says so, and not while LVM still shows it."""
    provisioner.create_volume(spec())
    lvm = machines.storage.lvm
    lvm.add_group("vg1", GROUP_BYTES)
    kept = machines.engine._settings  # noqa: SLF001 - its AoENode is what it is made of, and it cannot be changed.
    (thick,) = (pool for pool in kept.pool if pool.name == "thick")
    moved = msgspec.structs.replace(kept, pool=(msgspec.structs.replace(thick, volume_group="vg1"),))
    machines.engine._settings = moved  # noqa: SLF001

    def said(type_: str, text: str) -> Callable[[AoEVolume | None], AoEVolume | None]:
        def look(one: AoEVolume | None) -> AoEVolume | None:
            condition = find(one.status.conditions, type_) if one else None
            return one if condition and text in condition.message else None

        return look

    assert beside_kopf(lambda: roles.storage.reconcile_volume(V)) is not None
    seen = store.await_(AoEVolume, V, said("Ready", "name vg0/tp0 as one again"), timeout_s=10)
    assert seen is not None
    assert seen.status.phase == "Ready"
    gone = lvm.groups.pop("vg0")
    assert beside_kopf(lambda: roles.storage.reconcile_volume(V)) is not None
    seen = store.await_(AoEVolume, V, said("Ready", "put the pool back"), timeout_s=10)
    assert seen is not None
    assert seen.status.phase == "Ready"
    store.delete(AoEVolume, V)
    seen = store.await_(AoEVolume, V, said("Deleted", f"{POOL_IS_GONE}=thin"), timeout_s=60)
    assert seen is not None

    lvm.groups["vg0"] = gone
    annotations = {"metadata": {"annotations": {POOL_IS_GONE: "thin"}}}
    store.apply(AoEVolume, V, annotations, holder="a-person")
    seen = store.await_(AoEVolume, V, said("Deleted", "name vg0/tp0 as one again"), timeout_s=60)
    assert seen is not None
    machines.engine._settings = kept  # noqa: SLF001
    assert machines.engine.get_volume(V).volume.pool == "thin"
    del lvm.groups["vg0"]
    machines.engine._settings = moved  # noqa: SLF001
    assert store.await_(AoEVolume, V, lambda one: one is None or None, timeout_s=60)


def test_a_growth_is_done_when_its_exporter_knows_of_it(
    provisioner: ClusterProvisioner, store: KubernetesStore, machines: Machines
) -> None:
    """LVM has the size before; and an exporter that could not be restarted is restarted again."""
    provisioner.create_volume(spec())
    provisioner.publish(V, machines.identity(COMPUTE_NODES[0]), WRITER, read_only=False, block=True)
    failed: list[str] = []

    def fail_once(step: Step) -> None:
        if step.name.startswith("systemctl restart") and not failed:
            failed.append(store.get(AoEVolume, V).status.size or "")
            raise CommandFailed("systemd could not restart the export; a test")

    machines.world.on_step = fail_once
    try:
        assert provisioner.expand_volume(V, 128 * MIB).size_bytes == 128 * MIB
    finally:
        machines.world.on_step = None
    assert failed == ["64Mi"]
    (held,) = machines.held(V)
    assert held.size_bytes == 128 * MIB
    said = find(store.get(AoEVolume, V).status.conditions, "Expanded")
    assert said is not None
    assert said.status == "True"


def test_a_size_that_cannot_be_had_is_asked_for_no_more(
    provisioner: ClusterProvisioner, store: KubernetesStore
) -> None:
    provisioner.create_volume(spec())
    with pytest.raises(NoSpace):
        provisioner.expand_volume(V, 100 * GIB)
    assert store.get(AoEVolume, V).spec.size == "64Mi"
    assert provisioner.expand_volume(V, 128 * MIB).size_bytes == 128 * MIB
    assert store.get(AoEVolume, V).spec.size == "128Mi"


@pytest.mark.parametrize("what", ["definition", "control"])
def test_with_a_definition_no_data_goes(
    provisioner: ClusterProvisioner, machines: Machines, clean: ControlPlane, roles: Roles, what: str
) -> None:
    """Kubernetes deletes every resource of a kind with its definition. Control: somebody deletes the volume itself."""
    provisioner.create_volume(spec())
    provisioner.create_snapshot(SnapshotId("taken"), V)
    provisioner.publish(V, machines.identity(COMPUTE_NODES[0]), WRITER, read_only=False, block=True)
    if what == "control":
        provisioner.unpublish(V, COMPUTE_NODES[0])
        clean.kubectl("delete", "aoes/taken", "aoev/v", "--timeout=60s", timeout_s=90)
        assert machines.engine.list_volumes() == ()
        return
    try:
        definitions = ("crd/aoevolumes.aoe-csi.dev", "crd/aoesnapshots.aoe-csi.dev")
        clean.kubectl("delete", *definitions, "--timeout=120s", timeout_s=150)
        (left,) = machines.engine.list_volumes()
        assert [grant.node for grant in left.grants] == [COMPUTE_NODES[0]]
        assert [one.snapshot_id for one in machines.engine.list_snapshots()] == ["taken"]
    finally:
        roles.end()
        clean.define_resources()


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


@pytest.mark.usefixtures("provisioner")
def test_a_node_that_a_person_chose_is_waited_for_and_one_that_we_chose_is_not(
    store: KubernetesStore, machines: Machines
) -> None:
    """No storage node has the name; the role places anew only what it placed."""
    wanted = AoEVolumeSpec(size="64Mi", pool="thin", node="away")
    store.create(AoEVolume(metadata=ObjectMeta(name="by-hand"), spec=wanted))
    chosen = ObjectMeta(name="chosen", annotations={placement.CHOSEN: "away"})
    store.create(AoEVolume(metadata=chosen, spec=wanted))

    def waits(volume: AoEVolume | None) -> str | None:
        said = find(volume.status.conditions, "Placed") if volume else None
        return said.message if said and said.status == "False" else None

    why = store.await_(AoEVolume, "by-hand", waits, timeout_s=60)
    assert why is not None
    assert "is to be made on storage node away" in why
    made = store.await_(AoEVolume, "chosen", lambda one: one.status.size if one else None, timeout_s=60)
    assert made == "64Mi"
    assert store.get(AoEVolume, "chosen").status.node == "storage1"
    assert store.get(AoEVolume, "by-hand").spec.node == "away"
    assert [one.volume.volume_id for one in machines.engine.list_volumes()] == ["chosen"]


@pytest.mark.parametrize("sees_all", [False, True], ids=["as-it-is", "control"])
def test_a_storage_node_ends_no_volume_of_another(
    provisioner: ClusterProvisioner, machines: Machines, roles: Roles, tmp_path: Path, sees_all: bool
) -> None:
    store = roles.store
    provisioner.create_volume(spec())
    roles.storage.paused.set()
    stop = threading.Event()
    seen = Seen(DurableFiles(tmp_path / "seen"))
    role = StorageRole("storage2", machines.engine, store, _Deaf(), seen=seen, now_s=lambda: 0)
    told = handlers.storage(role, "storage2")
    other = operator_thread(dataclasses.replace(told, selectors={}) if sees_all else told, stop)
    other.start()
    try:
        store.delete(AoEVolume, V)
        vanished = store.await_(AoEVolume, V, lambda volume: volume is None or None, timeout_s=60 if sees_all else 10)
    finally:
        stop.set()
        other.join()
    assert bool(vanished) is sees_all
    assert machines.engine.get_volume(V).volume.size_bytes == 64 * MIB
    roles.storage.paused.clear()


@pytest.mark.usefixtures("provisioner")
def test_what_is_wrong_is_told_in_events(clean: ControlPlane) -> None:
    manifest = """
apiVersion: aoe-csi.dev/v1alpha1
kind: AoEVolume
metadata: {name: too-large}
spec: {size: 1Pi, pool: thick}
"""
    clean.kubectl("apply", "-f-", stdin=manifest)
    try:
        told = await_events(clean, "too-large", "NoSpace")
        assert any(kind == "Warning" and "storage1 takes at most" in message for kind, message in told)
    finally:
        clean.kubectl("delete", "aoev/too-large", "--timeout=60s", timeout_s=90)


def test_a_restored_etcd_takes_nothing_back(
    provisioner: ClusterProvisioner, machines: Machines, clean: ControlPlane, roles: Roles
) -> None:
    """What was granted since the backup stays, what was given back since stays so, and what was made stays there."""
    store = roles.store
    first, second = (machines.identity(node) for node in COMPUTE_NODES)
    provisioner.create_volume(spec())
    provisioner.publish(V, first, WRITER, read_only=False, block=True)
    provisioner.create_volume(spec("gone"))
    backup = clean.back_up()
    provisioner.unpublish(V, first.name)
    provisioner.publish(V, second, WRITER, read_only=False, block=True)
    provisioner.create_volume(spec("since"))
    provisioner.delete_volume(VolumeId("gone"))
    clean.restore(backup)
    # Its watches would hear nothing; it ends, and kubelet would start it anew.
    assert roles.stopped.wait(60)
    roles.end()
    with roles.again():
        check_that_nothing_was_taken_back(store, machines, clean, first, second)


def check_that_nothing_was_taken_back(
    store: KubernetesStore, machines: Machines, clean: ControlPlane, first: NodeIdentity, second: NodeIdentity
) -> None:
    def told(volume: AoEVolume | None) -> str | None:
        said = find(volume.status.conditions, "Current") if volume else None
        return said.message if said else None

    why = store.await_(AoEVolume, V, told, timeout_s=120)
    assert why is not None, (store.get(AoEVolume, V), machines.engine.list_volumes())
    held = store.get(AoEVolume, V)
    assert [ticket.node for ticket in held.spec.tickets] == [first.name]
    assert [grant.node for grant in machines.engine.get_volume(V).grants] == [second.name]
    # A new wish grows out of the old state, and is not followed either.
    clean.kubectl("patch", "aoev", V, "--type=merge", '-p={"spec":{"size":"1Gi"}}')
    lost = store.await_(
        AoEVolume, "gone", lambda one: one if one and one.status.phase == "Lost" else None, timeout_s=120
    )
    assert lost is not None, (store.get(AoEVolume, "gone"), machines.engine.list_volumes())
    assert machines.engine.get_volume(V).volume.size_bytes == 64 * MIB
    assert machines.engine.get_volume(VolumeId("since")).volume.size_bytes == 64 * MIB
    await_until(lambda: "since" in orphans(store))

    clean.kubectl("annotate", "aoev", V, why.rpartition(" ")[2])
    grown = store.await_(
        AoEVolume, V, lambda one: one if one and one.status.size == "1Gi" and not told(one) else None, timeout_s=120
    )
    assert grown is not None, store.get(AoEVolume, V)
    assert [grant.node for grant in machines.engine.get_volume(V).grants] == [first.name]


def test_a_start_looks_at_nothing_that_is_as_it_should_be(
    provisioner: ClusterProvisioner, machines: Machines, clean: ControlPlane, roles: Roles
) -> None:
    """Ten thousand volumes cost one look at LVM then. What is not as told is looked at, and whatever changes later."""
    node = machines.identity(COMPUTE_NODES[0])
    for name in ("v", "drifted", "unwanted"):
        provisioner.create_volume(spec(name, pool="thin"))
        provisioner.publish(VolumeId(name), node, WRITER, read_only=False, block=True)
    provisioner.create_snapshot(SnapshotId("s"), V)
    provisioner.create_snapshot(SnapshotId("lost"), V)
    roles.end()
    machines.engine.unpublish(VolumeId("drifted"), node.name)
    machines.engine.delete_snapshot(SnapshotId("lost"))
    clean.kubectl("patch", "aoev", "unwanted", "--type=merge", '-p={"spec":{"tickets":[]}}')
    with roles.again() as again:
        await_until(
            lambda: (
                machines.engine.list_grants(VolumeId("drifted"))
                and not machines.engine.list_grants(VolumeId("unwanted"))
                and not roles.store.get(AoESnapshot, "lost").status.ready
            )
        )
        assert again.storage.looked_at == {"drifted", "unwanted", "lost"}
        provisioner.unpublish(V, node.name)
        assert machines.engine.list_grants(V) == ()
        provisioner.delete_snapshot(SnapshotId("s"))
        assert [one.snapshot_id for one in machines.engine.list_snapshots()] == []
        assert again.storage.looked_at == {"v", "drifted", "unwanted", "lost", "s"}


def test_what_nobody_wants_is_revoked_at_a_start_while_lvm_hangs(
    provisioner: ClusterProvisioner,
    machines: Machines,
    clean: ControlPlane,
    roles: Roles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = machines.identity(COMPUTE_NODES[0])
    for name in ("v", "unwanted"):
        provisioner.create_volume(spec(name))
        provisioner.publish(VolumeId(name), node, WRITER, read_only=False, block=True)
    roles.end()
    clean.kubectl("patch", "aoev", "unwanted", "--type=merge", '-p={"spec":{"tickets":[]}}')
    goes_on = threading.Event()

    def hangs(*_: object) -> None:
        goes_on.wait()
        raise Unfinished("LVM did not answer; a test")

    with monkeypatch.context() as lvm:
        lvm.setattr("aoe_operator.storage._FIRST_LOOK_LIMIT_S", 2.0)
        lvm.setattr(machines.engine, "inspect", hangs)
        lvm.setattr(machines.engine, "get_volume", hangs)
        with roles.again():
            await_until(lambda: not machines.engine.list_grants(VolumeId("unwanted")))
            assert len(machines.engine.list_grants(V)) == 1
            goes_on.set()


def test_what_is_listed_again_is_looked_at_only_if_it_changed(
    provisioner: ClusterProvisioner, store: KubernetesStore, machines: Machines, roles: Roles
) -> None:
    """As after the watch broke, and the API server knows no more what came since."""
    role, node = roles.storage, machines.identity(COMPUTE_NODES[0])
    provisioner.create_volume(spec(pool="thin"))
    provisioner.publish(V, node, WRITER, read_only=False, block=True)
    provisioner.create_snapshot(SnapshotId("s"), V)
    settled = store.get(AoEVolume, V)
    await_until(lambda: role.is_as_told(settled))
    assert role.is_taken_as_told(store.get(AoESnapshot, "s"))
    (grant,) = settled.status.grants
    elsewhere = replace(grant, address="e9.200")
    of_another_time = (
        replace(settled, spec=replace(settled.spec, tickets=())),
        replace(settled, status=replace(settled.status, grants=(elsewhere,))),
        replace(settled, status=replace(settled.status, observed_generation=0)),
        replace(settled, metadata=replace(settled.metadata, deletion_timestamp="2026-01-01T00:00:00Z")),
        replace(settled, metadata=replace(settled.metadata, finalizers=())),
        replace(settled, spec=replace(settled.spec, size="1Gi")),
    )
    assert [role.is_as_told(one) for one in of_another_time] == [False] * len(of_another_time)
    taken = store.get(AoESnapshot, "s")
    assert not role.is_taken_as_told(
        replace(taken, metadata=replace(taken.metadata, deletion_timestamp="2026-01-01T00:00:00Z"))
    )
    # What was only listed is not noted as seen: it may be older than what somebody has read since.
    assert role.is_as_told(settled)


def test_a_decommissioned_node_is_given_up_once_it_is_silent(
    provisioner: ClusterProvisioner, machines: Machines, clean: ControlPlane, roles: Roles
) -> None:
    """What was on it counts as lost and can be deleted; on the host nothing is touched, should it come back."""
    store, first = roles.store, machines.identity(COMPUTE_NODES[0])
    provisioner.create_volume(spec())
    provisioner.create_snapshot(SnapshotId("taken"), V)
    provisioner.publish(V, first, WRITER, read_only=False, block=True)
    roles.end()
    clean.kubectl("patch", "aoenode", "storage1", "--type=merge", '-p={"spec":{"decommissioned":true}}')
    role = ClusterRole(store, frozenset, _Deaf())
    for liveness, why in (
        (Liveness(), "nothing is known yet"),
        (Liveness(leased=frozenset({"storage1"}), is_long=True), "nothing is known yet"),
        (Liveness(live=frozenset({"storage1"})), "nothing is given up while it lives"),
    ):
        role.tell_liveness(liveness)
        assert role.decommission("storage1") is not None
        said = find(store.get(AoENode, "storage1").status.conditions, "Decommissioned")
        assert said is not None
        assert (said.status, why in said.message) == ("False", True)
        assert provisioner.get_volume(V).grants

    role.tell_liveness(Liveness(dead=frozenset({"storage1"})))
    stop = threading.Event()
    kopf = operator_thread(handlers.cluster(role), stop)
    kopf.start()
    try:
        lost = store.await_(AoEVolume, V, lambda one: one if one and one.status.phase == "Lost" else None, timeout_s=60)
        assert lost is not None
        with pytest.raises(NoSpace, match="decommissioned"):
            provisioner.publish(V, first, WRITER, read_only=False, block=True)
        provisioner.unpublish(V, first.name)
        provisioner.delete_snapshot(SnapshotId("taken"))
        provisioner.delete_volume(V)
        told = store.await_(AoENode, "storage1", _nothing_left, timeout_s=60)
        assert told is not None
    finally:
        stop.set()
        kopf.join()
    assert machines.engine.get_volume(V).grants


def _nothing_left(node: AoENode | None) -> str | None:
    said = find(node.status.conditions, "Decommissioned") if node else None
    return said.message if said and said.message.startswith("nothing of it is left") else None


def test_a_ticket_follows_its_node_to_another_card(
    provisioner: ClusterProvisioner, machines: Machines, clean: ControlPlane, roles: Roles
) -> None:
    """As kubelet registers the node anew after it came back with another card, its volumes still attached."""
    first = machines.identity(COMPUTE_NODES[0])
    provisioner.create_volume(spec())
    before = provisioner.publish(V, first, WRITER, read_only=False, block=True)
    now = dataclasses.replace(first, macs=((SAN, (Mac("52:54:00:00:01:99"),)),))
    # The second is as kubelet writes it before any driver has registered.
    drivers = {first.name: [{"name": "aoe-csi.dev", "nodeID": str(now), "topologyKeys": []}], "new": None}
    registered = [
        {"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {"name": name}, "spec": {"drivers": those}}
        for name, those in drivers.items()
    ]
    clean.kubectl("create", "-f-", stdin="\n---\n".join(map(json.dumps, registered)))
    registrations = KubernetesRegistrations(clean.kubeconfig, "default")
    try:
        Registrations(roles.store, registrations, lambda: int(time.time())).look()
    finally:
        registrations.close()
        clean.kubectl("delete", "csinode", *drivers)

    def served(volume: AoEVolume | None) -> str | None:
        grants = volume.status.grants if volume else ()
        return grants[0].address if grants and grants[0].node_id == str(now) else None

    assert roles.store.await_(AoEVolume, V, served, timeout_s=60) == str(before.address)
    (grant,) = machines.engine.get_volume(V).grants
    assert grant.node_id == str(now)


@pytest.mark.parametrize("machines", [20], indirect=True)
def test_a_further_shelf_is_claimed_before_addresses_run_short(roles: Roles) -> None:
    """And the process ends, to start anew with it."""
    assert roles.stopped.wait(60)
    assert {claim.metadata.name for claim in roles.store.list(AoEShelf)} == {f"{SAN}-{SHELF}", f"{SAN}-{SHELF + 1}"}


def test_a_new_machine_of_an_old_name_claims_shelves_of_its_own(store: KubernetesStore) -> None:
    """It knows nothing of addresses that rest on the old ones."""
    shelves = (ShelfRange(first=SHELF, last=SHELF + 1),)
    spec = AoENodeSpec(
        pools=(PoolSpec(name="thick", volume_group="vg0"),),
        sans=(SanSpec(name=SAN, interface=INTERFACE, shelves=shelves),),
    )
    node = store.create(AoENode(metadata=ObjectMeta(name="storage1"), spec=spec))

    def claimed(machine_id: str) -> list[int]:
        return [claim.spec.shelf for claim in ensure_claims(store, node, machine_id)]

    assert claimed("1" * 32) == claimed("1" * 32) == [SHELF]
    assert claimed("2" * 32) == [SHELF + 1]
    with pytest.raises(NoSpace, match=rf"\({SAN}-{SHELF}, {SAN}-{SHELF + 1}\), once every compute node has rebooted"):
        claimed("3" * 32)
    # Given to it by hand.
    given = AoEShelfSpec(san=SAN, shelf=SHELF + 9, node="storage1")
    store.create(AoEShelf(metadata=ObjectMeta(name=f"{SAN}-{SHELF + 9}"), spec=given))
    assert claimed("3" * 32) == [SHELF + 9]


def test_a_shelf_of_one_san_is_claimed_on_no_other(store: KubernetesStore) -> None:
    """A compute node on both knows a device by its address alone."""
    shelves = (ShelfRange(first=100, last=101),)
    sans = tuple(SanSpec(name=name, interface=f"eth{name}", shelves=shelves) for name in ("1", "2"))
    node = store.create(AoENode(metadata=ObjectMeta(name="storage1"), spec=AoENodeSpec(sans=sans)))
    claims = ensure_claims(store, node, MACHINE)
    assert [(one.spec.san, one.spec.shelf) for one in claims] == [("1", 100), ("2", 101)]
    other = store.create(AoENode(metadata=ObjectMeta(name="storage2"), spec=AoENodeSpec(sans=sans[1:])))
    with pytest.raises(NoSpace, match="may claim on SAN 2 is claimed; widen its ranges"):
        ensure_claims(store, other, MACHINE)


def test_a_copy_under_way_is_told_of(
    provisioner: ClusterProvisioner, store: KubernetesStore, machines: Machines
) -> None:
    provisioner.create_volume(spec(pool="thick"))
    go_on = threading.Event()

    def hold_up(step: Step) -> None:
        if step.name.startswith("copy"):
            go_on.wait(60)

    machines.world.on_step = hold_up
    copy = dataclasses.replace(spec("copy", pool="thick"), source=FromVolume(volume_id=V))
    copying = threading.Thread(target=lambda: provisioner.create_volume(copy))
    copying.start()
    try:
        told = store.await_(AoENode, "storage1", lambda node: node.status.work or None if node else None, timeout_s=30)
    finally:
        go_on.set()
        copying.join()
        machines.world.on_step = None
    assert told is not None
    assert [one.work for one in told] == ["copying v to volume copy"]
    assert provisioner.create_volume(copy).size_bytes == 64 * MIB
    assert store.await_(AoENode, "storage1", lambda node: (node and not node.status.work) or None, timeout_s=30)


def orphans(store: KubernetesStore) -> set[str]:
    return {one.name for node in store.list(AoENode) for one in node.status.orphans}


def await_events(plane: ControlPlane, name: str, reason: str) -> list[tuple[str, str]]:
    deadline = time.monotonic() + 60
    while True:
        fields = f"involvedObject.name={name},reason={reason}"
        listed = json.loads(plane.kubectl("get", "events", "-ojson", f"--field-selector={fields}").stdout)["items"]
        if listed or time.monotonic() > deadline:
            return [(one["type"], one["message"]) for one in listed]
        time.sleep(0.5)


def offer_room(store: KubernetesStore, name: str, **conditions: str) -> None:
    """Make a storage node that says it has 5 GiB in pool thick. `conditions`: type → status."""
    spec = AoENodeSpec(
        pools=(PoolSpec(name="thick", volume_group="vg0"),),
        sans=(SanSpec(name=SAN, interface=INTERFACE, shelves=(ShelfRange(first=SHELF, last=SHELF),)),),
    )
    node = store.create(AoENode(metadata=ObjectMeta(name=name), spec=spec))
    said = tuple(
        Condition(type=type_, status=status, reason="Done", last_transition_time="2026-01-01T00:00:00Z")
        for type_, status in conditions.items()
    )
    offer = PoolStatus(name="thick", available="5Gi", largest_volume="5Gi")
    store.update_status(msgspec.structs.replace(node, status=AoENodeStatus(pools=(offer,), conditions=said)))


def await_until(holds: Callable[[], object], timeout_s: float = 60) -> None:
    """Fail when something does not come to hold."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


class _Deaf:
    """Events that go nowhere."""

    def post(self, subject: Subject, event: Event) -> None:
        pass


def test_a_pool_that_was_named_a_moment_ago_offers_nothing_yet(store: KubernetesStore, machines: Machines) -> None:
    """The process ends for it, and may report once more before it does."""
    pools = (PoolSpec(name="thick", volume_group="vg0"), PoolSpec(name="new", volume_group="vg1"))
    sans = (SanSpec(name=SAN, interface=INTERFACE, shelves=(ShelfRange(first=SHELF, last=SHELF),)),)
    node = store.create(AoENode(metadata=ObjectMeta(name="storage1"), spec=AoENodeSpec(pools=pools, sans=sans)))
    written = storage_node.report(
        store, _Deaf(), node, contents=lambda: storage_node.contents_of(machines.engine.inspect()), work=(),
        claims=(), boot="b", card=_card, findings=(), unclaimed=(), now_s=int(time.time()),
    )  # fmt: skip
    ready = find(written.status.conditions, "Ready")
    assert ready is not None
    assert ready.status == "True"
    offered = {pool.name: parse_quantity(pool.available) for pool in written.status.pools}
    assert offered["thick"] > GIB
    assert offered["new"] == 0


def test_a_host_that_lacks_something_gets_no_volume_and_says_why(store: KubernetesStore, machines: Machines) -> None:
    """What preflight finds is shown where a person looks, and a warning alone keeps nothing away."""
    pools = (PoolSpec(name="thick", volume_group="vg0"),)
    sans = (SanSpec(name=SAN, interface=INTERFACE, shelves=(ShelfRange(first=SHELF, last=SHELF),)),)
    node = store.create(AoENode(metadata=ObjectMeta(name="storage1"), spec=AoENodeSpec(pools=pools, sans=sans)))
    mtu = Finding(check="mtu", severity="warning", fact="eth1 has 1500", remedy="ip link set eth1 mtu 9000")
    no_exporter = Finding(check="vblade", severity="error", fact="is not there", remedy="apt install vblade")

    def reported(node: AoENode, *findings: Finding) -> AoENode:
        return storage_node.report(
            store, _Deaf(), node, contents=lambda: storage_node.contents_of(machines.engine.inspect()), work=(),
            claims=(), boot="b", card=_card, findings=findings, unclaimed=(), now_s=int(time.time()),
        )  # fmt: skip

    fit = reported(node, mtu)
    assert placement.is_ready(fit)
    assert fit.status.findings == (mtu,)
    assert "aoe_csi_storage_ready 1.0" in told()
    unfit = reported(fit, mtu, no_exporter)
    assert not placement.is_ready(unfit)
    assert store.get(AoENode, "storage1").status.findings == (mtu, no_exporter)
    ready = find(unfit.status.conditions, "Ready")
    assert ready is not None
    assert ready.message == "vblade: is not there; apt install vblade"
    for figure in ("storage_ready 0.0", 'findings{severity="error"} 1.0', 'findings{severity="warning"} 1.0'):
        assert f"aoe_csi_{figure}" in told()
    assert placement.is_ready(reported(unfit))


def told() -> str:
    """Return what Prometheus would be told."""
    return prometheus_client.generate_latest().decode()


def test_two_cluster_roles_place_each_volume_once(
    provisioner: ClusterProvisioner, store: KubernetesStore, machines: Machines, roles: Roles
) -> None:
    """As while a Deployment is rolled out, or the node of the former pod is cut off: nobody elects one of them."""
    second = ClusterRole(store, roles.live, _Deaf())
    stop = threading.Event()
    thread = operator_thread(handlers.cluster(second), stop)
    thread.start()
    names = [f"v{number}" for number in range(20)]
    try:
        for name in names:
            # Not by the provisioner, which names the node itself.
            store.create(AoEVolume(metadata=ObjectMeta(name=name), spec=AoEVolumeSpec(size="16Mi", pool="thick")))
        deadline = time.monotonic() + 120
        while any(store.get(AoEVolume, name).status.phase != "Ready" for name in names):
            assert time.monotonic() < deadline, [(one.metadata.name, one.status) for one in store.list(AoEVolume)]
            time.sleep(0.2)
        there = sorted(one.volume.volume_id for one in machines.engine.list_volumes())
        assert there == sorted(names)
        for name in names:
            provisioner.delete_volume(VolumeId(name))
        assert machines.engine.list_volumes() == ()
    finally:
        stop.set()
        thread.join()


def test_a_crowd_that_waits_for_room_shares_one_look(store: KubernetesStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """And who is placed next knows of those before."""
    monkeypatch.setattr("aoe_operator.placing._LOOK_S", 60.0)
    offer_room(store, "storage1", Ready="True")
    names = [f"v{number}" for number in range(8)]
    for name in names:
        store.create(AoEVolume(metadata=ObjectMeta(name=name), spec=AoEVolumeSpec(size="1Gi", pool="thick")))
    asked: list[type] = []
    look = store.list

    def counted(kind: type[Any]) -> tuple[Any, ...]:
        asked.append(kind)
        return look(kind)

    monkeypatch.setattr(store, "list", counted)
    role = ClusterRole(store, lambda: frozenset({"storage1"}), _Deaf())
    looked_at_again = [role.place(name) is not None for name in names]
    assert looked_at_again == [False] * 5 + [True] * 3
    assert sorted(asked, key=str) == [AoENode, AoEVolume]
    placed = [store.get(AoEVolume, name).spec.node for name in names]
    assert placed == ["storage1"] * 5 + [None] * 3


def test_a_wish_names_its_node_where_there_is_a_choice(store: KubernetesStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """And who asks at once is spread over the nodes; what there is no choice for is left to the cluster role."""
    for name, live in (("storage1", "True"), ("storage2", "True"), ("silent", "False")):
        offer_room(store, name, Ready="True", Live=live)
    together, create = threading.Barrier(8), store.create

    def create_together(resource: Any) -> Any:
        together.wait(60)
        return create(resource)

    monkeypatch.setattr(store, "create", create_together)
    cluster = ClusterProvisioner(store, patience_s=2)
    names = [f"v{number}" for number in range(7)]
    sizes = {**dict.fromkeys(names, GIB), "large": 6 * GIB}

    def ask(name: str) -> None:
        wish = VolumeSpec(volume_id=VolumeId(name), pool=PoolName("thick"), size_bytes=sizes[name])
        with pytest.raises(Unfinished):
            cluster.create_volume(wish)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, sizes))
    placed = [store.get(AoEVolume, name) for name in names]
    assert sorted(Counter(one.spec.node for one in placed).items()) == [("storage1", 4), ("storage2", 3)]
    assert all(one.metadata.annotations[placement.CHOSEN] == one.spec.node for one in placed)
    assert store.get(AoEVolume, "large").spec.node is None


def test_a_new_volume_is_not_refused_by_an_old_look(
    provisioner: ClusterProvisioner, store: KubernetesStore, roles: Roles
) -> None:
    """What was taken when somebody looked may be free by now."""
    provisioner.create_volume(spec())
    roles.end()
    role = ClusterRole(store, lambda: frozenset({"storage1"}), _Deaf())
    for name in ("first", "second"):
        store.create(AoEVolume(metadata=ObjectMeta(name=name), spec=AoEVolumeSpec(size="1Gi", pool="thick")))
    node = store.get(AoENode, "storage1")
    (thick,) = (one for one in node.status.pools if one.name == "thick")
    full = msgspec.structs.replace(thick, available="0", largest_volume="0")
    emptied = store.update_status(
        msgspec.structs.replace(node, status=msgspec.structs.replace(node.status, pools=(full,)))
    )
    assert role.place("first") is not None
    assert store.get(AoEVolume, "first").spec.node is None
    store.update_status(msgspec.structs.replace(emptied, status=node.status))
    role._looked_s -= 2  # noqa: SLF001 - so old, and
    role._look_took_s = 60  # noqa: SLF001 - good for long, as a look at very many volumes is.
    assert role.place("first") is not None
    assert store.get(AoEVolume, "first").spec.node is None
    assert role.place("second") is None
    assert store.get(AoEVolume, "second").spec.node == "storage1"


def test_what_a_node_had_not_taken_on_when_it_fell_silent_is_placed_anew(
    provisioner: ClusterProvisioner, store: KubernetesStore, roles: Roles
) -> None:
    """Whatever was placed on it, and not what a person wanted there."""
    provisioner.create_volume(spec())
    roles.end()
    one = store.get(AoENode, "storage1")
    both, first, second = frozenset({"storage1", "storage2"}), frozenset({"storage1"}), frozenset({"storage2"})
    role = ClusterRole(store, lambda: both, _Deaf())
    role.tell_liveness(Liveness(live=both))
    for name, node in (("ours", None), ("by-hand", "storage1")):
        wanted = AoEVolumeSpec(size="64Mi", pool="thin", node=node)
        store.create(AoEVolume(metadata=ObjectMeta(name=name), spec=wanted))
    assert role.place("ours") is role.place("by-hand") is None
    assert store.get(AoEVolume, "ours").spec.node == "storage1"
    role.tell_liveness(Liveness(live=second, dead=first))
    # Nobody else offers the pool; whoever comes later is found by the next look.
    assert store.get(AoEVolume, "ours").spec.node == "storage1"
    other = store.create(AoENode(metadata=ObjectMeta(name="storage2"), spec=one.spec))
    store.update_status(AoENode(metadata=other.metadata, spec=other.spec, status=one.status))
    role._rescue_s = role._looked_s = float("-inf")  # noqa: SLF001 - the time has come.
    role.tell_liveness(Liveness(live=second, dead=first))
    assert store.get(AoEVolume, "ours").spec.node == "storage2"
    assert store.get(AoEVolume, "by-hand").spec.node == "storage1"
    assert store.get(AoEVolume, V).spec.node == "storage1"


def test_what_a_node_had_not_taken_on_when_it_was_deleted_and_the_node_fell_silent_goes(store: KubernetesStore) -> None:
    """Its finalizer comes before the word that it is taken on. Control: of what was taken on the disks may hold
    something."""
    first = frozenset({"storage1"})
    role = ClusterRole(store, lambda: first, _Deaf())
    role.tell_liveness(Liveness(live=first, leased=first))
    for name, taken_on in (("never", None), ("taken", "storage1")):
        wanted = AoEVolumeSpec(size="64Mi", pool="thin", node="storage1")
        made = finalizer.put(store, store.create(AoEVolume(metadata=ObjectMeta(name=name), spec=wanted)))
        store.update_status(replace(made, status=replace(made.status, node=taken_on)))
        store.delete(AoEVolume, name)
    role.tell_liveness(Liveness(live=first, leased=first))
    # Silent, and not yet for long enough.
    role.tell_liveness(Liveness(leased=first))
    assert store.find(AoEVolume, "never") is not None
    role.tell_liveness(Liveness(dead=first, leased=first))
    assert store.find(AoEVolume, "never") is None
    assert store.find(AoEVolume, "taken") is not None


def test_what_was_refused_for_what_lvm_has_ends_without_that(
    provisioner: ClusterProvisioner, store: KubernetesStore, machines: Machines
) -> None:
    """As when what a lost resource left is adopted with one word wrong, or a claim asks for its name."""
    machines.engine.create_volume(spec(pool="thick"))
    wrong = AoEVolumeSpec(size="64Mi", pool="thin", node="storage1")
    store.create(AoEVolume(metadata=ObjectMeta(name=V), spec=wrong))
    refused = store.await_(
        AoEVolume, V, lambda one: find(one.status.conditions, "Ready") if one is not None else None, timeout_s=60
    )
    assert refused is not None
    assert refused.reason == "Conflict"
    store.delete(AoEVolume, V)
    assert store.await_(AoEVolume, V, lambda one: one is None or None, timeout_s=60)
    assert machines.engine.get_volume(V).volume.pool == "thick"
    with pytest.raises(Conflict, match="its pool is thick"):
        provisioner.create_volume(spec())
    assert store.await_(AoEVolume, V, lambda one: one is None or None, timeout_s=60)
    assert machines.engine.get_volume(V).volume.pool == "thick"
    # Adopted as it is, it is that one's, and goes with it.
    provisioner.create_volume(spec(pool="thick"))
    provisioner.delete_volume(V)
    assert machines.engine.list_volumes() == ()

    provisioner.create_volume(spec("other"))
    provisioner.create_volume(spec())
    machines.engine.create_snapshot(SnapshotId("s"), V)
    with pytest.raises(Conflict, match="exists of volume v"):
        provisioner.create_snapshot(SnapshotId("s"), VolumeId("other"))
    assert store.await_(AoESnapshot, "s", lambda one: one is None or None, timeout_s=60)
    assert machines.engine.get_snapshot(SnapshotId("s")).source == V


def test_whoever_asks_for_capacity_again_and_again_is_answered_by_one_look(
    provisioner: ClusterProvisioner, store: KubernetesStore, roles: Roles, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else the storage node would write its status again and again while it is written here.
    roles.end()
    lately = ClusterProvisioner(store, patience_s=60)
    begun = lately.capacity(None, None)
    assert begun.available_bytes == provisioner.capacity(None, None).available_bytes > 0

    def refuse(kind: type[Any]) -> tuple[Any, ...]:
        raise AssertionError(f"{kind} was listed")

    with monkeypatch.context() as patched:
        patched.setattr(store, "list", refuse)
        assert lately.capacity(PoolName("none"), None).available_bytes == 0
        assert lately.capacity(None, None) == begun
    lately._nodes_lately._looked_s -= 5  # noqa: SLF001 - the look grows old.
    node = store.get(AoENode, "storage1")
    store.update_status(msgspec.structs.replace(node, status=msgspec.structs.replace(node.status, pools=())))
    assert lately.capacity(None, None).available_bytes == 0


def test_a_silent_storage_node_says_so_and_offers_nothing(
    provisioner: ClusterProvisioner, store: KubernetesStore
) -> None:
    """One that nobody else speaks of: it has no Lease, so the role that runs leaves it alone."""
    one = store.get(AoENode, "storage1")
    other = store.create(AoENode(metadata=ObjectMeta(name="storage2"), spec=one.spec))
    store.update_status(AoENode(metadata=other.metadata, spec=other.spec, status=one.status))
    both = provisioner.capacity(None, None).available_bytes
    role = ClusterRole(store, frozenset, _Deaf())
    role.tell_liveness(Liveness(dead=frozenset({"storage2"})))
    silent = find(store.get(AoENode, "storage2").status.conditions, "Live")
    assert silent is not None
    assert (silent.status, "does not renew its Lease" in silent.message) == ("False", True)
    assert 0 < provisioner.capacity(None, None).available_bytes < both
    role.tell_liveness(Liveness(live=frozenset({"storage2"})))
    assert provisioner.capacity(None, None).available_bytes == both
