"""What guests' disks are made with, as one value."""

from collections.abc import Callable
from dataclasses import dataclass

from aoe_core.host.contracts import DeviceLinks, Hypervisor, RecordFiles
from aoe_core.locks import HostLocks


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestHost:
    """Hypervisor, links and guest records of one machine, and its clock."""

    hypervisor: Hypervisor
    links: DeviceLinks
    record_files: RecordFiles
    locks: HostLocks
    now_s: Callable[[], float]
    """A clock that only ever goes forwards."""
    sleep: Callable[[float], None]
    """Waits some seconds."""
