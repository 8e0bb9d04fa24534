"""The storage side of a host, as one value: what the engine is given to act with."""

from collections.abc import Callable
from dataclasses import dataclass

from aoe_core.host.contracts import BlockDevices, ExportUnits, IngressRules, Lvm, Segments
from aoe_core.host.exports import ExportFiles
from aoe_core.model import Mac, VolumeId


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageHost:
    """LVM, block devices, export files and units of one machine, and its clock."""

    lvm: Lvm
    blocks: BlockDevices
    export_files: ExportFiles
    export_units: ExportUnits
    segments: Segments
    ingress: IngressRules | None = None
    """The SAN interfaces' rules; None where somebody else sees to them."""
    interface_mac: Callable[[str], Mac | None]
    """The MAC address of a network interface, None when there is no such interface."""
    is_staged: Callable[[VolumeId], bool]
    """Whether a volume is staged, or half-staged, on this very machine. Raises: CommandFailed."""
    now_s: Callable[[], int]
    """Seconds since the epoch."""
