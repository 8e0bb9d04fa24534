"""Every operation killed at every boundary between two host steps, then asked again.

A boundary is one passing of the fakes' hook, before or after a change. At each one the process is killed, or the power
of its machine is cut, or that of the machine at the other end. Fresh processes then carry on; the operation is asked
again until it is done, the rest of the volume's life runs its course, and in the end nothing is left anywhere.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import pytest
from _pytest.mark.structures import ParameterSet
from tests.simulated.cluster import COMPUTE_NODES, STORAGE_NODE, Cluster

from aoe_core.attach.records import BlockUse, FilesystemUse, Use
from aoe_core.errors import AoECsiError
from aoe_core.fakes.blocks import signature_of
from aoe_core.fakes.world import Killed, Step
from aoe_core.host.contracts import Usage
from aoe_core.model import (
    AccessMode,
    FromSnapshot,
    FromVolume,
    NodeName,
    PoolName,
    SnapshotId,
    Source,
    VolumeId,
    VolumeSpec,
)
from aoe_core.units import MIB
from aoe_lab.evidence import Evidence

VOLUME = VolumeId("vol")
COPY = VolumeId("copy")
RESTORED = VolumeId("restored")
SNAPSHOT = SnapshotId("snap")
NODE = COMPUTE_NODES[0]
SIZE_BYTES = 12 * MIB
GROWN_BYTES = 20 * MIB
MODE = AccessMode.SINGLE_NODE_SINGLE_WRITER


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One call of an orchestrator."""

    name: str
    act: Callable[[Cluster], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """A volume's life: operations in their order."""

    name: str
    operations: tuple[Operation, ...]
    undo_from: int
    """From here on the operations undo whatever the ones before may have done."""
    same_host: bool = False
    """Whether the storage machine uses the volume itself."""
    kind: type[Cluster] = Cluster

    def begin(self) -> Cluster:
        """Return a cluster on which nothing has happened yet."""
        return self.kind(same_host=self.same_host)


def spec(
    pool: str, volume_id: VolumeId = VOLUME, size_bytes: int = SIZE_BYTES, source: Source | None = None
) -> VolumeSpec:
    return VolumeSpec(volume_id=volume_id, pool=PoolName(pool), size_bytes=size_bytes, source=source)


def kill(step: Step) -> None:
    """The process dies."""
    step.process.kill()


def kill_while_the_command_runs_on(step: Step) -> None:
    """The process dies and what it had asked LVM for happens later all the same."""
    if step.runs_on is not None:
        step.runs_on()
    step.process.kill()


def cut_power(step: Step) -> None:
    """The machine loses its power, and all that was not flushed."""
    step.process.world.power_loss(step.process.machine.name)


def cut_power_half_written(step: Step) -> None:
    """The machine loses its power and half of what was not flushed."""
    step.process.world.power_loss(step.process.machine.name, keep_every=2)


def cut_power_of_the_others(step: Step) -> None:
    """Every other machine loses its power while the process lives on."""
    world = step.process.world
    for name in world.machines:
        if name != step.process.machine.name:
            world.power_loss(name)


def reset_the_others(step: Step) -> None:
    """Every other machine loses its power and is up again at once."""
    cut_power_of_the_others(step)
    for machine in step.process.world.machines.values():
        if not machine.powered:
            machine.boot()


DEATHS = (
    kill,
    kill_while_the_command_runs_on,
    cut_power,
    cut_power_half_written,
    cut_power_of_the_others,
    reset_the_others,
)


def boundaries(life: Life, position: int) -> int:
    """Return how many boundaries an operation has when nothing goes wrong."""
    cluster = life.begin()
    for operation in life.operations[:position]:
        operation.act(cluster)
    passed = 0

    def count(_: Step) -> None:
        nonlocal passed
        passed += 1

    cluster.world.on_step = count
    life.operations[position].act(cluster)
    cluster.world.on_step = None
    return passed


def live_until_death(life: Life, position: int, boundary: int, death: Callable[[Step], None]) -> Cluster:
    """Live until a boundary of an operation, and die there."""
    cluster = life.begin()
    for operation in life.operations[:position]:
        operation.act(cluster)
    passed = 0

    def die(step: Step) -> None:
        nonlocal passed
        passed += 1
        if passed == boundary:
            death(step)

    cluster.world.on_step = die
    # Whoever lives on while the others lose their power may finish, or say what is missing.
    with suppress(Killed, AoECsiError):
        life.operations[position].act(cluster)
    cluster.world.on_step = None
    assert passed >= boundary
    return cluster


def die_and_carry_on(life: Life, position: int, boundary: int, death: Callable[[Step], None], *, abandon: bool) -> None:
    """Live a whole life with one death in it; afterwards go on, or `abandon` it and undo all there may be."""
    cluster = live_until_death(life, position, boundary, death)
    cluster.check_always()
    cluster.restart()
    cluster.check_always()
    for operation in life.operations[life.undo_from if abandon else position :]:
        cluster.persist(operation.name, partial(operation.act, cluster))
        cluster.check_always()
    cluster.check_nothing_left()


def check_blank(cluster: Cluster) -> None:
    """Prove that a new volume looks like one that nothing was ever written to."""
    device = cluster.storage.lvm.groups["vg0"].volumes[f"v-{VOLUME}"].device
    assert signature_of(device) == ""


def storage_life(pool: str) -> Life:
    """Return a life that only the storage machine has a part in."""

    def create(one: Cluster) -> None:
        one.engine.create_volume(spec(pool))
        check_blank(one)

    def clone(one: Cluster) -> None:
        one.engine.create_volume(spec(pool, COPY, GROWN_BYTES, FromVolume(volume_id=VOLUME)))
        device = one.storage.lvm.groups["vg0"].volumes[f"v-{COPY}"].device
        assert not device.has_data(SIZE_BYTES, GROWN_BYTES - SIZE_BYTES), "old data lies beyond the copy"

    def publish(one: Cluster) -> None:
        one.engine.publish(VOLUME, one.identity(NODE), MODE, read_only=False, block=True)

    def restore(one: Cluster) -> None:
        one.engine.create_volume(spec(pool, RESTORED, 2 * GROWN_BYTES, FromSnapshot(snapshot_id=SNAPSHOT)))

    do = [
        Operation(name="create", act=create),
        Operation(name="clone", act=clone),
        Operation(name="publish", act=publish),
        Operation(name="expand", act=lambda one: one.engine.expand_volume(VOLUME, GROWN_BYTES)),
    ]
    if pool == "thin":
        do += [
            Operation(name="snapshot", act=lambda one: one.engine.create_snapshot(SNAPSHOT, VOLUME)),
            Operation(name="restore", act=restore),
        ]
    undo = [
        Operation(name="delete the restored", act=lambda one: one.engine.delete_volume(RESTORED)),
        Operation(name="delete the snapshot", act=lambda one: one.engine.delete_snapshot(SNAPSHOT)),
        Operation(name="unpublish", act=lambda one: one.engine.unpublish(VOLUME, NODE)),
        Operation(name="delete the clone", act=lambda one: one.engine.delete_volume(COPY)),
        Operation(name="delete", act=lambda one: one.engine.delete_volume(VOLUME)),
    ]
    return Life(name=f"{pool} volume", operations=(*do, *undo), undo_from=len(do))


def node_life(pool: str, use: Use, node: NodeName = NODE) -> Life:
    """Return a life in which a volume is used on a node, writes and all."""
    size_bytes = 320 * MIB if isinstance(use, FilesystemUse) and use.filesystem == "xfs" else SIZE_BYTES
    staging, target = "/staging/vol", "/pods/vol"

    def create(one: Cluster) -> None:
        one.engine.create_volume(spec(pool, size_bytes=size_bytes))
        check_blank(one)

    def publish(one: Cluster) -> None:
        one.attachments[VOLUME, node] = one.engine.publish(
            VOLUME, one.identity(node), MODE, read_only=False, block=isinstance(use, BlockUse)
        )

    def stage(one: Cluster) -> None:
        one.attachers[node].stage(one.attachments[VOLUME, node], staging, use)

    def publish_on_node(one: Cluster) -> None:
        if not one.is_staged(VOLUME, node):
            stage(one)  # As kubelet does when the node has rebooted since.
        one.attachers[node].publish(VOLUME, staging, target, use, read_only=False)

    def write(one: Cluster) -> None:
        publish_on_node(one)
        if isinstance(use, BlockUse):
            one.compute[node].write(target, MIB, b"written")
        else:
            one.compute[node].write_file(target, "file", b"written")

    def expand(one: Cluster) -> None:
        one.engine.expand_volume(VOLUME, size_bytes + 8 * MIB)

    def expand_on_node(one: Cluster) -> None:
        publish_on_node(one)
        assert one.attachers[node].expand(VOLUME, target, size_bytes + 8 * MIB) == size_bytes + 8 * MIB

    def check(one: Cluster) -> None:
        publish_on_node(one)
        machine = one.compute[node]
        if isinstance(use, BlockUse):
            assert machine.read(target, MIB, 7) == b"written"
        else:
            assert machine.read_files(target) == {"file": b"written"}
            usage = one.attachers[node].usage(VOLUME, target)
            assert isinstance(usage, Usage)
            assert usage.total_bytes > size_bytes

    return Life(
        name=f"{pool} {'block' if isinstance(use, BlockUse) else use.filesystem} volume in use"
        + (" on its own machine" if node == STORAGE_NODE else ""),
        same_host=node == STORAGE_NODE,
        operations=(
            Operation(name="create", act=create),
            Operation(name="publish", act=publish),
            Operation(name="stage", act=stage),
            Operation(name="publish on the node", act=publish_on_node),
            Operation(name="write", act=write),
            Operation(name="expand", act=expand),
            Operation(name="expand on the node", act=expand_on_node),
            Operation(name="check", act=check),
            Operation(name="unpublish on the node", act=lambda one: one.attachers[node].unpublish(VOLUME, target)),
            Operation(name="unstage", act=lambda one: one.attachers[node].unstage(VOLUME, staging)),
            Operation(name="unpublish", act=lambda one: one.engine.unpublish(VOLUME, node)),
            Operation(name="sweep", act=lambda one: one.attachers[node].tend()),
            Operation(name="delete", act=lambda one: one.engine.delete_volume(VOLUME)),
        ),
        undo_from=8,
    )


LIVES = (
    storage_life("thick"),
    storage_life("thin"),
    node_life("thick", BlockUse(mode=MODE)),
    node_life("thick", FilesystemUse(mode=MODE, filesystem="ext4")),
    node_life("thin", FilesystemUse(mode=MODE, filesystem="xfs")),
    node_life("thick", BlockUse(mode=MODE), STORAGE_NODE),
    node_life("thin", FilesystemUse(mode=MODE, filesystem="ext4"), STORAGE_NODE),
)


def cases() -> Iterator[ParameterSet]:
    for life in LIVES:
        for position, operation in enumerate(life.operations):
            if boundaries(life, position):
                yield pytest.param(life, position, id=f"{life.name}-{operation.name}".replace(" ", "-"))


def sweep(
    life: Life, position: int, evidence: Evidence, *, abandoned: str, deaths: Sequence[Callable[[Step], None]] = DEATHS
) -> None:
    """Die at every boundary of an operation, and carry on both ways. `abandoned`: the word for not asking again."""
    total = boundaries(life, position)
    for boundary in range(1, total + 1):
        for death in deaths:
            for abandon in (False, True):
                try:
                    die_and_carry_on(life, position, boundary, death, abandon=abandon)
                except BaseException as error:
                    way = abandoned if abandon else "asked again"
                    error.add_note(
                        f"{death.__name__} at boundary {boundary} of {total} of {life.operations[position].name}, {way}"
                    )
                    raise
    evidence(f"{total} boundaries, {total * len(deaths) * 2} lives with one death each, nothing lost, nothing left")


@pytest.mark.parametrize(("life", "position"), list(cases()))
def test_an_operation_killed_anywhere_converges(life: Life, position: int, evidence: Evidence) -> None:
    sweep(life, position, evidence, abandoned="undone")


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.name.replace(" ", "-"))
def test_control_without_carrying_on_most_deaths_leave_something(life: Life, evidence: Evidence) -> None:
    """The protection off: nobody starts again, recovers or asks again."""
    left = total = 0
    for position, operation in enumerate(life.operations):
        if operation.name in ("create", "delete"):  # Before the first and after the last nothing is to be left.
            for boundary in range(1, boundaries(life, position) + 1):
                cluster = live_until_death(life, position, boundary, kill)
                total += 1
                try:
                    cluster.check_nothing_left()
                except AssertionError:
                    left += 1
    assert left > 0
    evidence(f"control: {left} of {total} deaths in create or delete left something where nobody carried on")
