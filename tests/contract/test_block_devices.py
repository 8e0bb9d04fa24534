"""BlockDevices: sizes, zeroing, copying, openers, and what lies on a device."""

import pytest
from tests.contract.beds import Bed

from aoe_core.errors import CommandFailed, NotFound
from aoe_core.units import KIB, MIB

SIZE_BYTES = 16 * MIB


@pytest.fixture
def device(bed: Bed) -> str:
    """A thin volume: thin, so that it begins as zeros."""
    bed.lvm.create(bed.vg, "v-a", SIZE_BYTES, (), bed.thin_pool)
    return f"/dev/{bed.vg}/v-a"


@pytest.fixture
def other(bed: Bed) -> str:
    bed.lvm.create(bed.vg, "v-b", SIZE_BYTES, (), bed.thin_pool)
    return f"/dev/{bed.vg}/v-b"


def test_a_devices_size_is_read(bed: Bed, device: str) -> None:
    assert bed.blocks.size_bytes(device) == SIZE_BYTES


@pytest.mark.parametrize("path", ["/dev/contract/v-missing", "/dev/etherd/e60000.1", "/etc"])
def test_what_is_no_device_is_not_found(bed: Bed, path: str) -> None:
    with pytest.raises(NotFound):
        bed.blocks.size_bytes(path)
    with pytest.raises((NotFound, CommandFailed)):
        bed.blocks.zero(path, 0, 4096)
    with pytest.raises((NotFound, CommandFailed)):
        bed.blocks.signature(path)


@pytest.mark.parametrize("discard", [False, True])
@pytest.mark.parametrize(
    ("start", "length"), [(4 * KIB, 8 * KIB), (MIB, 2 * MIB), (512, 512), (3 * KIB + 512, 10 * KIB)]
)
def test_zeroing_touches_its_range_and_nothing_else(
    bed: Bed, device: str, start: int, length: int, *, discard: bool
) -> None:
    bed.write(device, 0, b"x" * (4 * MIB))
    bed.blocks.zero(device, start, length, discard=discard)
    content = bed.read(device, 0, 4 * MIB)
    assert content[:start] == b"x" * start
    assert content[start : start + length] == bytes(length)
    assert content[start + length :] == b"x" * (4 * MIB - start - length)


def test_zeroing_beyond_the_end_fails(bed: Bed, device: str) -> None:
    with pytest.raises(CommandFailed):
        bed.blocks.zero(device, SIZE_BYTES - 4 * KIB, 8 * KIB)


def test_a_copy_takes_over_its_range_and_nothing_else(bed: Bed, device: str, other: str) -> None:
    bed.write(device, 0, b"s" * (4 * MIB))
    bed.write(device, 2 * MIB, bytes(MIB))
    bed.write(other, 0, b"t" * (4 * MIB))
    bed.blocks.copy(device, other, MIB, 2 * MIB)
    assert bed.read(other, 0, 4 * MIB) == b"t" * MIB + b"s" * MIB + bytes(MIB) + b"t" * MIB
    assert bed.read(device, 0, 2 * MIB) == b"s" * (2 * MIB)


def test_a_copy_of_more_than_there_is_fails(bed: Bed, device: str) -> None:
    bed.lvm.create(bed.vg, "v-small", 4 * MIB, (), bed.thin_pool)
    with pytest.raises(CommandFailed):
        bed.blocks.copy(f"/dev/{bed.vg}/v-small", device, 0, 8 * MIB)
    with pytest.raises(CommandFailed):
        bed.blocks.copy(device, f"/dev/{bed.vg}/v-small", 0, 8 * MIB)


def test_openers_are_counted(bed: Bed, device: str) -> None:
    bed.settle()
    assert bed.blocks.open_count(device) == 0
    with bed.opened(device):
        assert bed.blocks.open_count(device) == 1
        with bed.opened(device):
            assert bed.blocks.open_count(device) == 2
    assert bed.blocks.open_count(device) == 0


def test_a_mounted_file_system_is_an_opener(bed: Bed, device: str) -> None:
    bed.filesystems.make(device, "ext4", "")
    bed.mounts.make_directory(f"{bed.directory}/m")
    bed.mounts.mount(device, f"{bed.directory}/m", "ext4", ())
    bed.settle()
    assert bed.blocks.open_count(device) == 1
    bed.mounts.unmount(f"{bed.directory}/m")
    bed.settle()
    assert bed.blocks.open_count(device) == 0


def test_counting_openers_of_nothing_is_an_error_and_not_zero(bed: Bed) -> None:
    with pytest.raises((NotFound, CommandFailed)):
        bed.blocks.open_count(f"/dev/{bed.vg}/v-missing")


# --- signatures ---


def test_a_device_of_zeros_is_blank(bed: Bed, device: str) -> None:
    assert bed.blocks.signature(device) == ""


@pytest.mark.parametrize("offset_bytes", [0, 8192, MIB - 512, SIZE_BYTES - MIB, SIZE_BYTES - 512])
def test_bytes_at_either_end_that_nobody_knows_are_unknown_data(bed: Bed, device: str, offset_bytes: int) -> None:
    bed.write(device, offset_bytes, b"?" * 512)
    assert bed.blocks.signature(device) == "unknown-data"


def test_bytes_in_the_middle_are_not_looked_at(bed: Bed, device: str) -> None:
    bed.write(device, SIZE_BYTES // 2, b"?" * 512)
    assert bed.blocks.signature(device) == ""


def test_a_foreign_signature_is_neither_blank_nor_ours(bed: Bed, device: str) -> None:
    # mkswap's header: version 1, one bad page none, UUID, magic at the end of the first page (swap.h).
    header = bytearray(4096)
    header[1024:1036] = (1).to_bytes(4, "little") + (4095).to_bytes(4, "little") + bytes(4)
    header[1036:1052] = bytes(range(16))
    header[4086:4096] = b"SWAPSPACE2"
    bed.write(device, 0, bytes(header))
    assert bed.blocks.signature(device) == "swap"


def test_a_complete_file_system_is_named(bed: Bed, device: str) -> None:
    bed.filesystems.make(device, "ext4", "")
    assert bed.blocks.signature(device) == "ext4"


def test_a_complete_xfs_is_named(bed: Bed) -> None:
    bed.lvm.create(bed.vg, "v-x", 320 * MIB, ())
    path = f"/dev/{bed.vg}/v-x"
    bed.filesystems.make(path, "xfs", "")
    assert bed.blocks.signature(path) == "xfs"


def test_the_label_of_a_mkfs_under_way_is_told_apart(bed: Bed, device: str) -> None:
    bed.filesystems.make(device, "ext4", "aoe-mkfs")
    assert bed.blocks.signature(device) == "aoe-mkfs"
    bed.filesystems.set_label(device, "ext4", "")
    assert bed.blocks.signature(device) == "ext4"


def test_a_wiped_device_is_blank_again(bed: Bed, device: str) -> None:
    bed.filesystems.make(device, "ext4", "")
    bed.blocks.zero(device, 0, SIZE_BYTES)
    assert bed.blocks.signature(device) == ""
    assert bed.read(device, 0, SIZE_BYTES) == bytes(SIZE_BYTES)
