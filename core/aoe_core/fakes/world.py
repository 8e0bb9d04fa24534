"""The world of the fakes: machines with disks and network cards, joined by SAN segments, in one virtual time.

A `Process` stands for one run of our program on a machine and carries the fakes it acts through. Killing it makes its
every further call raise `Killed`, so that no `finally` of a dead process changes anything; what it had done stays.
`World.on_step` is called before and after each change with a `Step`; there a test kills, cuts the power, or lets other
processes act in between. One lock makes each change atomic; the hook runs outside of it.
"""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aoe_core.errors import CommandFailed, NotFound, Unfinished, Unreachable
from aoe_core.fakes.blocks import Device, FakeAttachedBlockDevices, FakeBlockDevices, SparseMedium
from aoe_core.fakes.clock import VirtualClock
from aoe_core.fakes.exports import ExportsState, FakeExportUnits
from aoe_core.fakes.filesystems import FakeFileSystems
from aoe_core.fakes.hypervisor import FakeHypervisor, HypervisorState
from aoe_core.fakes.ingress import FakeIngressRules, IngressState
from aoe_core.fakes.initiator import DriverState, FakeInitiator
from aoe_core.fakes.links import LINKS, FakeDeviceLinks
from aoe_core.fakes.locks import FakeHostLocks
from aoe_core.fakes.lvm import FakeLvm, LvmState
from aoe_core.fakes.mounts import FakeMounts, MountState
from aoe_core.fakes.records import FakeRecordFiles, RecordDirectory
from aoe_core.fakes.superblocks import read_files, write_file
from aoe_core.fakes.wire import Card, FakeSegments, Imposter, Target, Wire
from aoe_core.model import Address, SanName, parse_mac

WRITEBACK_S = 30.0
"""How long dirty pages stay before the kernel writes them back by itself (vm.dirty_expire_centisecs)."""


class Killed(BaseException):
    """The process is dead. Not an Exception, so that no handler of the code under test outlives its process."""


@dataclass(slots=True, kw_only=True)
class Step:
    """One passing of the hook."""

    process: "Process"
    name: str
    """What changes: a command and its object."""
    after: bool
    """Whether the change has happened."""
    number: int
    """Counts every passing in the world, from 1."""
    runs_on: Callable[[], None] | None = field(default=None, repr=False)
    """For changes that outlive their caller: makes this one happen later, by itself. Call it before killing."""


class World:
    """Everything there is."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.clock = VirtualClock()
        self.machines: dict[str, FakeMachine] = {}
        self.wire = Wire(self.machines)
        self.on_step: Callable[[Step], None] | None = None
        self.harms: list[str] = []
        """What must never happen and did: I/O to two targets in turn, a flush under an opener, a second mkfs."""
        self._steps = itertools.count(1)
        self._numbers = itertools.count(1)
        self.clock.at_passing(self._pass_time)

    def add_machine(self, name: str, **sans: str) -> "FakeMachine":
        """Make a machine with one network card per SAN, given as `interface="san name"`, and boot it."""
        with self.lock:
            machine = FakeMachine(self, name)
            for interface, san in sans.items():
                number = self.next_number()
                mac = parse_mac(f"52:54:00:00:{number // 256:02x}:{number % 256:02x}")
                machine.cards[interface] = Card(interface, mac, SanName(san))
            self.machines[name] = machine
            machine.boot()
            return machine

    def next_number(self) -> int:
        """Return a number that nobody had before."""
        return next(self._numbers)

    def report_harm(self, what: str) -> None:
        """Note what must never happen."""
        self.harms.append(what)

    def power_loss(self, machine: str, *, keep_every: int = 0) -> None:
        """Cut a machine's power. With `keep_every` n, each n-th unflushed block, and every unsynced record, was
        written in time after all."""
        with self.lock:
            self.machines[machine].lose_power(keep_every=keep_every)
            self.settle()

    def boot(self, machine: str) -> None:
        """Give a machine power and let it come up."""
        with self.lock:
            self.machines[machine].boot()
            self.settle()

    def pause(self, machine: str) -> None:
        """Stop a machine's processors, as a hypervisor does: it answers nobody, and no time passes on it."""
        with self.lock:
            self.machines[machine].pause()

    def resume(self, machine: str) -> None:
        """Let a paused machine run on, with everything it had under way."""
        with self.lock:
            self.machines[machine].resume()
            self.settle()

    def link(self, machine: str, interface: str, *, up: bool) -> None:
        """Pull a cable or plug it in."""
        with self.lock:
            self.machines[machine].cards[interface].linked = up
            self.settle()

    def add_imposter(
        self, san: str, mac: str, address: Address, *, serial: str, size_bytes: int, content: Device | None = None
    ) -> Imposter:
        """Put a target on a segment that is none of ours; everybody there hears it at once."""
        with self.lock:
            device = content or Device(f"imposter {mac}", "0:0", SparseMedium(), size_bytes)
            target = Target(
                address=address, mac=parse_mac(mac), serial=serial, size_bytes=size_bytes, writable=True, device=device
            )
            imposter = Imposter(SanName(san), target)
            self.wire.imposters.append(imposter)
            for machine in self.machines.values():
                if machine.runs:
                    machine.initiator.hear_all(address)
            self.settle()
            return imposter

    def remove_imposter(self, imposter: Imposter) -> None:
        """Take an imposter off its segment."""
        with self.lock:
            self.wire.imposters.remove(imposter)
            self.settle()

    def settle(self) -> None:
        """Let everything that waited for something go on, if it can: units, frozen I/O, umounts."""
        for machine in self.machines.values():
            if machine.runs:
                machine.exports.retry_waiting()
        for machine in self.machines.values():
            if machine.runs:
                for known in machine.initiator.known.values():
                    known.wait_or_die()
                machine.mounts.finish_waiting()

    def announce(self, process: "Process", name: str, *, after: bool, runs_on: Callable[[], None] | None) -> None:
        """Pass the hook. Raises: Killed when the process is dead afterwards."""
        with self.lock:
            number = next(self._steps)
        if self.on_step is not None:
            self.on_step(Step(process=process, name=name, after=after, number=number, runs_on=runs_on))
        process.require_alive()

    def _pass_time(self) -> None:
        with self.lock:
            for machine in self.machines.values():
                if machine.runs:
                    machine.lvm.finish_due()
                    machine.write_back()
                    machine.initiator.pass_time()
                    machine.hypervisor.pass_time()
            self.settle()


class FakeMachine:
    """One machine: its disks, its kernel, its systemd. Tests act on it as a person with a shell would."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.powered = False
        self.boot_id = ""
        self.cards: dict[str, Card] = {}
        self.lvm = LvmState(self)
        self.exports = ExportsState(self)
        self.ingress = IngressState()
        self.mounts = MountState(self)
        self.initiator = DriverState(self)
        self.hypervisor = HypervisorState(self)
        self.processes: list[Process] = []
        self.held_names: dict[str, Process] = {}
        """Name → the process that holds it between processes."""
        self.links: dict[str, str] = {}
        """Name → the device that a guests' link leads to, in this boot."""
        self._records: dict[str, RecordDirectory] = {}
        self._written_back_s = world.clock.now()
        self._paused_s: float | None = None

    @property
    def runs(self) -> bool:
        """Whether it has power and its processors run."""
        return self.powered and self._paused_s is None

    # --- power ---

    def boot(self) -> None:
        """Come up: LVs active, ingress rules without pins, every live export started."""
        if self.powered:
            raise RuntimeError(f"{self.name} is up already")
        self.powered = True
        self.boot_id = f"{self.world.next_number():08x}"
        deadsecs = self.initiator.deadsecs
        self.initiator = DriverState(self)
        self.initiator.deadsecs = deadsecs
        for lv in self.lvm.volumes():
            lv.active = True
            lv.device.read_only = not lv.writable
        self.ingress.pins = {interface: set() for interface in self.cards}
        self.exports.boot()
        self.initiator.hear_all()

    def pause(self) -> None:
        """Stop in the middle of everything."""
        self._paused_s = self.world.clock.now()

    def resume(self) -> None:
        """Go on, not knowing how long it was."""
        if self._paused_s is not None:
            for known in self.initiator.known.values():
                if known.waiting_since_s is not None:
                    known.waiting_since_s += self.world.clock.now() - self._paused_s
        self._paused_s = None

    def lose_power(self, *, keep_every: int = 0) -> None:
        """Lose what a power cut takes."""
        self.powered = False
        self._paused_s = None
        for process in self.processes:
            process.alive = False
        self.processes.clear()
        for lv in self.lvm.volumes():
            lv.device.lose_dirty(keep_every=keep_every)
            lv.device.openers.clear()
            lv.active = False
        self.lvm.running.clear()
        self.exports = ExportsState(self)
        self.ingress.flush()
        self.mounts.lose()
        self.hypervisor.lose()
        self.initiator.known.clear()
        self.links.clear()
        for directory in self._records.values():
            directory.lose_unsynced(keep=bool(keep_every))

    def start_process(self, name: str) -> "Process":
        """Start our program once more."""
        process = Process(self, name)
        self.processes.append(process)
        return process

    # --- what is there ---

    def record_directory(self, name: str) -> RecordDirectory:
        """Return a directory of records, made on first use."""
        return self._records.setdefault(name, RecordDirectory())

    def find_device(self, path: str) -> Device | None:
        """Return the block device at a path, through a stable link too."""
        if path.startswith(f"{LINKS}/"):
            path = self.links.get(path.removeprefix(f"{LINKS}/"), path)
        return self.lvm.find_device(path) or self.initiator.find_device(path)

    def get_device(self, path: str) -> Device:
        """Return the block device at a path, through a bound device node too. Raises: NotFound."""
        device = self.find_device(path)
        if device is None:
            top = self.mounts.topmost(path)
            device = top.node if top is not None else None
        if device is None:
            raise NotFound(f"device {path} does not exist; check that its volume is active")
        return device

    def node_name(self, device: Device) -> str:
        """Return the device node that the links to a device lead to."""
        lv = self.lvm.lv_of(device)
        return lv.paths[2] if lv is not None else device.path

    def mounted_name(self, device: Device) -> str:
        """Return the path the kernel shows a mounted device by."""
        lv = self.lvm.lv_of(device)
        return lv.paths[1] if lv is not None else device.path

    # --- what a workload does ---

    def open(self, path: str, opener: str) -> None:
        """Open a device as a workload does."""
        with self.world.lock:
            device = self.get_device(path)
            if not device.size_bytes:
                raise Unreachable(f"{path} is down and cannot be opened")
            device.open(opener)

    def close(self, path: str, opener: str) -> None:
        """Close it again; the last one out flushes."""
        with self.world.lock:
            self.get_device(path).close(opener)
            self.world.settle()

    def write(self, path: str, offset_bytes: int, data: bytes, *, sync: bool = True) -> None:
        """Write to a device, with fsync unless told otherwise. Raises: Unfinished when it waits for a target."""
        with self.world.lock:
            device = self.get_device(path)
            device.write(offset_bytes, data)
            if sync:
                device.flush()

    def read(self, path: str, offset_bytes: int, length_bytes: int) -> bytes:
        """Read from a device. Raises: Unfinished when it waits for a target."""
        with self.world.lock:
            return self.get_device(path).read(offset_bytes, length_bytes)

    def write_file(self, mounted_at: str, name: str, content: bytes, *, sync: bool = True) -> None:
        """Write a file of a mounted file system, with fsync unless told otherwise."""
        with self.world.lock:
            disk = self._disk_at(mounted_at, writing=True)
            write_file(disk, name, content)
            if sync:
                disk.flush()

    def read_files(self, mounted_at: str) -> dict[str, bytes]:
        """Return every file of a mounted file system."""
        with self.world.lock:
            return read_files(self._disk_at(mounted_at, writing=False))

    def write_back(self) -> None:
        """Have the kernel write dirty pages back when they are old enough; what nobody takes stays dirty."""
        now_s = self.world.clock.now()
        if now_s - self._written_back_s < WRITEBACK_S:
            return
        self._written_back_s = now_s
        disks = [lv.device for lv in self.lvm.volumes()] + [one.disk for one in self.initiator.known.values()]
        for disk in disks:
            try:
                disk.flush()
            except (Unfinished, Unreachable, CommandFailed):
                continue

    def _disk_at(self, mounted_at: str, *, writing: bool) -> Device:
        top = self.mounts.topmost(mounted_at)
        if top is None or top.disk is None:
            raise NotFound(f"no file system is mounted at {mounted_at}")
        if writing and not top.writable:
            raise CommandFailed(f"{mounted_at} is mounted read-only")
        return top.disk


class Process:
    """One run of our program, with the fakes it acts through."""

    def __init__(self, machine: FakeMachine, name: str) -> None:
        self.machine = machine
        self.world = machine.world
        self.name = name
        self.alive = True
        self.lvm = FakeLvm(self)
        self.blocks = FakeBlockDevices(self)
        self.attached_blocks = FakeAttachedBlockDevices(self)
        self.export_units = FakeExportUnits(self)
        self.initiator = FakeInitiator(self)
        self.segments = FakeSegments(self)
        self.ingress = FakeIngressRules(self)
        self.mounts = FakeMounts(self)
        self.locks = FakeHostLocks(self)
        self.hypervisor = FakeHypervisor(self)
        self.links = FakeDeviceLinks(self)
        self.filesystems = FakeFileSystems(self)

    def records(self, directory: str) -> FakeRecordFiles:
        """Return a directory of durable records on this machine."""
        return FakeRecordFiles(self, directory)

    def kill(self) -> None:
        """Die at once (SIGKILL)."""
        self.alive = False
        if self in self.machine.processes:
            self.machine.processes.remove(self)

    def require_alive(self) -> None:
        """Raise Killed when this process is dead."""
        if not self.alive:
            raise Killed(f"{self.name} on {self.machine.name}")

    @contextmanager
    def reading(self) -> Iterator[FakeMachine]:
        """Look at the machine without changing it."""
        self.require_alive()
        with self.world.lock:
            yield self.machine

    @contextmanager
    def step(self, name: str, *, runs_on: Callable[[], None] | None = None) -> Iterator[FakeMachine]:
        """Change something: the hook, the change, the hook again. A change that raises has no second passing."""
        self.require_alive()
        self.world.announce(self, name, after=False, runs_on=runs_on)
        with self.world.lock:
            yield self.machine
            self.world.settle()
        self.world.announce(self, name, after=True, runs_on=None)
