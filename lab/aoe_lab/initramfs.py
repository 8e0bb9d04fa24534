"""What the emulator loads before there is a disk: the kernel, unpacked, and a RAM disk of a few drivers and one script.

Owns: unpacking Debian's kernel file and writing the archive. Refuses: udev, initramfs-tools and any driver that the
root disk and the network cards do not need; the machine's own udev loads the rest.
Source: the kernel's Documentation/x86/boot.rst (setup_sects, payload_offset) and
driver-api/early-userspace/buffer-format.rst ("newc").
"""

from __future__ import annotations

import shutil
import stat
import struct
from typing import TYPE_CHECKING

from aoe_lab import process

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DRIVERS = ("virtio_pci", "virtio_blk", "virtio_net")
LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"
DIRECTORY_MODE = stat.S_IFDIR | 0o755


def unpack_kernel(vmlinuz: Path, kernel: Path) -> None:
    """Write the ELF kernel out of a bzImage: QEMU enters it at once (PVH), and nothing is unpacked by emulation.

    A kernel compressed in another way than Debian 12's is copied as it is, which boots too, only slower.
    """
    image = vmlinuz.read_bytes()
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    begin = (setup_sectors + 1) * 512 + offset
    payload = image[begin : begin + length]
    if not payload.startswith(LZ4_LEGACY_MAGIC):
        shutil.copyfile(vmlinuz, kernel)
        return
    packed = kernel.with_suffix(".lz4")
    packed.write_bytes(payload[:-4])  # The last four bytes are the unpacked size, which is not lz4's.
    process.run(["lz4", "-d", "-q", "-f", packed, kernel], timeout_s=60)
    packed.unlink()


def write_initramfs(root: Path, init: Path, archive: Path, drivers: Sequence[str] = DRIVERS) -> None:
    """Write the RAM disk: `init`, busybox of the tree at `root`, and the drivers with what they depend on, in order."""
    (modules,) = (root / "lib/modules").iterdir()
    order = _load_order((modules / "modules.dep").read_text(), drivers)
    entries = [(name, DIRECTORY_MODE, b"") for name in ("bin", "dev", "modules", "proc", "root", "sys")]
    entries.append(("init", stat.S_IFREG | 0o755, init.read_bytes()))
    entries.append(("bin/busybox", stat.S_IFREG | 0o755, (root / "bin/busybox").read_bytes()))
    names = []
    for relative in order:
        name = relative.rpartition("/")[2]
        names.append(name)
        entries.append((f"modules/{name}", stat.S_IFREG | 0o644, (modules / relative).read_bytes()))
    entries.append(("modules/order", stat.S_IFREG | 0o644, ("\n".join(names) + "\n").encode()))
    entries.append(("TRAILER!!!", 0, b""))
    archive.write_bytes(b"".join(_cpio_entry(*entry) for entry in entries))


def _load_order(modules_dep: str, drivers: Sequence[str]) -> list[str]:
    """Return the paths of drivers after those of all they need; modules.dep lists a module's needs last one first."""
    needs = {}
    for line in modules_dep.splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {path.rpartition("/")[2].removesuffix(".ko"): path for path in needs}
    order: list[str] = []
    for driver in drivers:
        path = by_name[driver]
        order += [needed for needed in (*reversed(needs[path]), path) if needed not in order]
    return order


def _cpio_entry(name: str, mode: int, content: bytes) -> bytes:
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (0, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + encoded) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
