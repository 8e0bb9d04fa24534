"""FileSystems: making, labelling, checking and growing ext4 and xfs."""

import pytest
from tests.contract.beds import Bed

from aoe_core.errors import AoECsiError, CommandFailed, InUse, NotFound
from aoe_core.units import MIB

SIZES_BYTES = {"ext4": 32 * MIB, "xfs": 320 * MIB}
"""xfsprogs makes no xfs under 300 MiB."""


@pytest.fixture(params=["ext4", "xfs"])
def filesystem(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def device(bed: Bed, filesystem: str) -> str:
    """A blank volume."""
    bed.lvm.create(bed.vg, "v-a", SIZES_BYTES[filesystem], ())
    path = f"/dev/{bed.vg}/v-a"
    bed.blocks.zero(path, 0, SIZES_BYTES[filesystem])
    return path


def mounted(bed: Bed, device: str, filesystem: str) -> str:
    target = f"{bed.directory}/m"
    bed.mounts.make_directory(target)
    bed.mounts.mount(device, target, filesystem, ())
    return target


def test_a_made_file_system_carries_its_label_and_mounts(bed: Bed, device: str, filesystem: str) -> None:
    bed.filesystems.make(device, filesystem, "aoe-mkfs")
    assert bed.blocks.signature(device) == "aoe-mkfs"
    bed.write_file(mounted(bed, device, filesystem), "note", b"taken")


def test_clearing_the_label_completes_it(bed: Bed, device: str, filesystem: str) -> None:
    bed.filesystems.make(device, filesystem, "aoe-mkfs")
    bed.filesystems.set_label(device, filesystem, "")
    bed.filesystems.set_label(device, filesystem, "")
    assert bed.blocks.signature(device) == filesystem


def test_a_mkfs_that_was_not_completed_is_done_again(bed: Bed, device: str, filesystem: str) -> None:
    bed.filesystems.make(device, filesystem, "aoe-mkfs")
    bed.filesystems.make(device, filesystem, "aoe-mkfs")
    assert bed.blocks.signature(device) == "aoe-mkfs"
    bed.filesystems.check(device, filesystem)


def test_a_mkfs_killed_at_any_moment_leaves_what_counts_as_blank(bed: Bed, device: str, filesystem: str) -> None:
    killed = 0
    for moment in bed.kill_mkfs(device, filesystem):
        assert bed.attached_blocks.signature(device) in ("", "aoe-mkfs"), f"killed at moment {moment}"
        killed += 1
    assert killed > 1
    bed.filesystems.make(device, filesystem, "aoe-mkfs")
    bed.filesystems.check(device, filesystem)
    mounted(bed, device, filesystem)


def test_a_finished_mkfs_leaves_no_mark(bed: Bed, device: str, filesystem: str) -> None:
    # Else a volume wiped of its superblock would be taken for one that never held anything.
    bed.filesystems.make(device, filesystem, "aoe-mkfs")
    bed.filesystems.set_label(device, filesystem, "")
    bed.blocks.zero(device, 0, MIB)
    bed.write(device, 0, b"unrecognised")
    assert bed.attached_blocks.signature(device) == "unknown-data"


def test_nothing_else_is_made(bed: Bed, device: str) -> None:
    with pytest.raises(AoECsiError):
        bed.filesystems.make(device, "btrfs", "aoe-mkfs")
    assert bed.blocks.signature(device) == ""


def test_a_mounted_file_system_is_neither_made_anew_nor_relabelled(bed: Bed, device: str, filesystem: str) -> None:
    bed.filesystems.make(device, filesystem, "aoe-mkfs")
    bed.filesystems.set_label(device, filesystem, "")
    target = mounted(bed, device, filesystem)
    bed.write_file(target, "note", b"kept")
    with pytest.raises((InUse, CommandFailed)):
        bed.filesystems.make(device, filesystem, "aoe-mkfs")
    assert bed.read_file(target, "note") == b"kept"
    bed.mounts.unmount(target)
    assert bed.blocks.signature(device) == filesystem
    mark_at_bytes = bed.blocks.size_bytes(device) - MIB
    assert b"file system is being made" not in bed.read(device, mark_at_bytes, 64)


def test_a_device_that_is_not_there_is_an_error(bed: Bed) -> None:
    with pytest.raises((NotFound, CommandFailed)):
        bed.filesystems.make(f"/dev/{bed.vg}/v-missing", "ext4", "")
    with pytest.raises((NotFound, CommandFailed)):
        bed.filesystems.check(f"/dev/{bed.vg}/v-missing", "ext4")


def test_a_clean_file_system_passes_its_check_unchanged(bed: Bed, device: str, filesystem: str) -> None:
    bed.filesystems.make(device, filesystem, "")
    target = mounted(bed, device, filesystem)
    bed.write_file(target, "note", b"kept")
    bed.mounts.unmount(target)
    bed.filesystems.check(device, filesystem)
    mounted(bed, device, filesystem)
    assert bed.read_file(target, "note") == b"kept"


def test_a_device_without_an_ext4_fails_its_check(bed: Bed) -> None:
    # An xfs replays its log when it is mounted; there is nothing to check before.
    bed.lvm.create(bed.vg, "v-a", SIZES_BYTES["ext4"], (), bed.thin_pool)
    with pytest.raises(CommandFailed):
        bed.filesystems.check(f"/dev/{bed.vg}/v-a", "ext4")


def test_a_file_system_grows_with_its_device(bed: Bed, device: str, filesystem: str) -> None:
    bed.filesystems.make(device, filesystem, "")
    target = mounted(bed, device, filesystem)
    bed.write_file(target, "note", b"kept")
    before = bed.filesystems.usage(target)
    bed.lvm.extend(bed.vg, "v-a", SIZES_BYTES[filesystem] + 32 * MIB)
    assert bed.filesystems.usage(target).total_bytes == before.total_bytes
    bed.filesystems.grow(device, target, filesystem)
    grown_bytes = bed.filesystems.usage(target).total_bytes
    assert grown_bytes >= before.total_bytes + 24 * MIB
    bed.filesystems.grow(device, target, filesystem)
    assert bed.filesystems.usage(target).total_bytes == grown_bytes
    assert bed.read_file(target, "note") == b"kept"


def test_usage_counts_what_files_take(bed: Bed, device: str, filesystem: str) -> None:
    bed.filesystems.make(device, filesystem, "")
    target = mounted(bed, device, filesystem)
    before = bed.filesystems.usage(target)
    assert 0 < before.total_bytes <= SIZES_BYTES[filesystem]
    assert before.used_bytes + before.available_bytes <= before.total_bytes
    assert before.used_inodes + before.available_inodes == before.total_inodes
    bed.write_file(target, "note", b"x" * 4096)
    after = bed.filesystems.usage(target)
    assert after.used_bytes > before.used_bytes
    assert after.used_inodes == before.used_inodes + 1


def test_usage_of_a_missing_path_is_not_found(bed: Bed) -> None:
    with pytest.raises(NotFound):
        bed.filesystems.usage(f"{bed.directory}/missing")


def test_a_read_only_device_takes_no_writes_until_it_is_writable_again(bed: Bed, device: str) -> None:
    bed.filesystems.set_read_only(device, read_only=True)
    with pytest.raises(CommandFailed):
        bed.blocks.zero(device, 0, 4096)
    bed.filesystems.set_read_only(device, read_only=False)
    bed.blocks.zero(device, 0, 4096)
