"""Sizes: bytes in, words out, and back. Every size in this project is an `int` named `…_bytes`."""

import re

from aoe_core.errors import Invalid

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
SECTOR_BYTES = 512
"""One ATA sector, the unit of AoE and of /sys/block/*/size."""

_STEPS = ((1024**4, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))


def round_up(size_bytes: int, step_bytes: int) -> int:
    """Return the smallest multiple of `step_bytes` that is at least `size_bytes`."""
    return -(-size_bytes // step_bytes) * step_bytes


def format_bytes(size_bytes: int) -> str:
    """Return a size as people read it, exact when it divides, else with one decimal: `1 GiB`, `1.5 GiB`, `700 B`."""
    for step_bytes, name in _STEPS:
        if size_bytes >= step_bytes:
            whole, rest = divmod(size_bytes, step_bytes)
            return f"{whole} {name}" if rest == 0 else f"{size_bytes / step_bytes:.1f} {name}"
    return f"{size_bytes} B"


def parse_bytes(text: str) -> int:
    """Return the bytes of a size as people write it: `1073741824`, `1GiB`, `1 GiB`, `1g`. Raises: Invalid."""
    match = re.fullmatch(r"(\d{1,20})\s*(?:([KMGT])(?:iB)?|B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise Invalid(f"{text[:40]!r} is no size; write a number of bytes, or one with KiB, MiB, GiB or TiB")
    step_bytes = next((step for step, name in _STEPS if match[2] and name.startswith(match[2].upper())), 1)
    return int(match[1]) * step_bytes
