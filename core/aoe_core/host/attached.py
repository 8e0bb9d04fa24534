"""Block devices as a compute node sees them: any of them may have a dead target, or a half-made file system.

Wraps the host's BlockDevices: reads that open the device in this process are bounded, and a device on which nothing is
recognised is asked for the mark of an unfinished mkfs. Writing to devices is the storage side's and refused here.
"""

from collections.abc import Callable

from aoe_core.errors import Unsupported
from aoe_core.host.blocking import BlockingCalls
from aoe_core.host.blocks import MKFS_LABEL
from aoe_core.host.contracts import BlockDevices

_READ_LIMIT_S = 60.0


class AttachedBlockDevices:
    """BlockDevices of a compute node."""

    def __init__(self, devices: BlockDevices, calls: BlockingCalls, has_mark: Callable[[str], bool]) -> None:
        self._devices = devices
        self._calls = calls
        self._has_mark = has_mark

    def size_bytes(self, path: str) -> int:
        """Return the device's size."""
        return self._calls.run(path, lambda: self._devices.size_bytes(path), timeout_s=_READ_LIMIT_S)

    def open_count(self, path: str) -> int:
        """Return how many openers the kernel counts."""
        return self._devices.open_count(path)

    def signature(self, path: str) -> str:
        """Return what is found on the device, `aoe-mkfs` for a mkfs of ours cut before it wrote its label."""
        found = self._calls.run(path, lambda: self._devices.signature(path), timeout_s=_READ_LIMIT_S)
        return MKFS_LABEL if found == "unknown-data" and self._has_mark(path) else found

    def zero(self, path: str, offset_bytes: int, length_bytes: int, *, discard: bool = False) -> None:
        """Refuse. Raises: Unsupported."""
        raise Unsupported(f"{path} ({length_bytes} bytes from {offset_bytes}, discard {discard}) is not ours to zero")

    def copy(self, source: str, target: str, offset_bytes: int, length_bytes: int) -> None:
        """Refuse. Raises: Unsupported."""
        raise Unsupported(f"{source} ({length_bytes} bytes from {offset_bytes}) is not ours to copy to {target}")
