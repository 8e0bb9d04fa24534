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


def claim(machine_id: str) -> AoEShelf:
    spec = AoEShelfSpec(san="main", shelf=10, node="storage1", machine_id=machine_id)
    return AoEShelf(metadata=ObjectMeta(name="main-10"), spec=spec)


def test_a_new_host_claims_as_itself_and_goes_on_so(files: DurableFiles) -> None:
    assert claimant(files, MACHINE, [claim("2" * 32)], remembers=False) == MACHINE
    # It died before its first grant.
    assert claimant(files, MACHINE, [claim(MACHINE)], remembers=False) == MACHINE


def test_a_host_that_had_claims_before_names_were_written_keeps_them(files: DurableFiles) -> None:
    assert claimant(files, MACHINE, [claim(MACHINE)], remembers=True) == MACHINE


def test_a_host_that_has_lost_its_export_files_is_somebody_else(files: DurableFiles) -> None:
    name = claimant(files, MACHINE, [claim(MACHINE)], remembers=False)
    assert name != MACHINE
    assert len(name) == len(MACHINE)
    assert claimant(files, MACHINE, [claim(MACHINE), claim(name)], remembers=False) == name


def test_a_new_system_on_the_old_state_is_still_the_same(files: DurableFiles) -> None:
    assert claimant(files, MACHINE, [], remembers=False) == MACHINE
    assert claimant(files, "2" * 32, [claim(MACHINE)], remembers=True) == MACHINE
