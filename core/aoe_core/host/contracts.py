"""What a host can do, as protocols: the seam between deciding (volumes, attach) and doing (this package, the fakes).

Each method is at most one changing step, so that "killed between any two steps" can be tested at every boundary.
Reads return what is there, raise `Unreachable` or `CommandFailed` when they could not find out, and never guess:
absent, present and unknown are three answers.
"""

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from aoe_core.model import Address, Mac

# --- commands ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A command that ended by itself."""

    argv: tuple[str, ...]
    code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def complaint(self) -> str:
        """The last line it wrote to stderr, in at most 200 characters, for the error that names the failure."""
        lines = self.stderr.strip().splitlines()
        return lines[-1].strip()[:200] if lines else "it gave no reason"


class Runner(Protocol):
    """Runs a command of the host without a shell, with LC_ALL=C."""

    def run(self, argv: Sequence[str], *, timeout_s: float, stdin: bytes | None = None) -> Finished:
        """Run `argv` to its end. Raises: Unfinished when the limit passes (the child is killed, and abandoned if the
        kernel holds it); CommandFailed when the program cannot be started."""


# --- durable small files ----------------------------------------------------------------------------------------


class RecordFiles(Protocol):
    """A directory of small text files, each written whole: after a power cut a file is the old one or the new one."""

    def read_all(self) -> dict[str, str]:
        """Return name → text of every record. Half-written leftovers are not records. What is returned survives a
        power cut, also when its writer died between the rename and the fsync of the directory: so the first read of
        each instance syncs the directory."""

    def write(self, name: str, text: str) -> None:
        """Replace or create a record; it survives a power cut once this returns (file and directory are fsynced)."""

    def remove(self, name: str) -> None:
        """Remove a record durably; it is no error when it is absent."""


# --- LVM --------------------------------------------------------------------------------------------------------


class LvKind(enum.Enum):
    """The layouts this driver works with; everything else on a VG is OTHER and left alone."""

    THICK = "thick"
    THIN_POOL = "thin-pool"
    THIN = "thin"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeGroup:
    """A volume group as `lvm fullreport` shows it."""

    name: str
    uuid: str
    size_bytes: int
    free_bytes: int
    extent_bytes: int
    system_id: str
    """Empty when the VG has no owner."""
    foreign: bool
    """Owned by another system id: LVM shows it and refuses to touch it."""
    exported: bool
    partial: bool
    """A physical volume is missing."""
    writable: bool
    devices: tuple[str, ...] = ()
    """Its physical volumes that are there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogicalVolume:
    """A logical volume as `lvm fullreport` shows it."""

    vg: str
    name: str
    kind: LvKind
    size_bytes: int
    tags: frozenset[str]
    thin_pool: str
    """For THIN: the pool's LV name, else empty."""
    origin: str
    """For a thin snapshot: the LV it was taken of, as long as that exists."""
    active: bool
    data_percent: float
    """For THIN_POOL: data used; for THIN: share mapped; else 0."""
    metadata_percent: float
    created_s: int
    zeroing: bool = True
    """For THIN_POOL: new blocks are zeroed before they are seen."""

    @property
    def path(self) -> str:
        """The stable device path."""
        return f"/dev/{self.vg}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LvmReport:
    """All of LVM at one moment, from one command."""

    groups: tuple[VolumeGroup, ...]
    volumes: tuple[LogicalVolume, ...]


class Lvm(Protocol):
    """LVM2. Changes run in transient units of the host, named after their VG: they outlive this process, and a change
    of a VG raises Busy while one that nobody waits for still runs there. Any change raises Unfinished when its end is
    unknown, NoSpace when the VG or pool is full, CommandFailed when LVM refused and changed nothing."""

    def report(self) -> LvmReport:
        """Read everything, with one command. Raises: Busy while a change still runs that was begun by a process which
        is dead by now: what it will leave behind is not known, and nothing may be called absent."""

    def create(self, vg: str, name: str, size_bytes: int, tags: Iterable[str], thin_pool: str = "") -> None:
        """Make and activate a thick LV, or a thin one of virtual size `size_bytes`. Its content is undefined."""

    def snapshot(self, vg: str, origin: str, name: str, tags: Iterable[str], *, writable: bool) -> None:
        """Make a thin snapshot of a thin LV that is activated like any other LV (`-kn`)."""

    def retag(self, vg: str, name: str, *, add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
        """Change tags in one metadata commit."""

    def extend(self, vg: str, name: str, size_bytes: int) -> None:
        """Grow an LV to `size_bytes`; an LV of that size already is left as it is."""

    def rename(self, vg: str, name: str, new_name: str) -> None:
        """Rename an LV, open or not."""

    def activate(self, vg: str, name: str, *, on: bool) -> None:
        """Activate or deactivate an LV."""

    def remove(self, vg: str, name: str) -> None:
        """Remove an LV that nobody has open. Raises: InUse."""


# --- block devices ----------------------------------------------------------------------------------------------


class BlockDevices(Protocol):
    """Raw access to block devices of this host."""

    def size_bytes(self, path: str) -> int:
        """Return the device's size. Raises: NotFound when there is no such block device."""

    def zero(self, path: str, offset_bytes: int, length_bytes: int, *, discard: bool = False) -> None:
        """Write zeros over a range (after discarding it, if asked) and flush them to stable storage."""

    def copy(self, source: str, target: str, offset_bytes: int, length_bytes: int) -> None:
        """Copy a range to the same place of another device and flush it."""

    def open_count(self, path: str) -> int:
        """Return how many openers the kernel counts: processes, mounts, device-mapper tables, exporters."""

    def signature(self, path: str) -> str:
        """Return what is found on the device: a file system's name (`ext4`, `xfs`), `aoe-mkfs` when its label says a
        mkfs of ours was under way, another signature's name, `unknown-data` when the first or last MiB is not zero
        and nothing is recognised, or an empty string for blank."""


# --- exports (storage node) -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportUnit:
    """Whether an export's unit runs, and whether anybody holds its lock."""

    active: bool
    serving: bool
    """The unit's main process is the exporter itself, no longer the wrapper."""
    locked: bool
    """Some process still holds the export's flock: a writer may be stuck in the kernel."""


class ExportUnits(Protocol):
    """The host's `aoe-csi-export@<shelf>.<slot>` units. Each serves what its export file says, and refuses to start
    when the file says anything but live."""

    def start(self, address: Address) -> None:
        """Start the unit; no error when it runs already."""

    def restart(self, address: Address) -> None:
        """Stop and start it, so that it sees a changed file or device size."""

    def stop(self, address: Address) -> None:
        """Stop the unit; no error when it does not run."""

    def states(self) -> Mapping[Address, ExportUnit]:
        """Return every unit that is loaded or whose lock is held."""


# --- initiator (compute node) -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AoEDevice:
    """A device of the kernel's AoE driver (/sys/block/etherd!eS.B and debugfs aoe/eS.B)."""

    address: Address
    up: bool
    closewait: bool
    size_bytes: int
    interface: str
    target_macs: tuple[Mac, ...]
    """Every target the driver would use, from debugfs."""
    open_count: int | None
    """Openers as far as the kernel tells (holders, mounts, an exclusive open); None when it does not tell."""

    @property
    def path(self) -> str:
        """The device node."""
        return f"/dev/etherd/{self.address}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One target's answer to a query sent by this program, not by the kernel's driver."""

    mac: Mac
    serial: str
    """IDENTIFY's serial, `<shelf>.<slot>:<nine characters>`."""
    size_bytes: int


class Segments(Protocol):
    """The Ethernet segments this host's SAN interfaces are on, asked past the kernel's driver."""

    def shelf_users(self, interface: str, shelf: int, *, timeout_s: float) -> tuple[Mac, ...]:
        """Return the cards, other than this interface's own, that answer for any slot of a shelf, listening for the
        whole of `timeout_s`. Blind to targets that do not admit this interface. Raises: Unreachable when the
        interface is missing or down."""


class Initiator(Protocol):
    """The kernel's AoE initiator, and questions asked past it."""

    def probe(self, interface: str, address: Address, *, timeout_s: float) -> tuple[Answer, ...]:
        """Ask the wire who serves an address and identify each that answers, without the kernel's driver learning of
        any (tag bit 31). Returns one Answer per MAC; empty when all are silent for `timeout_s`."""

    def discover(self) -> None:
        """Make the driver query its interfaces once."""

    def revalidate(self, address: Address) -> None:
        """Make the driver identify one known device again (new size, or back from closewait)."""

    def flush(self, address: Address) -> None:
        """Make the driver forget exactly one device. The caller has proven that nobody holds it."""

    def devices(self) -> tuple[AoEDevice, ...]:
        """Return every device the driver knows."""

    def identify(self, address: Address) -> str:
        """Return the serial the driver's device reports (HDIO_GET_IDENTITY). Raises: NotFound, Unreachable."""

    def in_use(self, address: Address) -> bool:
        """Say whether anybody has the device open (an exclusive open is refused, or it has holders or mounts)."""

    def deadsecs(self) -> int:
        """Return aoe_deadsecs as the module has it. Raises: NotFound when the module is not loaded."""


class IngressRules(Protocol):
    """The nftables ingress rules of this host's SAN interfaces (table netdev aoe_csi)."""

    def ensure(self, interfaces: Sequence[str]) -> frozenset[tuple[str, Address, Mac]]:
        """Make the rules stand on these interfaces, with the pins they already have; no error when they do. Returns
        what `pinned` returns, without a second look."""

    def pin(self, interface: str, address: Address, mac: Mac) -> None:
        """Let the initiator hear this target for an address, and no other one. Raises: CommandFailed when the rules
        do not stand on the interface."""

    def unpin(self, interface: str, address: Address) -> None:
        """Let the initiator hear nobody for an address any more."""

    def pinned(self) -> frozenset[tuple[str, Address, Mac]]:
        """Return (interface, address, MAC) of every pin."""


# --- file systems and mounts ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    target: str
    source: str
    """The device path for a file system mounted from one; for a bind of a device node, that node's file system."""
    root: str
    """The path inside the mounted file system: `/` for a whole one, `/etherd/e1.2` for a bound device node."""
    filesystem: str
    device: str
    """`major:minor`."""
    options: frozenset[str]
    """Per-mount options and super-block options together."""


class Mounts(Protocol):
    """Mounting, and what is mounted. Nothing here ever unmounts lazily or by force."""

    def table(self) -> tuple[Mount, ...]:
        """Return every mount this process sees."""

    def mount(self, device: str, target: str, filesystem: str, options: Sequence[str]) -> None:
        """Mount a file system on an existing directory."""

    def bind(self, source: str, target: str, *, read_only: bool, options: Sequence[str] = ()) -> None:
        """Bind-mount a directory or a device node on an existing directory or file."""

    def unmount(self, target: str) -> None:
        """Unmount the topmost mount at a path. Raises: NotFound when there is none; InUse when it is busy; Unfinished
        when the kernel holds it."""

    def make_directory(self, path: str) -> None:
        """Create a directory (and its parents); no error when it exists."""

    def make_file(self, path: str) -> None:
        """Create an empty file as mount point for a device node; no error when it exists."""

    def remove_path(self, path: str) -> None:
        """Remove an empty directory or a mount-point file; no error when it is absent."""

    def kind(self, path: str) -> str:
        """Return what is at a path without following a link: `absent`, `directory`, `file`, `block`, `link`,
        `other`."""

    def resolve(self, path: str) -> str:
        """Return a path as the mount table spells it: links among its parents followed, its last part left alone."""

    def device_number(self, path: str) -> str:
        """Return `major:minor` of the block device node at a path, following links (an LV's path is one). Raises:
        NotFound when there is no block device."""


class FileSystems(Protocol):
    """ext4 and xfs on a device."""

    def make(self, device: str, filesystem: str, label: str) -> None:
        """Make a file system carrying `label`, without discarding. Raises: Unfinished when it was cut short."""

    def set_label(self, device: str, filesystem: str, label: str) -> None:
        """Change an unmounted file system's label; empty clears it."""

    def check(self, device: str, filesystem: str) -> None:
        """Replay the journal and repair what is safe to repair, before mounting. Raises: CommandFailed when the file
        system needs a person."""

    def grow(self, device: str, mounted_at: str, filesystem: str) -> None:
        """Grow a mounted file system to its device; no error when it fills it already."""

    def usage(self, path: str) -> "Usage":
        """Return a mounted file system's numbers."""

    def set_read_only(self, device: str, *, read_only: bool) -> None:
        """Set the block device's read-only flag (BLKROSET)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """statvfs of a mounted file system."""

    total_bytes: int
    used_bytes: int
    available_bytes: int
    total_inodes: int
    used_inodes: int
    available_inodes: int


# --- guests (a machine with a hypervisor) -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainDisk:
    """A disk, of whatever kind, in a domain's XML (libvirt.org/formatdomain.html, "Hard drives")."""

    target: str
    """Its name among the domain's disks, `vdb`; a hint to the guest's kernel at most."""
    bus: str
    """`virtio`, `scsi`, `sata`, …"""
    source: str = ""
    """The path of a block device or file on this host; empty for anything else."""
    serial: str = ""
    alias: str = ""
    """Only aliases that begin with `ua-` stay with a disk when the domain ends."""
    read_only: bool = False
    shareable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A guest as its hypervisor has it at one moment."""

    name: str
    uuid: str
    running: bool
    """Also when it is paused: its process has its disks open."""
    persistent: bool
    """It outlives its end and has a configuration."""
    live: tuple[DomainDisk, ...]
    """What the running guest has; empty when it does not run."""
    config: tuple[DomainDisk, ...]
    """What it has from its next start on; empty when it is not persistent."""
    saved: bool = False
    """Its memory is on disk (`virsh managedsave`): its next start goes on with the disks it had then, whatever its
    configuration says."""
    autostart: bool = False
    """It is to start with its host."""
    arriving: bool = False
    """It is shown as running and does not run yet: its emulator starts, or its memory is on its way from another host.
    So is one at the source of a migration, for the moment in which the other takes over."""


class Hypervisor(Protocol):
    """The guests of this host. Every method raises Unreachable when the hypervisor's daemon does not answer, which
    proves nothing, and NotFound when it says that there is no such domain. A change raises Unfinished when its end is
    unknown, Busy when another operation on the domain is under way, CommandFailed when it was refused."""

    def domains(self) -> tuple[Domain, ...]:
        """Return every domain, running or not."""

    def get_domain(self, domain: str) -> Domain:
        """Return the domain of a UUID or else of a name."""

    def attach_config(self, uuid: str, disk: DomainDisk) -> None:
        """Give a persistent domain's configuration a disk; the running guest does not get it. Raises: Conflict or
        InUse when alias or target are taken."""

    def attach_live(self, uuid: str, disk: DomainDisk) -> None:
        """Give the running guest a disk; the configuration does not get it. Raises: Conflict or InUse when alias or
        target are taken; InUse when it does not run; NoSpace when it has no free slot."""

    def detach_config(self, uuid: str, alias: str) -> None:
        """Take a disk from the configuration. Raises: NotFound also when there is no such disk."""

    def ask_to_detach(self, uuid: str, alias: str) -> None:
        """Ask the running guest to let go of a disk; `live` shows it until it has. Asked again while it is at it, the
        hypervisor may refuse (CommandFailed), which says nothing of the first request. Raises: NotFound also when
        there is no such disk; InUse when the domain does not run."""

    def start(self, uuid: str) -> None:
        """Start a guest with its configuration, or wake it. Raises: InUse when it runs; CommandFailed when a disk's
        device is missing."""

    def resize(self, uuid: str, target: str, size_bytes: int) -> None:
        """Tell the running guest that a disk has this size now, which its device has already. Raises: as
        ask_to_detach; CommandFailed for a read-only disk."""


class DeviceLinks(Protocol):
    """Symbolic links of a directory, by which guests know devices whose own names change from grant to grant. None
    outlives the boot in which it was put; that what they lead to exists is somebody else's care."""

    def path(self, name: str) -> str:
        """Return the path of a link, there or not."""

    def all(self) -> dict[str, str]:
        """Return name → where it leads of every link."""

    def put(self, name: str, device: str) -> None:
        """Make a link lead to a device: at every moment it leads where it did or there, never nowhere."""

    def remove(self, name: str) -> None:
        """Remove a link; it is no error when it is absent."""

    def find_device(self, path: str) -> str | None:
        """Return `major:minor` of the block device that any path leads to, through links of whatever kind; None when
        there is none, or when that cannot be told."""
