"""Lvm: volume groups, thick and thin LVs, snapshots, tags, and what LVM refuses."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from tests.callers import outcome
from tests.contract.beds import GROUP_BYTES, POOL_BYTES, Bed

from aoe_core.errors import Busy, CommandFailed, Conflict, InUse, NoSpace, NotFound
from aoe_core.host.contracts import LogicalVolume, LvKind, VolumeGroup
from aoe_core.units import MIB

SIZE_BYTES = 16 * MIB
LATE_BYTES = 9 * MIB + 4096
"""An offset that no zeroing of a new volume's beginning reaches."""


def find(bed: Bed, name: str) -> LogicalVolume | None:
    return next((lv for lv in bed.lvm.report().volumes if (lv.vg, lv.name) == (bed.vg, name)), None)


def get(bed: Bed, name: str) -> LogicalVolume:
    found = find(bed, name)
    assert found is not None, f"{name} is not reported"
    return found


def group(bed: Bed) -> VolumeGroup:
    return next(one for one in bed.lvm.report().groups if one.name == bed.vg)


# --- what is reported ---


def test_the_group_is_reported_with_its_size_and_free_space(bed: Bed) -> None:
    found = group(bed)
    assert found.uuid
    assert found.extent_bytes == 4 * MIB
    assert found.size_bytes == GROUP_BYTES
    assert 0 < found.free_bytes <= GROUP_BYTES - POOL_BYTES
    assert (found.foreign, found.exported, found.partial, found.writable) == (False, False, False, True)


def test_a_thin_pool_is_reported_as_one_that_zeroes(bed: Bed) -> None:
    pool = get(bed, bed.thin_pool)
    assert (pool.kind, pool.size_bytes, pool.zeroing) == (LvKind.THIN_POOL, POOL_BYTES, True)
    assert pool.thin_pool == ""


def test_a_group_of_another_host_is_shown_as_foreign_and_left_alone(bed: Bed) -> None:
    name = bed.add_foreign_group()
    foreign = next(one for one in bed.lvm.report().groups if one.name == name)
    assert (foreign.system_id, foreign.foreign) == ("elsewhere", True)
    assert not group(bed).foreign
    with pytest.raises((CommandFailed, NotFound)):
        bed.lvm.create(name, "v-a", SIZE_BYTES, ())
    assert [lv for lv in bed.lvm.report().volumes if lv.vg == name] == []


# --- create ---


def test_a_thick_volume_is_active_tagged_and_takes_its_space(bed: Bed) -> None:
    before_bytes = group(bed).free_bytes
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, {"aoe-csi", "aoe-csi.size=16777216"})
    lv = get(bed, "v-a")
    assert (lv.kind, lv.size_bytes, lv.active) == (LvKind.THICK, SIZE_BYTES, True)
    assert lv.tags == {"aoe-csi", "aoe-csi.size=16777216"}
    assert (lv.thin_pool, lv.origin) == ("", "")
    assert lv.created_s > 0
    assert before_bytes - group(bed).free_bytes == SIZE_BYTES
    assert bed.blocks.size_bytes(lv.path) == SIZE_BYTES


def test_a_size_is_rounded_up_to_whole_extents(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES + 1, ())
    bed.lvm.create(bed.vg, "v-b", SIZE_BYTES + 1, (), bed.thin_pool)
    assert get(bed, "v-a").size_bytes == get(bed, "v-b").size_bytes == SIZE_BYTES + 4 * MIB


def test_a_new_thick_volume_shows_what_its_space_held_before(bed: Bed) -> None:
    # Nobody wants this; it is why a deleted volume must be wiped, and a host that hid it would hide a missing wipe.
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, ())
    bed.write(f"/dev/{bed.vg}/v-a", LATE_BYTES, b"secret")
    bed.lvm.remove(bed.vg, "v-a")
    bed.lvm.create(bed.vg, "v-b", SIZE_BYTES, ())
    assert bed.read(f"/dev/{bed.vg}/v-b", LATE_BYTES, 6) == b"secret"


def test_a_new_thin_volume_is_zero_even_where_another_one_wrote(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, (), bed.thin_pool)
    bed.write(f"/dev/{bed.vg}/v-a", LATE_BYTES, b"secret")
    bed.lvm.remove(bed.vg, "v-a")
    bed.lvm.create(bed.vg, "v-b", SIZE_BYTES, (), bed.thin_pool)
    lv = get(bed, "v-b")
    assert (lv.kind, lv.thin_pool, lv.size_bytes, lv.active) == (LvKind.THIN, bed.thin_pool, SIZE_BYTES, True)
    assert bed.read(lv.path, 0, SIZE_BYTES) == bytes(SIZE_BYTES)


def test_a_write_to_thin_space_shows_in_the_pools_use(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, (), bed.thin_pool)
    empty = get(bed, bed.thin_pool).data_percent
    bed.write(f"/dev/{bed.vg}/v-a", 0, b"x" * (8 * MIB))
    assert get(bed, bed.thin_pool).data_percent >= empty + 100 * 7 * MIB / POOL_BYTES
    assert get(bed, "v-a").data_percent == pytest.approx(50, abs=5)


def test_a_taken_name_is_a_conflict_and_changes_nothing(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, {"first"})
    for thin_pool in ("", bed.thin_pool):
        with pytest.raises(Conflict):
            bed.lvm.create(bed.vg, "v-a", 2 * SIZE_BYTES, {"second"}, thin_pool)
    assert get(bed, "v-a").size_bytes == SIZE_BYTES
    assert get(bed, "v-a").tags == {"first"}


def test_more_than_the_group_has_is_no_space_and_leaves_nothing(bed: Bed) -> None:
    before_bytes = group(bed).free_bytes
    with pytest.raises(NoSpace):
        bed.lvm.create(bed.vg, "v-a", before_bytes + 1, ())
    assert find(bed, "v-a") is None
    assert group(bed).free_bytes == before_bytes


def test_exactly_what_the_group_has_is_enough(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-a", group(bed).free_bytes, ())
    assert group(bed).free_bytes == 0


def test_a_missing_group_or_pool_is_not_invented(bed: Bed) -> None:
    with pytest.raises(NotFound):
        bed.lvm.create("nowhere", "v-a", SIZE_BYTES, ())
    with pytest.raises((NotFound, CommandFailed)):
        bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, (), "nowhere")
    assert find(bed, "v-a") is None


@pytest.mark.parametrize(
    ("name", "tags"),
    [("snapshot-1", ()), ("pvmove-1", ()), ("v a", ()), ("v-a", ("with space",)), ("v-a", ("ä",))],
)
def test_a_name_or_tag_that_lvm_does_not_take_creates_nothing(bed: Bed, name: str, tags: tuple[str, ...]) -> None:
    with pytest.raises(CommandFailed):
        bed.lvm.create(bed.vg, name, SIZE_BYTES, tags)
    assert find(bed, name) is None


# --- snapshots ---


def test_a_snapshot_keeps_the_content_of_its_moment(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, (), bed.thin_pool)
    bed.write(f"/dev/{bed.vg}/v-a", LATE_BYTES, b"before")
    bed.lvm.snapshot(bed.vg, "v-a", "s-a", {"aoe-csi"}, writable=False)
    bed.write(f"/dev/{bed.vg}/v-a", LATE_BYTES, b"after!")
    lv = get(bed, "s-a")
    assert (lv.kind, lv.origin, lv.thin_pool, lv.size_bytes) == (LvKind.THIN, "v-a", bed.thin_pool, SIZE_BYTES)
    assert lv.active
    assert lv.tags == {"aoe-csi"}
    assert bed.read(lv.path, LATE_BYTES, 6) == b"before"
    assert bed.read(f"/dev/{bed.vg}/v-a", LATE_BYTES, 6) == b"after!"


def test_a_read_only_snapshot_takes_no_writes(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, (), bed.thin_pool)
    bed.write(f"/dev/{bed.vg}/v-a", 0, b"kept")
    bed.lvm.snapshot(bed.vg, "v-a", "s-a", (), writable=False)
    with pytest.raises(CommandFailed):
        bed.blocks.zero(f"/dev/{bed.vg}/s-a", 0, 4096)
    assert bed.read(f"/dev/{bed.vg}/s-a", 0, 4) == b"kept"


def test_a_writable_snapshot_leaves_its_origin_as_it_is(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, (), bed.thin_pool)
    bed.write(f"/dev/{bed.vg}/v-a", 0, b"origin")
    bed.lvm.snapshot(bed.vg, "v-a", "v-b", (), writable=True)
    bed.write(f"/dev/{bed.vg}/v-b", 0, b"copied")
    assert bed.read(f"/dev/{bed.vg}/v-a", 0, 6) == b"origin"
    assert bed.read(f"/dev/{bed.vg}/v-b", 0, 6) == b"copied"


def test_a_snapshot_outlives_its_origin(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, (), bed.thin_pool)
    bed.write(f"/dev/{bed.vg}/v-a", 0, b"kept")
    bed.lvm.snapshot(bed.vg, "v-a", "s-a", (), writable=False)
    bed.lvm.remove(bed.vg, "v-a")
    assert get(bed, "s-a").origin == ""
    assert bed.read(f"/dev/{bed.vg}/s-a", 0, 4) == b"kept"


def test_a_snapshot_of_an_open_volume_is_taken(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, (), bed.thin_pool)
    with bed.opened(f"/dev/{bed.vg}/v-a"):
        bed.lvm.snapshot(bed.vg, "v-a", "s-a", (), writable=False)
    assert get(bed, "s-a").origin == "v-a"


def test_snapshots_that_cannot_be_are_refused(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-thick", SIZE_BYTES, ())
    bed.lvm.create(bed.vg, "v-thin", SIZE_BYTES, (), bed.thin_pool)
    with pytest.raises(CommandFailed):
        bed.lvm.snapshot(bed.vg, "v-thick", "s-a", (), writable=False)
    with pytest.raises(NotFound):
        bed.lvm.snapshot(bed.vg, "v-missing", "s-a", (), writable=False)
    assert find(bed, "s-a") is None
    with pytest.raises(Conflict):
        bed.lvm.snapshot(bed.vg, "v-thin", "v-thick", (), writable=False)
    assert get(bed, "v-thick").kind is LvKind.THICK


# --- tags ---


def test_retagging_adds_and_removes_at_once(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, {"aoe-csi", "state=new"})
    bed.lvm.retag(bed.vg, "v-a", add={"state=ready"}, remove={"state=new"})
    assert get(bed, "v-a").tags == {"aoe-csi", "state=ready"}


def test_retagging_again_is_no_error(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, {"aoe-csi"})
    bed.lvm.retag(bed.vg, "v-a", add={"aoe-csi"}, remove={"never-there"})
    assert get(bed, "v-a").tags == {"aoe-csi"}


def test_retagging_what_is_absent_is_not_found(bed: Bed) -> None:
    with pytest.raises(NotFound):
        bed.lvm.retag(bed.vg, "v-missing", add={"aoe-csi"})


# --- extend ---


@pytest.mark.parametrize("thin", [False, True])
def test_extending_keeps_the_content_and_the_openers(bed: Bed, *, thin: bool) -> None:
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, (), bed.thin_pool if thin else "")
    path = f"/dev/{bed.vg}/v-a"
    bed.write(path, LATE_BYTES, b"kept")
    with bed.opened(path):
        bed.lvm.extend(bed.vg, "v-a", 2 * SIZE_BYTES)
    assert get(bed, "v-a").size_bytes == bed.blocks.size_bytes(path) == 2 * SIZE_BYTES
    assert bed.read(path, LATE_BYTES, 4) == b"kept"


def test_extending_to_the_same_or_a_smaller_size_changes_nothing(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, ())
    bed.lvm.extend(bed.vg, "v-a", SIZE_BYTES)
    bed.lvm.extend(bed.vg, "v-a", SIZE_BYTES // 2)
    assert get(bed, "v-a").size_bytes == SIZE_BYTES


def test_extending_beyond_the_group_is_no_space_and_changes_nothing(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, ())
    with pytest.raises(NoSpace):
        bed.lvm.extend(bed.vg, "v-a", 2 * GROUP_BYTES)
    assert get(bed, "v-a").size_bytes == SIZE_BYTES


def test_extending_what_is_absent_is_not_found(bed: Bed) -> None:
    with pytest.raises(NotFound):
        bed.lvm.extend(bed.vg, "v-missing", SIZE_BYTES)


# --- rename, activate, remove ---


def test_renaming_moves_an_open_volume_with_its_content(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, {"aoe-csi"})
    bed.write(f"/dev/{bed.vg}/v-a", 0, b"kept")
    with bed.opened(f"/dev/{bed.vg}/v-a"):
        bed.lvm.rename(bed.vg, "v-a", "d-0-a")
        bed.settle()
        assert bed.blocks.open_count(f"/dev/{bed.vg}/d-0-a") == 1
    assert find(bed, "v-a") is None
    assert get(bed, "d-0-a").tags == {"aoe-csi"}
    assert bed.read(f"/dev/{bed.vg}/d-0-a", 0, 4) == b"kept"
    with pytest.raises(NotFound):
        bed.blocks.size_bytes(f"/dev/{bed.vg}/v-a")


def test_renaming_refuses_a_taken_name_and_an_absent_volume(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, ())
    bed.lvm.create(bed.vg, "v-b", SIZE_BYTES, ())
    with pytest.raises(Conflict):
        bed.lvm.rename(bed.vg, "v-a", "v-b")
    with pytest.raises(NotFound):
        bed.lvm.rename(bed.vg, "v-missing", "v-c")
    assert get(bed, "v-a").active
    assert find(bed, "v-c") is None


def test_an_inactive_volume_has_no_device_and_keeps_its_content(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, ())
    path = f"/dev/{bed.vg}/v-a"
    bed.write(path, 0, b"kept")
    bed.lvm.activate(bed.vg, "v-a", on=False)
    assert not get(bed, "v-a").active
    with pytest.raises(NotFound):
        bed.blocks.size_bytes(path)
    bed.lvm.activate(bed.vg, "v-a", on=True)
    bed.lvm.activate(bed.vg, "v-a", on=True)
    assert get(bed, "v-a").active
    assert bed.read(path, 0, 4) == b"kept"


@pytest.mark.parametrize("thin", [False, True])
def test_an_open_volume_is_neither_deactivated_nor_removed(bed: Bed, *, thin: bool) -> None:
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, (), bed.thin_pool if thin else "")
    with bed.opened(f"/dev/{bed.vg}/v-a"):
        with pytest.raises(InUse):
            bed.lvm.activate(bed.vg, "v-a", on=False)
        with pytest.raises(InUse):
            bed.lvm.remove(bed.vg, "v-a")
    assert get(bed, "v-a").active
    bed.lvm.remove(bed.vg, "v-a")
    assert find(bed, "v-a") is None


def test_removing_gives_the_space_back(bed: Bed) -> None:
    before_bytes = group(bed).free_bytes
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, ())
    bed.lvm.remove(bed.vg, "v-a")
    assert group(bed).free_bytes == before_bytes
    bed.lvm.create(bed.vg, "v-b", SIZE_BYTES, (), bed.thin_pool)
    bed.write(f"/dev/{bed.vg}/v-b", 0, b"x" * (4 * MIB))
    bed.lvm.remove(bed.vg, "v-b")
    assert get(bed, bed.thin_pool).data_percent == 0


def test_removing_what_is_absent_is_not_found(bed: Bed) -> None:
    with pytest.raises(NotFound):
        bed.lvm.remove(bed.vg, "v-missing")


# --- many changes at once ---


def at_once(asks: Mapping[str, Callable[[], None]]) -> dict[str, str]:
    """Ask for changes at the same time. Returns: what became of each."""
    with ThreadPoolExecutor(len(asks)) as pool:
        return dict(zip(asks, pool.map(outcome, asks.values()), strict=True))


@pytest.mark.parametrize("thin", [False, True])
def test_of_many_at_once_each_is_told_its_own_ending(bed: Bed, *, thin: bool) -> None:
    """However they are carried out: some by one process of LVM, which goes on after one that fails."""
    pool, kept = bed.thin_pool if thin else "", {bed.thin_pool}
    names = [f"v-{number}" for number in range(9)]
    bed.lvm.create(bed.vg, "v-taken", SIZE_BYTES, {"first"}, pool)
    creations = {name: partial(bed.lvm.create, bed.vg, name, 4 * MIB, {"aoe-csi", name}, pool) for name in names}
    creations["v-taken"] = partial(bed.lvm.create, bed.vg, "v-taken", 4 * MIB, (), pool)
    creations["pvmove-1"] = partial(bed.lvm.create, bed.vg, "pvmove-1", 4 * MIB, (), pool)
    said = at_once(creations)
    assert said == dict.fromkeys(names, "done") | {"v-taken": "Conflict", "pvmove-1": "CommandFailed"}
    assert all(get(bed, name).tags == {"aoe-csi", name} for name in names)
    assert get(bed, "v-taken").tags == {"first"}
    with bed.opened(f"/dev/{bed.vg}/v-taken"):
        removals = {name: partial(bed.lvm.remove, bed.vg, name) for name in [*names, "v-taken", "v-missing"]}
        said = at_once(removals)
    assert said == dict.fromkeys(names, "done") | {"v-taken": "InUse", "v-missing": "NotFound"}
    assert {lv.name for lv in bed.lvm.report().volumes if lv.vg == bed.vg} == kept | {"v-taken"}


# --- changes that run on ---


def test_nothing_is_reported_while_a_dead_process_change_runs_on(bed: Bed) -> None:
    # Else a volume whose creation is still under way would be called absent, and come into being afterwards.
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, ())
    with bed.change_running(bed.vg):
        fresh = bed.restarted_lvm()
        with pytest.raises(Busy):
            fresh.report()
    assert {lv.name for lv in fresh.report().volumes} == {bed.thin_pool, "v-a"}


def test_no_change_of_a_volume_group_joins_one_that_nobody_waits_for(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, ())
    with bed.change_running(bed.vg):
        with pytest.raises(Busy):
            bed.lvm.retag(bed.vg, "v-a", add={"late"})
        with pytest.raises(Busy):
            bed.lvm.remove(bed.vg, "v-a")
    bed.lvm.retag(bed.vg, "v-a", add={"late"})
    assert get(bed, "v-a").tags == {"late"}
