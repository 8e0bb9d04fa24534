"""libvirt with QEMU guests in memory.

A running guest holds the devices of its disks open, by whatever path it was given, until it lets go of them or ends.
To unplug is to ask: the disk stays until the guest obeys, and a guest may not listen, or refuse. Its device is closed a
moment after the disk has gone, and then libvirt takes the device's node from the emulator, by the path it was given.
Configurations survive a power cut, guests do not; a daemon that is away answers nobody while its guests run on.
"""

import enum
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from aoe_core.errors import AoECsiError, Busy, CommandFailed, Conflict, InUse, NoSpace, NotFound, Unreachable
from aoe_core.fakes.blocks import Device
from aoe_core.host.contracts import Domain, DomainDisk

if TYPE_CHECKING:
    from aoe_core.fakes.world import FakeMachine, Process

OBEYS_S = 2.0
"""How long a guest takes to let go of a disk."""
CLOSES_S = 0.3
"""How long the device of a disk that has gone stays open."""


class Unplug(enum.Enum):
    """What a guest does when it is asked to let go of a disk."""

    OBEYS = "obeys"
    IGNORES = "ignores"
    """As one without a running kernel does: the request stays open."""
    REFUSES = "refuses"
    """libvirt reports DEVICE_REMOVAL_FAILED, and may ask again."""


@dataclass(slots=True, kw_only=True)
class Guest:
    """One domain."""

    name: str
    uuid: str
    persistent: bool
    autostart: bool
    slots: int
    """Free PCI slots that a virtio disk can be plugged into while it runs."""
    unplug: Unplug = Unplug.OBEYS
    running: bool = False
    arriving: bool = False
    """It is on its way here from another host."""
    saved: dict[str, DomainDisk] | None = None
    """The disks it had when it was put to sleep."""
    live: dict[str, DomainDisk] = field(default_factory=dict)
    """Target → disk."""
    config: dict[str, DomainDisk] = field(default_factory=dict)
    open: dict[str, Device] = field(default_factory=dict)
    """Target → the device that the running guest's disk has open."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Target → the size in bytes that the guest sees."""
    plugged: set[str] = field(default_factory=set)
    """Targets that came while it runs and take a slot each."""
    letting_go: dict[str, float | None] = field(default_factory=dict)
    """Target → when it will have let go; None: never, by itself."""

    closing: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Target of a disk that has gone while it runs, its device still open → when it is closed, and its path."""

    def shown(self) -> Domain:
        """Return it as the hypervisor shows it."""
        return Domain(
            name=self.name,
            uuid=self.uuid,
            running=self.running,
            persistent=self.persistent,
            live=tuple(self.live.values()),
            config=tuple(self.config.values()),
            saved=self.saved is not None,
            autostart=self.autostart,
            arriving=self.arriving,
        )

    def opener(self, target: str) -> str:
        """Return the name it has among the openers of a disk's device."""
        return f"guest {self.uuid} {target}"


class HypervisorState:
    """The domains of one machine. Tests act on them as a person with virsh would."""

    def __init__(self, machine: "FakeMachine") -> None:
        self._machine = machine
        self.answers = True
        """Whether the daemon runs."""
        self.locked = False
        """Whether another operation has the guests, so that none can be asked for anything."""
        self.guests: dict[str, Guest] = {}
        """UUID → guest."""

    def define(self, name: str, *, slots: int = 4, persistent: bool = True, autostart: bool = False) -> Guest:
        """Make a domain; a transient one runs from then on."""
        number = self._machine.world.next_number()
        uuid = f"00000000-0000-4000-8000-{number:012d}"
        guest = Guest(name=name, uuid=uuid, persistent=persistent, autostart=autostart, slots=slots)
        self.guests[uuid] = guest
        if not persistent:
            self.start(guest)
        return guest

    def start(self, guest: Guest) -> None:
        """Start a guest with its configuration. Raises: CommandFailed when a disk's device cannot be opened."""
        opened: dict[str, Device] = {}
        disks = dict(guest.config if guest.saved is None else guest.saved)
        for disk in disks.values():
            try:
                opened[disk.target] = self._open(guest, disk)
            except CommandFailed:
                for target, device in opened.items():
                    device.close(guest.opener(target))
                raise
        guest.running, guest.live, guest.open, guest.saved = True, disks, opened, None
        guest.sizes = {target: device.size_bytes for target, device in opened.items()}

    def stop(self, guest: Guest) -> None:
        """End a guest at once; a transient domain goes with it."""
        for target in list(guest.live):
            self._drop(guest, target)
        for target in list(guest.open):
            self._close(guest, target)
        guest.running = False
        guest.letting_go.clear()
        if not guest.persistent:
            self.guests.pop(guest.uuid, None)

    def save(self, guest: Guest) -> None:
        """Put a guest to sleep, its memory on disk."""
        disks = dict(guest.live)
        self.stop(guest)
        guest.saved = disks

    def undefine(self, guest: Guest) -> None:
        """Take away a domain's configuration; while it runs, it is a transient one."""
        guest.persistent = False
        guest.config.clear()
        if not guest.running:
            self.guests.pop(guest.uuid, None)

    def receive(
        self, guest: Guest, source: "HypervisorState", *, persistent: bool = True, undefine_source: bool = True
    ) -> Guest:
        """Take a running guest over from another host, as `virsh migrate --live` does, with --persistent and
        --undefinesource unless said otherwise; it runs there until it runs here. Raises: CommandFailed when a disk's
        device cannot be opened, or another domain has its name."""
        if any(one.name == guest.name and one.uuid != guest.uuid for one in self.guests.values()):
            raise CommandFailed(f"domain {guest.name!r} is defined on this host already")
        moved = replace(
            guest, live={}, open={}, sizes={}, plugged=set(guest.plugged), letting_go={}, closing={}, running=False
        )
        moved.config = dict(guest.live)
        self.start(moved)
        if not persistent:
            moved.persistent = False
            moved.config.clear()
        self.guests[moved.uuid] = moved
        source.stop(guest)
        if undefine_source:
            source.undefine(guest)
        return moved

    def autostart(self) -> tuple[str, ...]:
        """Start what is to start with the machine, as the daemon does at its own start; return who could not."""
        failed = []
        for guest in self.guests.values():
            if guest.autostart and not guest.running:
                try:
                    self.start(guest)
                except CommandFailed:
                    failed.append(guest.name)
        return tuple(failed)

    def write(self, guest: Guest, target: str, offset_bytes: int, data: bytes) -> None:
        """Write as the guest does, past every cache of its host. Raises: Unfinished while its target is silent."""
        disk, device = guest.live[target], guest.open[target]
        if disk.read_only:
            raise CommandFailed(f"{target} of {guest.name} is read-only")
        device.write(offset_bytes, data)
        device.flush()

    def read(self, guest: Guest, target: str, offset_bytes: int, length_bytes: int) -> bytes:
        """Read as the guest does."""
        return guest.open[target].read(offset_bytes, length_bytes)

    def lose(self) -> None:
        """Lose what a power cut takes."""
        self.answers = True
        for guest in list(self.guests.values()):
            guest.running = False
            for running in (guest.live, guest.open, guest.sizes, guest.letting_go, guest.plugged, guest.closing):
                running.clear()
            if not guest.persistent:
                del self.guests[guest.uuid]

    def pass_time(self) -> None:
        """Let guests let go of what they were asked for."""
        now_s = self._machine.world.clock.now()
        for guest in self.guests.values():
            for target, due_s in list(guest.letting_go.items()):
                if due_s is not None and due_s <= now_s:
                    self._let_go(guest, target)
            for target, (due_s, path) in list(guest.closing.items()):
                if due_s <= now_s:
                    self._revoke(guest, target, path)

    # --- what the daemon does when it is told to ---

    def get(self, domain: str) -> Guest:
        """Return a guest by UUID or name. Raises: NotFound; Unreachable when the daemon is away."""
        self.require_answer()
        by_name = next((guest for guest in self.guests.values() if guest.name == domain), None)
        guest = self.guests.get(domain.lower()) or by_name
        if guest is None:
            raise NotFound(f"there is no domain {domain!r}; look at virsh list --all")
        return guest

    def require_answer(self) -> None:
        """Raise Unreachable when the daemon is away."""
        if not self.answers:
            raise Unreachable("libvirt does not answer; look at systemctl status libvirtd")

    def attach_config(self, guest: Guest, disk: DomainDisk) -> None:
        """Give a configuration a disk."""
        if not guest.persistent:
            raise InUse(f"domain {guest.name} is transient and has no configuration")
        _admit(guest.name, guest.config, disk)
        guest.config[disk.target] = disk

    def attach_live(self, guest: Guest, disk: DomainDisk) -> None:
        _require_running(guest)
        _admit(guest.name, guest.live, disk)
        if disk.target in guest.closing:
            # One change at a time: libvirt comes to the end of the former first.
            self._revoke(guest, disk.target, guest.closing[disk.target][1])
        if disk.bus == "virtio" and len(guest.plugged) >= guest.slots:
            raise NoSpace(f"domain {guest.name} has no free PCI slot")
        device = self._open(guest, disk)
        if disk.bus == "virtio":
            guest.plugged.add(disk.target)
        guest.open[disk.target] = device
        guest.sizes[disk.target] = guest.open[disk.target].size_bytes
        guest.live[disk.target] = disk

    def ask_to_detach(self, guest: Guest, alias: str) -> None:
        _require_running(guest)
        if self.locked:
            raise Busy(f"domain {guest.name}: cannot acquire state change lock")
        target = _target_of(guest.name, guest.live, alias)
        if target in guest.letting_go:
            raise CommandFailed(f"{alias} of {guest.name} is already in the process of unplug")
        if guest.unplug is Unplug.OBEYS:
            guest.letting_go[target] = self._machine.world.clock.now() + OBEYS_S
        elif guest.unplug is Unplug.IGNORES:
            guest.letting_go[target] = None

    def listens(self, guest: Guest) -> None:
        """Have a guest that ignored requests do what it was asked for, from now on."""
        guest.unplug = Unplug.OBEYS
        guest.letting_go = dict.fromkeys(guest.letting_go, self._machine.world.clock.now() + OBEYS_S)

    def resize(self, guest: Guest, target: str, size_bytes: int) -> None:
        _require_running(guest)
        if target not in guest.live:
            raise NotFound(f"domain {guest.name} has no disk {target}")
        if guest.live[target].read_only:
            raise CommandFailed(f"{target} of {guest.name}: block node is read-only")
        if size_bytes > guest.open[target].size_bytes:
            raise CommandFailed(f"{target} of {guest.name}: cannot grow device files")
        guest.sizes[target] = size_bytes

    def _open(self, guest: Guest, disk: DomainDisk) -> Device:
        device = self._machine.find_device(disk.source)
        if device is None or not device.size_bytes:
            raise CommandFailed(f"{disk.source} cannot be opened for {guest.name}; it is no device, or is down")
        device.open(guest.opener(disk.target))
        return device

    def _let_go(self, guest: Guest, target: str) -> None:
        path = guest.live[target].source
        self._drop(guest, target)
        guest.closing[target] = (self._machine.world.clock.now() + CLOSES_S, path)

    def _revoke(self, guest: Guest, target: str, path: str) -> None:
        if self._machine.find_device(path) is not guest.open[target]:
            self._machine.world.report_harm(f"{path} leads elsewhere while libvirt takes it from {guest.name}")
        self._close(guest, target)

    def _drop(self, guest: Guest, target: str) -> None:
        guest.live.pop(target)
        guest.letting_go.pop(target, None)
        guest.plugged.discard(target)
        guest.sizes.pop(target, None)

    def _close(self, guest: Guest, target: str) -> None:
        guest.closing.pop(target, None)
        device = guest.open.pop(target, None)
        if device is not None:
            try:
                device.close(guest.opener(target))
            except AoECsiError:
                device.lose_dirty()  # Nothing of a guest is dirty here; what is, is somebody else's.


class FakeHypervisor:
    """`Hypervisor` in memory."""

    def __init__(self, process: "Process") -> None:
        self._process = process

    def domains(self) -> tuple[Domain, ...]:
        with self._process.reading() as machine:
            machine.hypervisor.require_answer()
            return tuple(guest.shown() for guest in machine.hypervisor.guests.values())

    def get_domain(self, domain: str) -> Domain:
        with self._process.reading() as machine:
            return machine.hypervisor.get(domain).shown()

    def attach_config(self, uuid: str, disk: DomainDisk) -> None:
        with self._process.step(f"libvirt attach {disk.target} config") as machine:
            machine.hypervisor.attach_config(machine.hypervisor.get(uuid), disk)

    def attach_live(self, uuid: str, disk: DomainDisk) -> None:
        with self._process.step(f"libvirt attach {disk.target} live") as machine:
            machine.hypervisor.attach_live(machine.hypervisor.get(uuid), disk)

    def detach_config(self, uuid: str, alias: str) -> None:
        with self._process.step(f"libvirt detach {alias} config") as machine:
            guest = machine.hypervisor.get(uuid)
            del guest.config[_target_of(guest.name, guest.config, alias)]

    def ask_to_detach(self, uuid: str, alias: str) -> None:
        with self._process.step(f"libvirt ask to detach {alias}") as machine:
            machine.hypervisor.ask_to_detach(machine.hypervisor.get(uuid), alias)

    def start(self, uuid: str) -> None:
        with self._process.step(f"libvirt start {uuid}") as machine:
            guest = machine.hypervisor.get(uuid)
            if guest.running:
                raise InUse(f"domain {guest.name} is running")
            machine.hypervisor.start(guest)

    def resize(self, uuid: str, target: str, size_bytes: int) -> None:
        with self._process.step(f"libvirt resize {target}") as machine:
            machine.hypervisor.resize(machine.hypervisor.get(uuid), target, size_bytes)


def _require_running(guest: Guest) -> None:
    if not guest.running:
        raise InUse(f"domain {guest.name} is not running")


def _admit(name: str, disks: dict[str, DomainDisk], disk: DomainDisk) -> None:
    if disk.target in disks:
        raise Conflict(
            f"domain {name}: XML error: target '{disk.target}' duplicated for disk sources "
            f"'{disks[disk.target].source}' and '{disk.source}'"
        )
    if disk.alias and any(one.alias == disk.alias for one in disks.values()):
        raise Conflict(f"domain {name}: non unique alias detected: {disk.alias}")


def _target_of(name: str, disks: dict[str, DomainDisk], alias: str) -> str:
    target = next((target for target, disk in disks.items() if disk.alias == alias), None)
    if target is None:
        raise NotFound(f"domain {name} has no disk {alias}")
    return target
