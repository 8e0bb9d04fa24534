"""Sizes: bytes in, words out. Every size in this project is an `int` named `…_bytes`."""

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
