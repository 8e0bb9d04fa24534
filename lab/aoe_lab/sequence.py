"""A writer that can be held to its word, run on a lab machine: `aoe-python -m aoe_lab.sequence write|check …`.

`write` fills 4 KiB blocks of a device or file in order, each with its number, a salt and a checksum, one synchronous
direct write after the other, and prints the number of each write that was acknowledged. `check` reads back and says,
as JSON, which of the blocks 0..last hold what was written there. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import sys

BLOCK_BYTES = 4096


def block(number: int, salt: str) -> bytes:
    """Return one block: number, salt and the hash of both, repeated to its full length."""
    head = struct.pack(">Q", number) + salt.encode().ljust(24, b"\0")[:24]
    return (head + hashlib.sha256(head).digest()) * (BLOCK_BYTES // 64)


def write(path: str, salt: str, count: int, rounds: int = 1) -> None:
    """Write `count` blocks `rounds` times over, printing each acknowledged write; block n of round r is n + r·count."""
    descriptor = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_SYNC)
    buffer = mmap.mmap(-1, BLOCK_BYTES)
    for number in range(count * rounds):
        buffer.seek(0)
        buffer.write(block(number, salt))
        os.pwrite(descriptor, buffer, (number % count) * BLOCK_BYTES)
        print(number, flush=True)
    os.close(descriptor)


def check(path: str, salt: str, first: int, last: int, count: int) -> dict[str, object]:
    """Compare what is at the place of writes first..last of a writer over `count` blocks."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, BLOCK_BYTES)
    wrong = []
    for number in range(first, last + 1):
        os.preadv(descriptor, [buffer], (number % count) * BLOCK_BYTES)
        if buffer[:] != block(number, salt):
            wrong.append(number)
    os.close(descriptor)
    return {"checked": last - first + 1, "wrong": len(wrong), "first_wrong": wrong[0] if wrong else None}


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    if verb == "write":
        write(words[0], words[1], int(words[2]), int(words[3]) if len(words) > 3 else 1)
    elif verb == "check":
        print(json.dumps(check(words[0], words[1], int(words[2]), int(words[3]), int(words[4]))))
    else:
        sys.exit(f"unknown verb {verb!r}: write PATH SALT COUNT [ROUNDS] | check PATH SALT FIRST LAST COUNT")
