"""The world of the fakes itself: what a death and a power cut take, and what they leave."""

from dataclasses import replace

import pytest
from tests.contract.beds import export_file

from aoe_core.errors import Busy
from aoe_core.fakes.lvm import RUNS_ON_S
from aoe_core.fakes.runner import Expected, ScriptedRunner
from aoe_core.fakes.world import FakeMachine, Killed, Process, Step, World
from aoe_core.host.exports import ExportFiles, ExportState
from aoe_core.model import Address
from aoe_core.units import MIB

ADDRESS = Address(10, 3)
SIZE_BYTES = 16 * MIB


@pytest.fixture
def machine() -> FakeMachine:
    machine = World().add_machine("storage1", san0="main")
    machine.lvm.add_group("vg", 256 * MIB)
    return machine


@pytest.fixture
def process(machine: FakeMachine) -> Process:
    return machine.start_process("test")


def kill_at(world: World, name: str, *, after: bool) -> None:
    """Have the process die at one boundary."""

    def strike(step: Step) -> None:
        if name in step.name and step.after is after:
            step.process.kill()

    world.on_step = strike


def restart(machine: FakeMachine, *, keep_every: int = 0) -> Process:
    """Cut the power and start anew."""
    machine.world.on_step = None
    machine.world.power_loss(machine.name, keep_every=keep_every)
    machine.world.boot(machine.name)
    return machine.start_process("next")


def create_and_clean_up(process: Process) -> None:
    try:
        process.lvm.create("vg", "v-a", SIZE_BYTES, ())
    finally:
        process.lvm.remove("vg", "v-a")


def test_a_dead_process_changes_nothing_on_its_way_out(machine: FakeMachine, process: Process) -> None:
    kill_at(machine.world, "lvcreate", after=True)
    with pytest.raises(Killed):
        create_and_clean_up(process)
    assert list(machine.lvm.groups["vg"].volumes) == ["v-a"]
    with pytest.raises(Killed):
        process.lvm.report()


@pytest.mark.parametrize(("after", "there"), [(False, []), (True, ["v-a"])])
def test_a_boundary_lies_before_or_after_its_change(
    machine: FakeMachine, process: Process, *, after: bool, there: list[str]
) -> None:
    kill_at(machine.world, "lvcreate", after=after)
    with pytest.raises(Killed):
        process.lvm.create("vg", "v-a", SIZE_BYTES, ())
    assert list(machine.lvm.groups["vg"].volumes) == there


@pytest.mark.parametrize(
    ("boundary", "seen", "durable"),
    [
        ("write temporary", "old", "old"),
        ("sync temporary", "old", "old"),
        ("rename", "new", "old"),
        ("sync directory", "new", "new"),
    ],
)
def test_a_record_is_old_or_new_and_new_for_good_only_when_synced(
    machine: FakeMachine, process: Process, boundary: str, seen: str, durable: str
) -> None:
    process.records("d").write("r", "old")
    kill_at(machine.world, boundary, after=True)
    with pytest.raises(Killed):
        process.records("d").write("r", "new")
    assert machine.record_directory("d").seen == {"r": seen}
    assert restart(machine).records("d").read_all() == {"r": durable}


def test_what_a_new_process_has_read_survives_a_power_cut(machine: FakeMachine, process: Process) -> None:
    kill_at(machine.world, "rename", after=True)
    with pytest.raises(Killed):
        process.records("d").write("r", "new")
    machine.world.on_step = None
    assert machine.start_process("reader").records("d").read_all() == {"r": "new"}
    assert restart(machine).records("d").read_all() == {"r": "new"}


@pytest.mark.parametrize(("keep_every", "kept"), [(0, b""), (1, b"unflushed")])
def test_unflushed_blocks_are_lost_unless_they_were_written_in_time(
    machine: FakeMachine, process: Process, keep_every: int, kept: bytes
) -> None:
    process.lvm.create("vg", "v-a", SIZE_BYTES, ())
    machine.write("/dev/vg/v-a", 0, b"flushed")
    machine.write("/dev/vg/v-a", MIB, b"unflushed", sync=False)
    assert machine.read("/dev/vg/v-a", MIB, 9) == b"unflushed"
    restart(machine, keep_every=keep_every)
    assert machine.read("/dev/vg/v-a", 0, 7) == b"flushed"
    assert machine.read("/dev/vg/v-a", MIB, 9).rstrip(b"\0") == kept


def test_a_boot_starts_the_live_exports_and_no_others(machine: FakeMachine, process: Process) -> None:
    process.lvm.create("vg", "v-a", SIZE_BYTES, ())
    files = ExportFiles(process.records("exports"))
    live = export_file("san0", ADDRESS, "/dev/vg/v-a", SIZE_BYTES)
    files.put(live)
    files.put(replace(live, address=Address(10, 4), state=ExportState.REVOKING))
    files.put(replace(live, address=Address(10, 5), state=ExportState.RESTING))
    restart(machine)
    assert set(machine.exports.exporters) == {ADDRESS}
    assert machine.exports.active == {ADDRESS}


def test_a_change_that_runs_on_is_done_later_and_dies_with_the_power(machine: FakeMachine, process: Process) -> None:
    def strike(step: Step) -> None:
        assert step.runs_on is not None
        step.runs_on()
        step.process.kill()

    for cut, there in ((False, ["v-a"]), (True, [])):
        machine.world.on_step = strike
        with pytest.raises(Killed):
            machine.start_process("caller").lvm.create("vg", "v-a", SIZE_BYTES, ())
        machine.world.on_step = None
        assert list(machine.lvm.groups["vg"].volumes) == []
        with pytest.raises(Busy):
            process.lvm.report()
        if cut:
            process = restart(machine)
        machine.world.clock.sleep(RUNS_ON_S)
        assert [lv.name for lv in process.lvm.report().volumes] == there
        if there:
            process.lvm.remove("vg", "v-a")


def test_a_paused_machine_keeps_its_frozen_write_beyond_deadsecs() -> None:
    world = World()
    storage, compute = (world.add_machine(name, san0="main") for name in ("storage1", "compute1"))
    storage.lvm.add_group("vg", 256 * MIB)
    process = storage.start_process("test")
    process.lvm.create("vg", "v-a", SIZE_BYTES, ())
    file = replace(export_file("san0", ADDRESS, "/dev/vg/v-a", SIZE_BYTES), macs=(compute.cards["san0"].mac,))
    ExportFiles(process.records("exports")).put(file)
    compute.ingress.flush()
    process.export_units.start(ADDRESS)
    path = f"/dev/etherd/{ADDRESS}"
    compute.open(path, "guest")
    storage.exports.stick(ADDRESS)
    compute.write(path, 0, b"f" * 4096, sync=False)
    world.clock.sleep(31)
    world.pause("compute1")
    world.clock.sleep(10_000)
    storage.exports.release(ADDRESS)
    assert storage.read("/dev/vg/v-a", 0, 1) == b"\0"
    world.resume("compute1")
    assert storage.read("/dev/vg/v-a", 0, 1) == b"f"


def test_the_scripted_runner_fails_on_what_is_not_in_its_script() -> None:
    runner = ScriptedRunner(Expected(argv=("lvs",), stdout="one\n"), Expected(argv=("vgs",), code=5))
    assert runner.run(["lvs"], timeout_s=1).stdout == "one\n"
    with pytest.raises(AssertionError):
        runner.finish()
    with pytest.raises(AssertionError):
        runner.run(["lvremove"], timeout_s=1)
    assert ScriptedRunner(Expected(argv=("vgs",), code=5)).run(["vgs"], timeout_s=1).code == 5
    with pytest.raises(AssertionError):
        ScriptedRunner().run(["lvs"], timeout_s=1)
    with pytest.raises(AssertionError):
        ScriptedRunner(Expected(argv=("lvs",))).run(["lvs"], timeout_s=1, stdin=b"more")
