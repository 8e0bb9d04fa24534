"""Mounts: file systems, binds of directories and of device nodes, mount points."""

import pytest
from tests.contract.beds import Bed

from aoe_core.errors import AoECsiError, CommandFailed, InUse, NotFound
from aoe_core.host.contracts import Mount
from aoe_core.units import MIB

SIZE_BYTES = 32 * MIB


@pytest.fixture
def device(bed: Bed) -> str:
    """A volume with an ext4."""
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, (), bed.thin_pool)
    bed.filesystems.make(f"/dev/{bed.vg}/v-a", "ext4", "")
    return f"/dev/{bed.vg}/v-a"


@pytest.fixture
def staged(bed: Bed, device: str) -> str:
    """The ext4, mounted."""
    target = f"{bed.directory}/staging"
    bed.mounts.make_directory(target)
    bed.mounts.mount(device, target, "ext4", ())
    return target


def at(bed: Bed, target: str) -> list[Mount]:
    return [one for one in bed.mounts.table() if one.target == target]


# --- file systems ---


def test_a_mounted_file_system_is_in_the_table(bed: Bed, staged: str) -> None:
    (mount,) = at(bed, staged)
    assert (mount.root, mount.filesystem) == ("/", "ext4")
    assert mount.source.endswith("v--a")
    assert "rw" in mount.options
    major, _, minor = mount.device.partition(":")
    assert major.isdigit()
    assert minor.isdigit()


def test_files_survive_an_unmount_and_a_mount(bed: Bed, device: str, staged: str) -> None:
    bed.write_file(staged, "note", b"kept")
    bed.mounts.unmount(staged)
    assert at(bed, staged) == []
    bed.mounts.mount(device, staged, "ext4", ("noatime",))
    assert bed.read_file(staged, "note") == b"kept"
    assert "noatime" in at(bed, staged)[0].options


def test_a_read_only_mount_takes_no_files(bed: Bed, device: str) -> None:
    target = f"{bed.directory}/m"
    bed.mounts.make_directory(target)
    bed.mounts.mount(device, target, "ext4", ("ro",))
    (mount,) = at(bed, target)
    assert "ro" in mount.options
    assert "rw" not in mount.options
    with pytest.raises((AoECsiError, OSError)):
        bed.write_file(target, "note", b"refused")


def test_another_file_system_than_the_one_asked_for_is_not_mounted(bed: Bed, device: str) -> None:
    target = f"{bed.directory}/m"
    bed.mounts.make_directory(target)
    with pytest.raises(CommandFailed):
        bed.mounts.mount(device, target, "xfs", ())
    assert at(bed, target) == []


def test_a_blank_device_is_not_mounted(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-blank", SIZE_BYTES, (), bed.thin_pool)
    target = f"{bed.directory}/m"
    bed.mounts.make_directory(target)
    with pytest.raises(CommandFailed):
        bed.mounts.mount(f"/dev/{bed.vg}/v-blank", target, "ext4", ())
    assert at(bed, target) == []


def test_mounting_needs_a_device_and_a_directory(bed: Bed, device: str) -> None:
    with pytest.raises(CommandFailed):
        bed.mounts.mount(device, f"{bed.directory}/missing", "ext4", ())
    bed.mounts.make_directory(f"{bed.directory}/m")
    with pytest.raises(CommandFailed):
        bed.mounts.mount(f"/dev/{bed.vg}/v-missing", f"{bed.directory}/m", "ext4", ())
    assert at(bed, f"{bed.directory}/m") == []


def test_a_copy_of_a_mounted_xfs_needs_nouuid(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-x", 320 * MIB, ())
    bed.lvm.create(bed.vg, "v-y", 320 * MIB, ())
    origin, copy = f"/dev/{bed.vg}/v-x", f"/dev/{bed.vg}/v-y"
    bed.filesystems.make(origin, "xfs", "")
    bed.blocks.copy(origin, copy, 0, 320 * MIB)
    for name in ("x", "y"):
        bed.mounts.make_directory(f"{bed.directory}/{name}")
    bed.mounts.mount(origin, f"{bed.directory}/x", "xfs", ())
    with pytest.raises(CommandFailed):
        bed.mounts.mount(copy, f"{bed.directory}/y", "xfs", ())
    bed.mounts.mount(copy, f"{bed.directory}/y", "xfs", ("nouuid",))
    assert len(at(bed, f"{bed.directory}/y")) == 1


# --- unmount ---


def test_a_busy_file_system_stays_mounted(bed: Bed, staged: str) -> None:
    with bed.busy(staged), pytest.raises(InUse):
        bed.mounts.unmount(staged)
    assert len(at(bed, staged)) == 1
    bed.mounts.unmount(staged)
    assert at(bed, staged) == []


def test_a_mount_with_another_one_below_it_is_busy(bed: Bed, staged: str) -> None:
    bed.mounts.make_directory(f"{staged}/inner")
    bed.mounts.make_directory(f"{bed.directory}/source")
    bed.mounts.bind(f"{bed.directory}/source", f"{staged}/inner", read_only=False)
    with pytest.raises(InUse):
        bed.mounts.unmount(staged)
    bed.mounts.unmount(f"{staged}/inner")
    bed.mounts.unmount(staged)


def test_unmounting_where_nothing_is_mounted_is_an_error(bed: Bed) -> None:
    bed.mounts.make_directory(f"{bed.directory}/m")
    with pytest.raises(NotFound):
        bed.mounts.unmount(f"{bed.directory}/m")


def test_unmounting_takes_the_topmost_of_a_stack(bed: Bed, staged: str) -> None:
    target = f"{bed.directory}/pod"
    bed.mounts.make_directory(target)
    bed.mounts.bind(staged, target, read_only=False)
    bed.mounts.bind(staged, target, read_only=True)
    bed.mounts.unmount(target)
    (left,) = at(bed, target)
    assert "rw" in left.options


# --- binds ---


def test_a_bound_directory_shows_the_same_files(bed: Bed, staged: str) -> None:
    target = f"{bed.directory}/pod"
    bed.mounts.make_directory(target)
    bed.write_file(staged, "note", b"shared")
    bed.mounts.bind(staged, target, read_only=False)
    assert bed.read_file(target, "note") == b"shared"
    (mount,) = at(bed, target)
    assert (mount.root, mount.filesystem, mount.device) == ("/", "ext4", at(bed, staged)[0].device)


def test_a_read_only_bind_takes_no_files_and_its_source_still_does(bed: Bed, staged: str) -> None:
    target = f"{bed.directory}/pod"
    bed.mounts.make_directory(target)
    bed.mounts.bind(staged, target, read_only=True)
    with pytest.raises((AoECsiError, OSError)):
        bed.write_file(target, "note", b"refused")
    bed.write_file(staged, "note", b"taken")
    assert bed.read_file(target, "note") == b"taken"
    assert "rw" in at(bed, staged)[0].options


def test_a_bind_keeps_the_file_system_mounted_when_its_source_goes(bed: Bed, device: str, staged: str) -> None:
    target = f"{bed.directory}/pod"
    bed.mounts.make_directory(target)
    bed.mounts.bind(staged, target, read_only=False)
    bed.mounts.unmount(staged)
    bed.settle()
    assert bed.blocks.open_count(device) == 1
    bed.mounts.unmount(target)
    bed.settle()
    assert bed.blocks.open_count(device) == 0


def test_a_bound_device_node_is_the_device(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-raw", SIZE_BYTES, (), bed.thin_pool)
    device, target = f"/dev/{bed.vg}/v-raw", f"{bed.directory}/raw"
    bed.mounts.make_file(target)
    bed.mounts.bind(device, target, read_only=False)
    assert bed.mounts.kind(target) == "block"
    (mount,) = at(bed, target)
    assert mount.root.startswith("/dm-")
    bed.write(target, 0, b"through")
    assert bed.read(device, 0, 7) == b"through"
    assert bed.blocks.size_bytes(target) == SIZE_BYTES
    bed.mounts.unmount(target)
    assert bed.mounts.kind(target) == "file"


def test_a_bind_alone_does_not_open_the_device(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-raw", SIZE_BYTES, (), bed.thin_pool)
    target = f"{bed.directory}/raw"
    bed.mounts.make_file(target)
    bed.mounts.bind(f"/dev/{bed.vg}/v-raw", target, read_only=False)
    bed.settle()
    assert bed.blocks.open_count(f"/dev/{bed.vg}/v-raw") == 0


def test_binding_needs_a_source_and_a_mount_point_of_its_kind(bed: Bed, staged: str) -> None:
    bed.mounts.make_directory(f"{bed.directory}/d")
    bed.mounts.make_file(f"{bed.directory}/f")
    with pytest.raises(CommandFailed):
        bed.mounts.bind(f"{bed.directory}/missing", f"{bed.directory}/d", read_only=False)
    with pytest.raises(CommandFailed):
        bed.mounts.bind(staged, f"{bed.directory}/missing", read_only=False)
    with pytest.raises(CommandFailed):
        bed.mounts.bind(staged, f"{bed.directory}/f", read_only=False)
    assert at(bed, f"{bed.directory}/d") == at(bed, f"{bed.directory}/f") == []


# --- names ---


def test_a_device_is_numbered_as_the_table_numbers_it(bed: Bed, device: str, staged: str) -> None:
    assert bed.mounts.device_number(device) == at(bed, staged)[0].device
    for path in (staged, f"/dev/{bed.vg}/v-missing"):
        with pytest.raises(NotFound):
            bed.mounts.device_number(path)


def test_a_bound_device_node_has_its_devices_number(bed: Bed, device: str) -> None:
    target = f"{bed.directory}/raw"
    bed.mounts.make_file(target)
    bed.mounts.bind(device, target, read_only=False)
    assert bed.mounts.device_number(target) == bed.mounts.device_number(device)


def test_a_path_is_spelled_as_the_table_spells_it(bed: Bed, staged: str) -> None:
    assert bed.mounts.resolve(f"{bed.directory}/./x/../staging/") == staged
    assert bed.mounts.resolve(f"{bed.directory}/missing") == f"{bed.directory}/missing"


# --- mount points ---


def test_mount_points_are_made_once_and_removed_once(bed: Bed) -> None:
    directory, file = f"{bed.directory}/a/b/c", f"{bed.directory}/a/b/f"
    for _ in range(2):
        bed.mounts.make_directory(directory)
        bed.mounts.make_file(file)
    assert (bed.mounts.kind(directory), bed.mounts.kind(file)) == ("directory", "file")
    for _ in range(2):
        bed.mounts.remove_path(directory)
        bed.mounts.remove_path(file)
    assert (bed.mounts.kind(directory), bed.mounts.kind(file)) == ("absent", "absent")
    assert bed.mounts.kind(f"{bed.directory}/a/b") == "directory"


def test_a_file_is_not_taken_for_a_directory_nor_the_other_way(bed: Bed) -> None:
    bed.mounts.make_directory(f"{bed.directory}/d")
    bed.mounts.make_file(f"{bed.directory}/f")
    with pytest.raises(CommandFailed):
        bed.mounts.make_directory(f"{bed.directory}/f")
    with pytest.raises(CommandFailed):
        bed.mounts.make_file(f"{bed.directory}/d")


def test_a_directory_that_holds_something_is_not_removed(bed: Bed) -> None:
    bed.mounts.make_directory(f"{bed.directory}/d/inner")
    with pytest.raises(CommandFailed):
        bed.mounts.remove_path(f"{bed.directory}/d")
    assert bed.mounts.kind(f"{bed.directory}/d/inner") == "directory"


def test_a_mount_point_in_use_is_not_removed(bed: Bed, staged: str) -> None:
    with pytest.raises(CommandFailed):
        bed.mounts.remove_path(staged)
    assert len(at(bed, staged)) == 1


def test_what_is_at_a_path_is_told_without_following_links(bed: Bed, device: str) -> None:
    bed.link(f"{bed.directory}/link")
    assert bed.mounts.kind(f"{bed.directory}/link") == "link"
    assert bed.mounts.kind(f"{bed.directory}/missing") == "absent"
    assert bed.mounts.kind(bed.directory) == "directory"
    assert bed.mounts.kind(device) == "link"
