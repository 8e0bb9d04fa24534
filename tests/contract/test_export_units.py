"""ExportUnits: a unit serves what its file says, and never beside another one."""

from dataclasses import replace

import pytest
from tests.contract.beds import Bed, export_file

from aoe_core.errors import CommandFailed, Unfinished
from aoe_core.host.exports import ExportState
from aoe_core.model import Address
from aoe_core.units import MIB

ADDRESS = Address(100, 3)
NEIGHBOUR = Address(100, 30)
SIZE_BYTES = 16 * MIB


@pytest.fixture
def device(bed: Bed) -> str:
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, ())
    return f"/dev/{bed.vg}/v-a"


def put(bed: Bed, device: str, address: Address = ADDRESS, state: ExportState = ExportState.LIVE) -> None:
    bed.export_files.put(replace(export_file(bed.interface, address, device, SIZE_BYTES), state=state))


def is_gone(bed: Bed, address: Address = ADDRESS) -> bool:
    unit = bed.export_units.states().get(address)
    return unit is None or not (unit.active or unit.serving or unit.locked)


def test_without_exports_there_are_no_units(bed: Bed) -> None:
    assert bed.export_units.states() == {}


def test_a_started_export_serves_holds_its_lock_and_its_device(bed: Bed, device: str) -> None:
    put(bed, device)
    bed.export_units.start(ADDRESS)
    unit = bed.export_units.states()[ADDRESS]
    assert (unit.active, unit.serving, unit.locked) == (True, True, True)
    bed.settle()
    assert bed.blocks.open_count(device) == 1


def test_starting_what_runs_changes_nothing(bed: Bed, device: str) -> None:
    put(bed, device)
    bed.export_units.start(ADDRESS)
    bed.export_units.start(ADDRESS)
    assert bed.export_units.states()[ADDRESS].serving
    bed.settle()
    assert bed.blocks.open_count(device) == 1


def test_a_stopped_export_lets_go_of_everything(bed: Bed, device: str) -> None:
    put(bed, device)
    bed.export_units.start(ADDRESS)
    bed.export_units.stop(ADDRESS)
    assert is_gone(bed)
    bed.settle()
    assert bed.blocks.open_count(device) == 0


def test_stopping_what_does_not_run_is_no_error(bed: Bed, device: str) -> None:
    bed.export_units.stop(ADDRESS)
    put(bed, device)
    bed.export_units.stop(ADDRESS)
    assert is_gone(bed)


def test_stopping_one_leaves_its_neighbour_alone(bed: Bed, device: str) -> None:
    bed.lvm.create(bed.vg, "v-b", SIZE_BYTES, ())
    put(bed, device)
    put(bed, f"/dev/{bed.vg}/v-b", NEIGHBOUR)
    bed.export_units.start(ADDRESS)
    bed.export_units.start(NEIGHBOUR)
    bed.export_units.stop(ADDRESS)
    assert is_gone(bed)
    assert bed.export_units.states()[NEIGHBOUR].serving


def test_restarting_serves_again_whether_it_ran_or_not(bed: Bed, device: str) -> None:
    put(bed, device)
    bed.export_units.restart(ADDRESS)
    bed.export_units.restart(ADDRESS)
    assert bed.export_units.states()[ADDRESS].serving
    bed.settle()
    assert bed.blocks.open_count(device) == 1


def test_an_export_without_a_file_does_not_start(bed: Bed) -> None:
    with pytest.raises((CommandFailed, Unfinished)):
        bed.export_units.start(ADDRESS)
    bed.export_units.stop(ADDRESS)
    assert is_gone(bed)


@pytest.mark.parametrize("state", [ExportState.REVOKING, ExportState.RESTING])
def test_a_file_that_is_not_live_is_never_served(bed: Bed, device: str, state: ExportState) -> None:
    put(bed, device, state=state)
    with pytest.raises((CommandFailed, Unfinished)):
        bed.export_units.start(ADDRESS)
    unit = bed.export_units.states().get(ADDRESS)
    assert unit is None or not (unit.serving or unit.locked)
    bed.settle()
    assert bed.blocks.open_count(device) == 0


def test_a_file_that_admits_nobody_is_never_served(bed: Bed, device: str) -> None:
    # To vblade an empty mask means everybody.
    bed.export_files.put(replace(export_file(bed.interface, ADDRESS, device, SIZE_BYTES), macs=()))
    with pytest.raises((CommandFailed, Unfinished)):
        bed.export_units.start(ADDRESS)
    bed.settle()
    assert bed.blocks.open_count(device) == 0


def test_a_running_export_whose_file_was_revoked_does_not_come_back_from_a_restart(bed: Bed, device: str) -> None:
    put(bed, device)
    bed.export_units.start(ADDRESS)
    put(bed, device, state=ExportState.REVOKING)
    with pytest.raises((CommandFailed, Unfinished)):
        bed.export_units.restart(ADDRESS)
    bed.settle()
    assert bed.blocks.open_count(device) == 0


def test_no_exporter_starts_while_a_former_one_holds_the_lock(bed: Bed, device: str) -> None:
    put(bed, device)
    with bed.lock_held(ADDRESS):
        assert bed.export_units.states()[ADDRESS].locked
        with pytest.raises(Unfinished):
            bed.export_units.start(ADDRESS)
        unit = bed.export_units.states()[ADDRESS]
        assert (unit.serving, unit.locked) == (False, True)
        bed.settle()
        assert bed.blocks.open_count(device) == 0
    bed.eventually("the export after its lock was free", lambda: bed.export_units.states()[ADDRESS].serving)


def test_stopping_shows_a_lock_that_somebody_still_holds(bed: Bed, device: str) -> None:
    put(bed, device)
    with bed.lock_held(ADDRESS):
        bed.export_units.stop(ADDRESS)
        unit = bed.export_units.states()[ADDRESS]
        assert (unit.active, unit.locked) == (False, True)
    assert is_gone(bed)


def test_an_export_whose_device_comes_late_starts_by_itself(bed: Bed, device: str) -> None:
    put(bed, device)
    bed.lvm.activate(bed.vg, "v-a", on=False)
    with pytest.raises(Unfinished):
        bed.export_units.start(ADDRESS)
    bed.lvm.activate(bed.vg, "v-a", on=True)
    bed.eventually("the export after its device", lambda: bed.export_units.states()[ADDRESS].serving)
