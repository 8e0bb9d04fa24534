"""A host that has lost its memory of addresses is somebody else to the shelves they are on."""

from pathlib import Path

import pytest

from aoe_core.host.files import DurableFiles
from aoe_core.resources.fields import ObjectMeta
from aoe_core.resources.shelf import AoEShelf, AoEShelfSpec
from aoe_operator.claimant import claimant

MACHINE = "1" * 32


@pytest.fixture
def files(tmp_path: Path) -> DurableFiles:
    return DurableFiles(tmp_path / "claimant")


@pytest.fixture
def nothing(tmp_path: Path) -> DurableFiles:
    return DurableFiles(tmp_path / "no-exports")


@pytest.fixture
def something(tmp_path: Path) -> DurableFiles:
    exports = DurableFiles(tmp_path / "exports")
    exports.write("10.3", "STATE=resting")
    return exports


def claim(machine_id: str) -> AoEShelf:
    spec = AoEShelfSpec(san="main", shelf=10, node="storage1", machine_id=machine_id)
    return AoEShelf(metadata=ObjectMeta(name="main-10"), spec=spec)


def test_a_new_host_claims_as_itself_and_goes_on_so(files: DurableFiles, nothing: DurableFiles) -> None:
    assert claimant(files, MACHINE, lambda: [claim("2" * 32)], nothing) == MACHINE
    # It died before its first grant.
    assert claimant(files, MACHINE, lambda: [claim(MACHINE)], nothing) == MACHINE


def test_a_host_that_had_claims_before_names_were_written_keeps_them(
    files: DurableFiles, something: DurableFiles
) -> None:
    assert claimant(files, MACHINE, lambda: [claim(MACHINE)], something) == MACHINE


def test_a_host_that_has_lost_its_export_files_is_somebody_else(files: DurableFiles, nothing: DurableFiles) -> None:
    name = claimant(files, MACHINE, lambda: [claim(MACHINE)], nothing)
    assert name != MACHINE
    assert len(name) == len(MACHINE)
    assert claimant(files, MACHINE, lambda: [claim(MACHINE), claim(name)], nothing) == name


def test_a_new_system_on_the_old_state_is_still_the_same(
    files: DurableFiles, nothing: DurableFiles, something: DurableFiles
) -> None:
    assert claimant(files, MACHINE, list, nothing) == MACHINE
    assert claimant(files, "2" * 32, lambda: [claim(MACHINE)], something) == MACHINE
