"""The compute side of a host, as one value: what the attach engine is given to act with."""

from collections.abc import Callable
from dataclasses import dataclass

from aoe_core.host.contracts import BlockDevices, FileSystems, IngressRules, Initiator, Mounts, RecordFiles
from aoe_core.locks import HostLocks
from aoe_core.model import Mac


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeHost:
    """Initiator, ingress rules, mounts, file systems and stage records of one machine, and its clock."""

    initiator: Initiator
    ingress: IngressRules
    mounts: Mounts
    filesystems: FileSystems
    blocks: BlockDevices
    record_files: RecordFiles
    locks: HostLocks
    """Several processes of a machine may stage volumes: its node server, and commands for guests."""
    interface_mac: Callable[[str], Mac]
    """The MAC address of a network interface; raises Unreachable when it is missing or down."""
    boot: str
    """The first eight hex digits of the kernel's boot_id."""
    now_s: Callable[[], int]
    """Seconds since the epoch."""
    sleep: Callable[[float], None]
    """Waits some seconds."""
