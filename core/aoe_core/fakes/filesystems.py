"""mkfs, fsck and growth in memory, on the superblocks of `superblocks`.

A mkfs writes in several steps and may be killed between any two. As the real one it first marks the device near its
end, then writes tables without a superblock, which alone nobody recognises, and only then the superblock with its
label. Another machine sees what reached the device.
"""

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from aoe_core.errors import CommandFailed, InUse, NotFound, Unsupported
from aoe_core.fakes.blocks import Device
from aoe_core.fakes.superblocks import DIRECTORY_OFFSET_BYTES, SUPERBLOCK_BYTES, Superblock, read_files
from aoe_core.host.contracts import Usage
from aoe_core.units import KIB, MIB

if TYPE_CHECKING:
    from aoe_core.fakes.world import FakeMachine, Process

_KNOWN = ("ext4", "xfs")
_SMALLEST_BYTES = {"ext4": 1 * MIB, "xfs": 300 * MIB}
"""mkfs.xfs of xfsprogs 6 refuses anything smaller."""
_LABEL_LENGTH = {"ext4": 16, "xfs": 12}
_UNFINISHED = "aoe-mkfs"
_MARK = b"a file system is being made here"
_TABLES_OFFSET_BYTES = 3 * 4096
_OVERHEAD_BYTES = 256 * KIB
_BYTES_PER_INODE = 16 * KIB


class FakeFileSystems:
    """`FileSystems` in memory."""

    def __init__(self, process: "Process") -> None:
        self._process = process

    def make(self, device: str, filesystem: str, label: str) -> None:
        if filesystem not in _KNOWN:
            raise Unsupported(f"file system {filesystem!r} is not offered; ext4 and xfs are")
        with self._process.step(f"mkfs.{filesystem} {device}: mark") as machine:
            disk = _unused(machine, device)
            if disk.size_bytes < _SMALLEST_BYTES[filesystem]:
                raise CommandFailed(f"{device} is too small for {filesystem} ({disk.size_bytes} bytes)")
            found = Superblock.find(disk)
            if found is not None and found.label != _UNFINISHED:
                machine.world.report_harm(f"mkfs of {device} over a {found.filesystem} that was complete")
            disk.write(_mark_offset_bytes(disk), _MARK)
            disk.flush()
        with self._process.step(f"mkfs.{filesystem} {device}: tables") as machine:
            disk = _unused(machine, device)
            disk.write_zeros(0, DIRECTORY_OFFSET_BYTES + SUPERBLOCK_BYTES)
            disk.write(_TABLES_OFFSET_BYTES, b"inode tables")
        with self._process.step(f"mkfs.{filesystem} {device}: superblock") as machine:
            disk = _unused(machine, device)
            Superblock(
                filesystem=filesystem,
                uuid=hashlib.sha256(f"{device} {machine.world.next_number()}".encode()).hexdigest()[:12],
                label=label[: _LABEL_LENGTH[filesystem]],
                size_bytes=disk.size_bytes,
            ).put(disk)
        with self._process.step(f"mkfs.{filesystem} {device}: flush") as machine:
            _unused(machine, device).flush()

    def has_mark(self, device: str) -> bool:
        """Say whether a mkfs was under way on the device, as `HostFileSystems.has_mark` does."""
        with self._process.reading() as machine:
            disk = machine.get_device(device)
            return disk.read(_mark_offset_bytes(disk), len(_MARK)) == _MARK

    def set_label(self, device: str, filesystem: str, label: str) -> None:
        with self._process.step(f"label {device} {label!r}") as machine:
            disk = _unused(machine, device)
            superblock = _superblock(disk, filesystem)
            replace(superblock, label=label[: _LABEL_LENGTH[filesystem]]).put(disk)
            disk.flush()
        if not label and self.has_mark(device):
            with self._process.step(f"label {device}: take the mark away") as machine:
                disk = _unused(machine, device)
                disk.write(_mark_offset_bytes(disk), bytes(len(_MARK)))
                disk.flush()

    def check(self, device: str, filesystem: str) -> None:
        if filesystem == "xfs":
            return  # It replays its log when it is mounted, and its repair is for a person.
        with self._process.step(f"fsck {device}") as machine:
            disk = _unused(machine, device)
            superblock = _superblock(disk, filesystem)
            if superblock.damaged:
                raise CommandFailed(f"the {filesystem} on {device} needs a person; run fsck by hand")
            if superblock.unclean:
                replace(superblock, unclean=False).put(disk)
                disk.flush()

    def grow(self, device: str, mounted_at: str, filesystem: str) -> None:
        with self._process.step(f"grow {device}") as machine:
            disk = machine.get_device(device)
            mounts = machine.mounts.of_disk(disk)
            if not any(one.mount.target == mounted_at for one in mounts):
                raise CommandFailed(f"{device} is not mounted at {mounted_at}; it was not grown")
            if not mounts[0].writable:
                raise CommandFailed(f"{device} is mounted read-only; it was not grown")
            replace(_superblock(disk, filesystem), size_bytes=disk.size_bytes).put(disk)
            disk.flush()

    def usage(self, path: str) -> Usage:
        with self._process.reading() as machine:
            if machine.mounts.kind(path) == "absent":
                raise NotFound(f"{path} does not exist")
            top = machine.mounts.topmost(path)
            superblock = Superblock.find(top.disk) if top is not None and top.disk is not None else None
            total_bytes = (superblock.size_bytes if superblock else 1024 * MIB) - _OVERHEAD_BYTES
            files = read_files(top.disk) if superblock and top is not None and top.disk is not None else {}
            used_bytes = sum(-(-len(content) // SUPERBLOCK_BYTES) * SUPERBLOCK_BYTES for content in files.values())
            inodes = total_bytes // _BYTES_PER_INODE
            return Usage(
                total_bytes=total_bytes,
                used_bytes=used_bytes,
                available_bytes=total_bytes - used_bytes,
                total_inodes=inodes,
                used_inodes=11 + len(files),
                available_inodes=inodes - 11 - len(files),
            )

    def set_read_only(self, device: str, *, read_only: bool) -> None:
        with self._process.step(f"blockdev --set{'ro' if read_only else 'rw'} {device}") as machine:
            machine.get_device(device).read_only = read_only


def _mark_offset_bytes(disk: Device) -> int:
    return max(0, disk.size_bytes - MIB)


def _unused(machine: "FakeMachine", device: str) -> Device:
    disk = machine.get_device(device)
    if machine.mounts.of_disk(disk):
        raise InUse(f"{device} is mounted; unmount it first")
    return disk


def _superblock(disk: Device, filesystem: str) -> Superblock:
    superblock = Superblock.find(disk)
    if superblock is None or superblock.filesystem != filesystem:
        raise CommandFailed(f"{disk.path} holds no {filesystem}")
    return superblock
