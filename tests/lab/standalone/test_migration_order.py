"""The calls of a live migration, in KubeVirt's order, over a raw block volume of several writers, under I/O.

The target's pod comes while the source writes, the guest's writes change sides, then the source's pod goes. And called
off: the target's pod goes, and the source never notices.
"""

from collections.abc import Callable

import pytest

from aoe_lab.evidence import Evidence
from aoe_lab.standalone import THICK, AccessMode, Standalone, Workload, capability
from aoe_lab.verifying import Writer

SOURCE, TARGET = "compute1", "compute2"
BLOCKS = 256


@pytest.fixture
def volume(workload: Callable[..., Workload]) -> Workload:
    """A volume that two machines may write to."""
    shared = capability(block=True, mode=AccessMode.MULTI_NODE_MULTI_WRITER)
    made = workload(pool=THICK, size_bytes=16 << 20, capability=shared)
    made.create()
    return made


def generation(cluster: Standalone, name: str, path: str) -> str:
    """Return what tells a machine's device of a path from every other it had or has."""
    machine = cluster.compute[name].machine
    number = f"$((0x$(stat -c %t {path}))):$((0x$(stat -c %T {path})))"
    return machine.run(f"cat /sys/dev/block/{number}/diskseq").stdout


def test_writes_change_sides_and_none_is_lost(cluster: Standalone, volume: Workload, evidence: Evidence) -> None:
    source, target = (cluster.compute[name].machine for name in (SOURCE, TARGET))
    here = volume.attach(SOURCE)
    with Writer(source, here, salt="before", blocks=BLOCKS) as before:
        before.await_acknowledged(20)
        there = volume.attach(TARGET)
        before.await_acknowledged(before.acknowledged() + 20)
    assert before.check(target, there)["wrong"] == 0
    same = generation(cluster, TARGET, there)
    with Writer(target, there, salt="after", blocks=BLOCKS) as after:
        after.await_acknowledged(20)
        volume.detach(SOURCE)
        after.await_acknowledged(after.acknowledged() + 20)
    assert after.check()["wrong"] == 0
    assert generation(cluster, TARGET, there) == same
    volume.detach(TARGET)
    evidence(
        f"a migration's calls under I/O: {before.acknowledged() + 1} writes acknowledged on the source, read on the"
        f" target; {after.acknowledged() + 1} there while the source let go; same device throughout, none lost"
    )


def test_a_migration_that_is_called_off_leaves_the_source_alone(
    cluster: Standalone, volume: Workload, evidence: Evidence
) -> None:
    here = volume.attach(SOURCE)
    same = generation(cluster, SOURCE, here)
    with Writer(cluster.compute[SOURCE].machine, here, salt="stays", blocks=BLOCKS) as writer:
        writer.await_acknowledged(20)
        volume.attach(TARGET)
        writer.await_acknowledged(writer.acknowledged() + 20)
        volume.detach(TARGET)
        writer.await_acknowledged(writer.acknowledged() + 20)
    assert writer.check()["wrong"] == 0
    assert generation(cluster, SOURCE, here) == same
    volume.detach(SOURCE)
    evidence(f"a migration called off under I/O: {writer.acknowledged() + 1} writes of the source, none lost")
