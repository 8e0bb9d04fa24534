"""The two hosts the contract tests run on: one in memory, one a lab machine.

A bed carries everything a contract is about and what a test needs around it: raw reads and writes, somebody who holds
a device open, a target on the other end of the wire. Both beds offer the same; the tests know no difference.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from aoe_core.host import contracts
from aoe_core.host.exports import ExportFile, ExportFiles, ExportState
from aoe_core.model import AccessMode, Address, Durability, Mac, NodeName, SanName, Serial, VolumeId
from aoe_core.units import GIB, MIB

GROUP_BYTES = 1 * GIB
POOL_BYTES = 128 * MIB
FOREIGN_MAC = Mac("52:54:00:ff:ff:01")
"""A card that no machine here has."""


class Target(Protocol):
    """A target on the other end of the wire."""

    mac: Mac

    def stop(self) -> None:
        """Fall silent, as a machine without power does."""

    def start(self) -> None:
        """Serve (again), with the size the backing has now."""

    def grow(self, size_bytes: int) -> None:
        """Make the backing larger; the running exporter does not notice."""

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Return what lies on the backing."""


class Guests(Protocol):
    """Domains of the host's hypervisor, and what befalls them. Each is given by its UUID."""

    def running(self, *, slots: bool = True) -> str:
        """Return a persistent domain that runs, listens, and has no disk of a test; with `slots`, some can be plugged
        in, without it none."""

    def shut_off(self) -> str:
        """Return a persistent domain that does not run."""

    def transient(self) -> str:
        """Return a domain that runs and has no configuration."""

    def name(self, uuid: str) -> str:
        """Return a domain's name."""

    def deaf(self, uuid: str) -> AbstractContextManager[None]:
        """Have the guest ignore what it is asked; afterwards it listens, to what it was asked meanwhile too."""

    def stop(self, uuid: str) -> None:
        """End a guest at once."""

    def save(self, uuid: str) -> None:
        """Put a guest to sleep, its memory on disk."""

    def rename(self, uuid: str) -> str:
        """Give a domain that does not run another name, and return that."""

    def undefine(self, uuid: str) -> None:
        """Take a domain's configuration away."""

    def start_with_host(self, uuid: str) -> None:
        """Have a guest start whenever its host does."""

    def daemon_away(self) -> AbstractContextManager[None]:
        """Have the hypervisor's daemon answer nobody; guests run on."""


class Bed(Protocol):
    """One host under test."""

    lvm: contracts.Lvm
    blocks: contracts.BlockDevices
    attached_blocks: contracts.BlockDevices
    """The same devices as a compute node judges them."""
    export_files: ExportFiles
    export_units: contracts.ExportUnits
    initiator: contracts.Initiator
    segments: contracts.Segments
    ingress: contracts.IngressRules
    mounts: contracts.Mounts
    filesystems: contracts.FileSystems
    hypervisor: contracts.Hypervisor
    links: contracts.DeviceLinks
    guests: Guests | None
    """None on a host without a hypervisor."""
    vg: str
    """A volume group of `GROUP_BYTES` with one thin pool in it."""
    thin_pool: str
    interface: str
    mac: Mac
    directory: str
    """An existing directory to mount below."""

    def records(self) -> contracts.RecordFiles:
        """Return the record store; each call makes another object on the same directory."""

    def leave_temporary(self, name: str) -> None:
        """Leave in the record store what a write that was cut short leaves."""

    def write(self, path: str, offset_bytes: int, data: bytes) -> None:
        """Write to a device and sync."""

    def read(self, path: str, offset_bytes: int, length_bytes: int) -> bytes:
        """Read from a device."""

    def opened(self, path: str) -> AbstractContextManager[None]:
        """Have somebody hold a device open."""

    def busy(self, directory: str) -> AbstractContextManager[None]:
        """Have somebody hold a file open below a directory."""

    def write_file(self, mounted_at: str, name: str, content: bytes) -> None:
        """Write a file and sync."""

    def read_file(self, mounted_at: str, name: str) -> bytes:
        """Read a file. Raises: KeyError or FileNotFoundError."""

    def link(self, path: str) -> None:
        """Make a symbolic link."""

    def add_foreign_group(self) -> str:
        """Make a volume group that belongs to another host and return its name."""

    def restarted_lvm(self) -> contracts.Lvm:
        """Return the Lvm of a process that was started only now."""

    def change_running(self, vg: str) -> AbstractContextManager[None]:
        """Have a change of a VG run whose caller is gone."""

    def lock_held(self, address: Address) -> AbstractContextManager[None]:
        """Have a former exporter hold an export's lock."""

    def serve(
        self, address: Address, *, serial: str = "abcdefghi", size_bytes: int = 16 * MIB, twin: bool = False,
        writable: bool = True, admitted: Mac | None = None,
    ) -> Target:  # fmt: skip
        """Start a target on the wire; `twin` makes it another one, with a MAC of its own."""

    def flush_rules(self) -> None:
        """Lose every nftables rule, as somebody else's reload does."""

    def kill_mkfs(self, device: str, filesystem: str) -> Iterator[int]:
        """Start a mkfs again and again, each time killed a little later, and yield after each kill."""

    def wait_out_deadsecs(self, touch: Callable[[], object]) -> None:
        """Have I/O wait for longer than aoe_deadsecs."""

    def settle(self) -> None:
        """Wait until udev has looked at every new or changed device: it opens them to do so."""

    def eventually(self, what: str, holds: Callable[[], bool]) -> None:
        """Wait for something that comes by itself. Raises: AssertionError when it does not."""


def export_file(interface: str, address: Address, device: str, size_bytes: int) -> ExportFile:
    """Return a live export of a device, to a card that no machine here has."""
    return ExportFile(
        address=address,
        state=ExportState.LIVE,
        volume_id=VolumeId("contract"),
        device=device,
        serial=Serial("abcdefghi"),
        node=NodeName("compute"),
        node_id="compute|0123abcd|main=525400ffff01",
        boot="0123abcd",
        mode=AccessMode.SINGLE_NODE_SINGLE_WRITER,
        writable=True,
        block=True,
        san=SanName("main"),
        interface=interface,
        macs=(FOREIGN_MAC,),
        durability=Durability.SYNC,
        buffers=16,
        exporter="/usr/sbin/vblade",
        granted_s=1,
        size_bytes=size_bytes,
    )
