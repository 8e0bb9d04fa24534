"""What the fake file systems leave on a device: one superblock, one directory and one block per file, as real bytes.

Enough for another machine to find the file system, its label, its size, whether its journal must be replayed, and
what its files hold; nothing of ext4's or xfs's own layout.
"""

import json
from dataclasses import asdict, dataclass
from typing import Protocol, Self

SUPERBLOCK_BYTES = 4096
DIRECTORY_OFFSET_BYTES = 16 * 4096
FILES_OFFSET_BYTES = 32 * 4096
FILE_BYTES = 4096
_MAGIC = b"file system in memory\n"


class Readable(Protocol):
    """Something with bytes at offsets."""

    path: str
    size_bytes: int

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Return bytes."""


class Writable(Readable, Protocol):
    """Something whose bytes can be changed."""

    def write(self, offset_bytes: int, data: bytes) -> None:
        """Change bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Superblock:
    """The first block of a file system."""

    filesystem: str
    uuid: str
    label: str
    size_bytes: int
    """As far as the file system fills its device."""
    unclean: bool = False
    """The journal holds something: it was mounted for writing and not unmounted."""
    damaged: bool = False
    """Only a person can repair it."""

    @classmethod
    def find(cls, device: Readable) -> Self | None:
        """Return the superblock of a device, or None when there is no file system on it."""
        if device.size_bytes < SUPERBLOCK_BYTES:
            return None
        text = device.read(0, SUPERBLOCK_BYTES).rstrip(b"\0")
        return cls(**json.loads(text[len(_MAGIC) :])) if text.startswith(_MAGIC) else None

    def put(self, device: Writable) -> None:
        """Write it over the device's first block."""
        text = _MAGIC + json.dumps(asdict(self)).encode()
        device.write(0, text.ljust(SUPERBLOCK_BYTES, b"\0"))


def read_files(device: Readable) -> dict[str, bytes]:
    """Return name → content of every file on a device's file system."""
    text = device.read(DIRECTORY_OFFSET_BYTES, SUPERBLOCK_BYTES).rstrip(b"\0")
    sizes: dict[str, int] = json.loads(text) if text else {}
    return {
        name: device.read(FILES_OFFSET_BYTES + number * FILE_BYTES, size)
        for number, (name, size) in enumerate(sizes.items())
    }


def write_file(device: Writable, name: str, content: bytes) -> None:
    """Write one file of at most 4 KiB into a device's file system."""
    text = device.read(DIRECTORY_OFFSET_BYTES, SUPERBLOCK_BYTES).rstrip(b"\0")
    sizes: dict[str, int] = json.loads(text) if text else {}
    sizes[name] = len(content)
    number = list(sizes).index(name)
    device.write(FILES_OFFSET_BYTES + number * FILE_BYTES, content.ljust(FILE_BYTES, b"\0"))
    device.write(DIRECTORY_OFFSET_BYTES, json.dumps(sizes).encode().ljust(SUPERBLOCK_BYTES, b"\0"))
