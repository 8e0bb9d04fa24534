"""Two processes of one machine that attach volumes: a node server and a command beside it."""

from collections.abc import Callable

import pytest
from tests.simulated.cluster import COMPUTE_NODES, Cluster

from aoe_core.attach.attacher import Attacher
from aoe_core.attach.records import BlockUse
from aoe_core.errors import AoECsiError, Busy, Conflict
from aoe_core.fakes.world import Process, Step
from aoe_core.model import AccessMode, Attachment, PoolName, VolumeId, VolumeSpec
from aoe_core.units import MIB

VOLUME = VolumeId("vol")
NODE = COMPUTE_NODES[0]
USE = BlockUse(mode=AccessMode.SINGLE_NODE_SINGLE_WRITER)


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.engine.create_volume(VolumeSpec(volume_id=VOLUME, pool=PoolName("thick"), size_bytes=8 * MIB))
    return made


def published(cluster: Cluster) -> Attachment:
    return cluster.engine.publish(VOLUME, cluster.identity(NODE), USE.mode, read_only=False, block=True)


def at_every_boundary(cluster: Cluster, act: Callable[[], object], meanwhile: Callable[[], object]) -> list[str]:
    """Do something, and at each boundary of it something else; return what came of the latter."""
    outcomes: list[str] = []

    def interfere(_: Step) -> None:
        cluster.world.on_step = None
        try:
            meanwhile()
        except AoECsiError as error:
            outcomes.append(type(error).__name__)
        else:
            outcomes.append("done")
        cluster.world.on_step = interfere

    cluster.world.on_step = interfere
    act()
    cluster.world.on_step = None
    return outcomes


def another(cluster: Cluster) -> Attacher:
    return cluster.attacher_of(NODE, cluster.compute[NODE].start_process("command"))


def test_while_one_stages_the_other_is_refused(cluster: Cluster) -> None:
    mine, other, attachment = cluster.attachers[NODE], another(cluster), published(cluster)
    outcomes = at_every_boundary(
        cluster, lambda: mine.stage(attachment, "/a", USE), lambda: other.stage(attachment, "/b", USE)
    )
    # The first boundary is the first read of the records; from there to the end it is under the lock.
    assert set(outcomes) == {Busy.__name__}
    with pytest.raises(Conflict):
        other.stage(attachment, "/b", USE)


def test_while_one_unstages_the_other_is_refused_and_the_sweeper_leaves_it_alone(cluster: Cluster) -> None:
    mine, other, attachment = cluster.attachers[NODE], another(cluster), published(cluster)
    mine.stage(attachment, "/a", USE)
    outcomes = at_every_boundary(cluster, lambda: mine.unstage(VOLUME, "/a"), lambda: other.unstage(VOLUME, "/a"))
    assert set(outcomes) == {Busy.__name__}
    mine.stage(attachment, "/a", USE)
    at_every_boundary(cluster, lambda: mine.unstage(VOLUME, "/a"), other.tend)
    assert mine.records() == ()
    assert cluster.world.harms == []


def test_tending_what_is_as_it_should_be_keeps_nobody_out(cluster: Cluster) -> None:
    """Whoever came just then would be told to come again."""
    mine, attachment, asked_for = cluster.attachers[NODE], published(cluster), list[str]()
    mine.stage(attachment, "/a", USE)

    class Names(dict[str, Process]):
        def __setitem__(self, name: str, holder: Process) -> None:
            asked_for.append(name)
            super().__setitem__(name, holder)

    cluster.compute[NODE].held_names = Names()
    mine.tend()
    assert asked_for == []


def test_control_without_common_locks_both_are_told_that_they_have_it(cluster: Cluster) -> None:
    """The protection off for a moment: one device, two who stage it, and one record."""
    mine, other, attachment = cluster.attachers[NODE], another(cluster), published(cluster)
    names = cluster.compute[NODE].held_names

    def stage_past_the_locks(step: Step) -> None:
        if step.name.startswith("blockdev") and step.after:
            cluster.world.on_step = None
            names.clear()
            other.stage(attachment, "/b", USE)

    cluster.world.on_step = stage_past_the_locks
    mine.stage(attachment, "/a", USE)
    assert [record.staging_path for record in other.records()] == ["/a"]


def test_a_killed_process_holds_nothing(cluster: Cluster) -> None:
    process = cluster.compute[NODE].start_process("command")
    other, attachment = cluster.attacher_of(NODE, process), published(cluster)

    def die(step: Step) -> None:
        if step.name.startswith("nft pin") and step.after:
            step.process.kill()

    cluster.world.on_step = die
    with pytest.raises(BaseException, match="command on"):
        other.stage(attachment, "/a", USE)
    cluster.world.on_step = None
    cluster.attachers[NODE].stage(attachment, "/a", USE)
    cluster.attachers[NODE].unstage(VOLUME, "/a")
