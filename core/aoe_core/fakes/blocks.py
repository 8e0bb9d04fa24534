"""Block devices in memory: sparse content in blocks of 4 KiB, seen through the page cache of a machine.

A write is dirty until it is flushed; a power cut takes what is dirty, the death of a process does not. Content is real
bytes, so that what one machine writes another one reads, and old data in reused space can be found.
"""

from typing import TYPE_CHECKING, Protocol

from aoe_core.errors import CommandFailed
from aoe_core.fakes.superblocks import Superblock
from aoe_core.units import MIB

if TYPE_CHECKING:
    from aoe_core.fakes.world import FakeMachine, Process

BLOCK_BYTES = 4096
_KEPT_BLOCKS = 64
"""A longer read leaves nothing in the page cache, to keep the fakes quick."""


class Medium(Protocol):
    """Where blocks end up for good. A block of zeros is `b""`; others have no zero at their end."""

    def load(self, block: int) -> bytes:
        """Return a block."""

    def store(self, block: int, data: bytes) -> None:
        """Keep a block through any power cut."""

    def filled(self, first: int, end: int) -> list[int]:
        """Return the numbers in [first, end) of the blocks that are not zero."""


class SparseMedium:
    """Content of its own, as an imposter or a foreign disk has it."""

    def __init__(self) -> None:
        self._blocks: dict[int, bytes] = {}

    def load(self, block: int) -> bytes:
        return self._blocks.get(block, b"")

    def store(self, block: int, data: bytes) -> None:
        if data:
            self._blocks[block] = data
        else:
            self._blocks.pop(block, None)

    def filled(self, first: int, end: int) -> list[int]:
        return sorted(block for block in self._blocks if first <= block < end)


class Device:
    """A block device of one machine. Openers are named, as `lsof` would name them."""

    def __init__(self, path: str, number: str, medium: Medium, size_bytes: int) -> None:
        self.path = path
        self.number = number
        """`major:minor`."""
        self.medium = medium
        self.size_bytes = size_bytes
        self.read_only = False
        self.openers: list[str] = []
        self.dirty: dict[int, bytes] = {}
        self.keeps_pages = False
        """Whether what was read stays in the page cache while the device is open: then it is not read again, and what
        others write to the medium meanwhile is not seen. Exporters share this machine's page cache, wires do not."""
        self.pages: dict[int, bytes] = {}

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Return bytes, the dirty ones first. Raises: CommandFailed beyond the end."""
        self._reach(offset_bytes, length_bytes)
        first, end = offset_bytes // BLOCK_BYTES, -(-(offset_bytes + length_bytes) // BLOCK_BYTES)
        whole = bytearray((end - first) * BLOCK_BYTES)
        for block, data in self._load(first, end).items():
            start = (block - first) * BLOCK_BYTES
            whole[start : start + len(data)] = data
        skipped = offset_bytes - first * BLOCK_BYTES
        return bytes(whole[skipped : skipped + length_bytes])

    def _load(self, first: int, end: int) -> dict[int, bytes]:
        known = {block: self.dirty[block] for block in self.dirty if first <= block < end}
        if self.keeps_pages:
            known = {block: self.pages[block] for block in self.pages if first <= block < end} | known
        if len(known) == end - first:
            return known
        found = {block: self.medium.load(block) for block in self.medium.filled(first, end)}
        if self.keeps_pages and self.openers and end - first <= _KEPT_BLOCKS:
            self.pages.update({block: found.get(block, b"") for block in range(first, end) if block not in known})
        return found | known

    def has_data(self, offset_bytes: int, length_bytes: int) -> bool:
        """Say whether any block that a range touches is other than zero."""
        self._reach(offset_bytes, length_bytes)
        first, end = offset_bytes // BLOCK_BYTES, -(-(offset_bytes + length_bytes) // BLOCK_BYTES)
        cached = {block for block in self.dirty if first <= block < end}
        return any(self.dirty[block] for block in cached) or bool(set(self.medium.filled(first, end)) - cached)

    def write(self, offset_bytes: int, data: bytes) -> None:
        """Change bytes in the page cache. Raises: CommandFailed beyond the end or on a read-only device."""
        self._reach(offset_bytes, len(data))
        self._admit_write()
        at, end_bytes = offset_bytes, offset_bytes + len(data)
        while at < end_bytes:
            block, inner = divmod(at, BLOCK_BYTES)
            taken = min(BLOCK_BYTES - inner, end_bytes - at)
            piece = data[at - offset_bytes : at - offset_bytes + taken]
            if taken < BLOCK_BYTES:
                # Only a part of a block: the rest of it has to be read first.
                start = block * BLOCK_BYTES
                whole = bytearray(self.read(start, min(BLOCK_BYTES, self.size_bytes - start)))
                whole[inner : inner + taken] = piece
                piece = bytes(whole)
            self.dirty[block] = piece.rstrip(b"\0")
            at += taken

    def write_zeros(self, offset_bytes: int, length_bytes: int) -> None:
        """Write zeros over a range without walking through what is zero already."""
        self._reach(offset_bytes, length_bytes)
        self._admit_write()
        end_bytes = offset_bytes + length_bytes
        first, end = -(-offset_bytes // BLOCK_BYTES), end_bytes // BLOCK_BYTES
        if first > end:
            self.write(offset_bytes, bytes(length_bytes))
            return
        self.write(offset_bytes, bytes(first * BLOCK_BYTES - offset_bytes))
        self.write(end * BLOCK_BYTES, bytes(end_bytes - end * BLOCK_BYTES))
        for block in {*self.medium.filled(first, end), *(one for one in self.dirty if first <= one < end)}:
            self.dirty[block] = b""

    def flush(self) -> None:
        """Bring everything dirty to the medium, in the order of the blocks."""
        for block in sorted(self.dirty):
            self.medium.store(block, self.dirty[block])
            if self.keeps_pages and self.openers:
                self.pages[block] = self.dirty[block]
            del self.dirty[block]

    def lose_dirty(self, *, keep_every: int = 0) -> None:
        """Lose the page cache to a power cut; with `keep_every` n, each n-th dirty block made it out in time."""
        for count, block in enumerate(sorted(self.dirty), start=1):
            if keep_every and count % keep_every == 0:
                self.medium.store(block, self.dirty[block])
        self.dirty.clear()
        self.pages.clear()

    def open(self, opener: str) -> None:
        """Count one more opener."""
        self.openers.append(opener)

    def close(self, opener: str) -> None:
        """Count one opener less; the last one out flushes."""
        self.openers.remove(opener)
        if not self.openers:
            self.flush()
            self.pages.clear()

    def _reach(self, offset_bytes: int, length_bytes: int) -> None:
        if offset_bytes < 0 or length_bytes < 0 or offset_bytes + length_bytes > self.size_bytes:
            raise CommandFailed(
                f"{self.path} ends at {self.size_bytes} bytes; {offset_bytes}+{length_bytes} lies beyond it"
            )

    def _admit_write(self) -> None:
        if self.read_only:
            raise CommandFailed(f"{self.path} is read-only; nothing was written")


class FakeBlockDevices:
    """`BlockDevices` in memory. Each range is written in two halves and then flushed: three steps to be killed at."""

    def __init__(self, process: "Process") -> None:
        self._process = process

    def size_bytes(self, path: str) -> int:
        with self._process.reading() as machine:
            return _opened(machine, path).size_bytes

    def zero(self, path: str, offset_bytes: int, length_bytes: int, *, discard: bool = False) -> None:
        del discard  # What a discard leaves is undefined, so the unkind answer is: everything.
        half = length_bytes // 2
        for start, length in ((offset_bytes, half), (offset_bytes + half, length_bytes - half)):
            with self._process.step(f"zero {path} {start}+{length}") as machine:
                _opened(machine, path).write_zeros(start, length)
        self._flush(path)

    def copy(self, source: str, target: str, offset_bytes: int, length_bytes: int) -> None:
        half = length_bytes // 2
        for start, length in ((offset_bytes, half), (offset_bytes + half, length_bytes - half)):
            with self._process.step(f"copy {source} {target} {start}+{length}") as machine:
                origin, copy = _opened(machine, source), _opened(machine, target)
                if start + length > origin.size_bytes:
                    raise CommandFailed(f"{source} ends before {start + length}; the copy cannot be complete")
                copy.write_zeros(start, length)
                for data_start, data in _pieces(origin, start, length):
                    copy.write(data_start, data)
        self._flush(target)

    def open_count(self, path: str) -> int:
        with self._process.reading() as machine:
            return len(machine.get_device(path).openers)

    def signature(self, path: str) -> str:
        with self._process.reading() as machine:
            return signature_of(_opened(machine, path))

    def _flush(self, path: str) -> None:
        with self._process.step(f"flush {path}") as machine:
            machine.get_device(path).flush()


class FakeAttachedBlockDevices(FakeBlockDevices):
    """`BlockDevices` of a compute node: it knows the mark of a mkfs that was under way."""

    def signature(self, path: str) -> str:
        found = super().signature(path)
        return "aoe-mkfs" if found == "unknown-data" and self._process.filesystems.has_mark(path) else found


def _opened(machine: "FakeMachine", path: str) -> Device:
    device = machine.get_device(path)
    if not device.size_bytes:
        raise CommandFailed(f"device {path} cannot be opened; its target is gone")
    return device


def signature_of(device: Device) -> str:
    """Say what a device holds, in the words of `BlockDevices.signature`."""
    found = Superblock.find(device)
    if found is not None:
        return "aoe-mkfs" if found.label == "aoe-mkfs" else found.filesystem
    if device.read(4086, 10) == b"SWAPSPACE2":
        return "swap"
    edge = min(MIB, device.size_bytes)
    return "unknown-data" if device.has_data(0, edge) or device.has_data(device.size_bytes - edge, edge) else ""


def _pieces(device: Device, offset_bytes: int, length_bytes: int) -> list[tuple[int, bytes]]:
    """Return the parts of a range that may be other than zero, each within one block."""
    first, end = offset_bytes // BLOCK_BYTES, -(-(offset_bytes + length_bytes) // BLOCK_BYTES)
    blocks = {*device.medium.filled(first, end), *(block for block in device.dirty if first <= block < end)}
    pieces = []
    for block in sorted(blocks):
        start = max(block * BLOCK_BYTES, offset_bytes)
        stop = min((block + 1) * BLOCK_BYTES, offset_bytes + length_bytes)
        pieces.append((start, device.read(start, stop - start)))
    return pieces
