"""Raw block devices: zeroing, copying, counting openers, recognising what is on them.

Zeroing uses BLKZEROOUT, which the kernel does without data crossing into this process; where a device refuses it,
zeros are written. Every change is flushed with fsync before it counts as done.
Sources: linux/fs.h (ioctl numbers), lib/mm block/ioctl.c, ext4 and xfs super blocks (Documentation/filesystems).
"""

import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aoe_core.errors import CommandFailed, NotFound
from aoe_core.host.contracts import Runner
from aoe_core.units import MIB

BLKDISCARD = 0x1277
BLKZEROOUT = 0x127F
BLKGETSIZE64 = 0x80081272

MKFS_LABEL = "aoe-mkfs"
"""The label a file system carries until its mkfs is known to be complete; such a device counts as blank."""

_CHUNK_BYTES = 4 * MIB


class HostBlockDevices:
    """BlockDevices of this host."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def size_bytes(self, path: str) -> int:
        """Return a device's size (BLKGETSIZE64)."""
        with _opened(path, os.O_RDONLY) as descriptor:
            return _size_bytes(descriptor)

    def zero(self, path: str, offset_bytes: int, length_bytes: int, *, discard: bool = False) -> None:
        """Zero a range and flush it."""
        with _opened(path, os.O_WRONLY) as descriptor:
            span = struct.pack("QQ", offset_bytes, length_bytes)
            if discard:
                # A device without discard is zeroed all the same, which is what counts.
                with suppress(OSError):
                    fcntl.ioctl(descriptor, BLKDISCARD, span)
            try:
                fcntl.ioctl(descriptor, BLKZEROOUT, span)
            except OSError:
                _write_zeros(descriptor, path, offset_bytes, length_bytes)
            _sync(descriptor, path)

    def copy(self, source: str, target: str, offset_bytes: int, length_bytes: int) -> None:
        """Copy a range and flush it."""
        with _opened(source, os.O_RDONLY) as reader, _opened(target, os.O_WRONLY) as writer:
            try:
                at, end = offset_bytes, offset_bytes + length_bytes
                while at < end:
                    data = os.pread(reader, min(_CHUNK_BYTES, end - at), at)
                    if not data:
                        raise CommandFailed(f"{source} ends at byte {at}, before {end}; the copy cannot be complete")
                    at += os.pwrite(writer, data, at)
            except OSError as error:
                raise CommandFailed(
                    f"copying {source} to {target} failed ({error.strerror}); look at the disks"
                ) from error
            _sync(writer, target)

    def open_count(self, path: str) -> int:
        """Return device-mapper's open count (the kernel's own number, /sys/block has none)."""
        number = Path(_resolve(path)).name
        finished = self._runner.run(
            ["dmsetup", "info", "--columns", "--noheadings", "--options", "open", f"/dev/{number}"], timeout_s=30
        )
        if finished.code != 0 or not finished.stdout.strip().isdigit():
            raise CommandFailed(f"{path}: its openers could not be counted (dmsetup exit {finished.code})")
        return int(finished.stdout)

    def signature(self, path: str) -> str:
        """Return what is on the device, asking blkid's low-level probe and reading the ends."""
        finished = self._runner.run(
            ["blkid", "--probe", "--output", "export", "--match-tag", "TYPE", "--match-tag", "LABEL",
             "--match-tag", "PTTYPE", path],
            timeout_s=60,
        )  # fmt: skip
        found = dict(line.split("=", 1) for line in finished.stdout.splitlines() if "=" in line)
        if finished.code == 0 and found:
            if found.get("LABEL") == MKFS_LABEL:
                return MKFS_LABEL
            return found.get("TYPE") or f"partition-table-{found.get('PTTYPE', 'unknown')}"
        if finished.code == 8:  # Ambivalent low-level probing result (blkid(8)).
            return "ambiguous"
        if finished.code not in (0, 2):
            raise CommandFailed(f"{path} could not be examined (blkid exit {finished.code}); look at the disk")
        # Exit 2: nothing recognised, or unreadable. Reading tells which.
        with _opened(path, os.O_RDONLY) as descriptor:
            size_bytes = _size_bytes(descriptor)
            for offset_bytes in (0, max(0, size_bytes - MIB)):
                try:
                    data = os.pread(descriptor, min(MIB, size_bytes), offset_bytes)
                except OSError as error:
                    raise CommandFailed(f"{path} cannot be read ({error.strerror}); look at the disk") from error
                if data.strip(b"\0"):
                    return "unknown-data"
        return ""


def flush_device(path: str) -> None:
    """Have a device write out what is in its cache. Raises: CommandFailed."""
    try:
        with _opened(path, os.O_RDONLY) as descriptor:
            _sync(descriptor, path)
    except NotFound as error:
        raise CommandFailed(str(error)) from error


def _resolve(path: str) -> str:
    return os.path.realpath(path)


@contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"device {path} does not exist; check that its volume is active") from error
    except OSError as error:
        raise CommandFailed(f"device {path} cannot be opened ({error.strerror}); look at the disk") from error
    try:
        if not stat.S_ISBLK(os.fstat(descriptor).st_mode):
            raise NotFound(f"{path} is no block device; check that its volume is active")
        yield descriptor
    finally:
        os.close(descriptor)


def _size_bytes(descriptor: int) -> int:
    return int(struct.unpack("Q", fcntl.ioctl(descriptor, BLKGETSIZE64, bytes(8)))[0])


def _write_zeros(descriptor: int, path: str, offset_bytes: int, length_bytes: int) -> None:
    zeros = bytes(_CHUNK_BYTES)
    at, end = offset_bytes, offset_bytes + length_bytes
    try:
        while at < end:
            at += os.pwrite(descriptor, zeros[: min(_CHUNK_BYTES, end - at)], at)
    except OSError as error:
        raise CommandFailed(f"zeroing {path} failed at byte {at} ({error.strerror}); look at the disk") from error


def _sync(descriptor: int, path: str) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise CommandFailed(f"flushing {path} failed ({error.strerror}); look at the disk") from error
