"""The kernel's AoE driver in memory, as drivers/block/aoe behaves.

A device is keyed by its address alone. Every target that answers and gets past the ingress rules becomes one more
path, used in turn, with no look at what it holds, and stays one until the device is flushed. I/O that nobody answers
waits; after aoe_deadsecs it fails and the device is `down,closewait` with size 0 until the last close, or until it is
revalidated while its target answers. A discovery every 60 s brings back whatever still answers.
"""

from typing import TYPE_CHECKING

from aoe_core.errors import CommandFailed, NotFound, Unfinished, Unreachable
from aoe_core.fakes.blocks import Device
from aoe_core.fakes.wire import Target
from aoe_core.host.contracts import Answer, AoEDevice
from aoe_core.model import Address, Mac

if TYPE_CHECKING:
    from aoe_core.fakes.world import FakeMachine, Process

DISCOVERY_S = 60.0


class KnownDevice:
    """A device the driver has: also the medium of its block device, which is the wire."""

    def __init__(self, driver: "DriverState", address: Address, interface: str, number: str) -> None:
        self._driver = driver
        self.address = address
        self.interface = interface
        self.macs: list[Mac] = []
        self.serial = ""
        self.up = False
        self.waiting_since_s: float | None = None
        """When I/O began to wait for an answer."""
        self.disk = Device(f"/dev/etherd/{address}", number, self, 0)
        self.disk.keeps_pages = True
        self._turn = 0

    @property
    def closewait(self) -> bool:
        """Down while somebody still has it open."""
        return not self.up and bool(self.disk.openers)

    def load(self, block: int) -> bytes:
        return self._path().load(block)

    def store(self, block: int, data: bytes) -> None:
        self._path().store(block, data)

    def filled(self, first: int, end: int) -> list[int]:
        return self._path().filled(first, end)

    def identify(self) -> bool:
        """Ask a target for size and serial, if one answers."""
        answering = self._answering()
        if not answering:
            return False
        self.disk.size_bytes = answering[0].size_bytes
        self.serial = answering[0].serial
        self.up, self.waiting_since_s = True, None
        return True

    def wait_or_die(self) -> None:
        """Let waiting I/O go on when a target answers again, or fail when aoe_deadsecs have passed."""
        if not self.up and not self.disk.openers:
            self.identify()  # The last close asks for it, and so does a target that comes back.
        if self.waiting_since_s is None:
            return
        if self._answering():
            self.waiting_since_s = None
            try:
                self.disk.flush()
            except (Unfinished, CommandFailed):
                return
        elif self._driver.now_s() - self.waiting_since_s > self._driver.deadsecs:
            self.up, self.waiting_since_s = False, None
            self.disk.size_bytes = 0
            self.disk.lose_dirty()

    def _answering(self) -> list[Target]:
        return [target for target in self._driver.audible(self.interface, self.address) if target.mac in self.macs]

    def _path(self) -> Target:
        if not self.up:
            raise Unreachable(
                f"{self.disk.path} is down and answers with I/O errors; revalidate it once its target is back"
            )
        answering = self._answering()
        if not answering:
            if self.waiting_since_s is None:
                self.waiting_since_s = self._driver.now_s()
            raise Unfinished(f"{self.disk.path} does not answer, and whoever uses it waits in the kernel")
        if len({id(target.device) for target in answering}) > 1:
            self._driver.machine.world.report_harm(f"{self.disk.path} interleaves I/O to {len(answering)} targets")
        self._turn += 1
        return answering[self._turn % len(answering)]


class DriverState:
    """The driver of one machine."""

    def __init__(self, machine: "FakeMachine") -> None:
        self.machine = machine
        self.known: dict[Address, KnownDevice] = {}
        self.loaded = True
        self.deadsecs = 600
        self.discovered_s = machine.world.clock.now()
        self._minor = 0

    def now_s(self) -> float:
        """Return the time."""
        return self.machine.world.clock.now()

    def audible(self, interface: str, address: Address | None = None) -> list[Target]:
        """Return the targets whose answers get past the ingress rules."""
        return [
            target
            for target in self.machine.world.wire.answering(self.machine, interface, address)
            if self.machine.ingress.hears(interface, target.address, target.mac)
        ]

    def hear_all(self, address: Address | None = None) -> None:
        """Take in what answers on every interface, for one address or all."""
        if not self.loaded:
            return
        if address is None:
            self.discovered_s = self.now_s()
        for interface in self.machine.cards:
            for target in self.audible(interface, address):
                self._hear(interface, target)

    def pass_time(self) -> None:
        """Discover when 60 s are over; let waiting I/O go on or fail."""
        if self.now_s() - self.discovered_s >= DISCOVERY_S:
            self.hear_all()
        for device in self.known.values():
            device.wait_or_die()

    def find_device(self, path: str) -> Device | None:
        """Return the block device of a path."""
        return next((one.disk for one in self.known.values() if one.disk.path == path), None)

    def _hear(self, interface: str, target: Target) -> None:
        known = self.known.get(target.address)
        if known is None:
            known = self.known[target.address] = KnownDevice(self, target.address, interface, f"152:{self._minor * 16}")
            self._minor += 1
        if target.mac not in known.macs:
            known.macs.append(target.mac)
        if not known.disk.openers:
            known.identify()


class FakeInitiator:
    """`Initiator` in memory."""

    def __init__(self, process: "Process") -> None:
        self._process = process

    def probe(self, interface: str, address: Address, *, timeout_s: float) -> tuple[Answer, ...]:
        with self._process.reading() as machine:
            if interface not in machine.cards:
                raise Unreachable(f"this host has no network interface {interface}")
            machine.world.clock.sleep(timeout_s)
            answers = {
                target.mac: Answer(mac=target.mac, serial=target.serial, size_bytes=target.size_bytes)
                for target in machine.world.wire.answering(machine, interface, address)
            }
            return tuple(answers[mac] for mac in sorted(answers))

    def discover(self) -> None:
        with self._process.step("aoe discover") as machine:
            _loaded(machine).hear_all()

    def revalidate(self, address: Address) -> None:
        with self._process.step(f"aoe revalidate {address}") as machine:
            known = _loaded(machine).known.get(address)
            if known is None:
                raise CommandFailed(f"the aoe driver knows no device {address} to revalidate; discover it first")
            machine.initiator.hear_all(address)
            known.identify()

    def flush(self, address: Address) -> None:
        with self._process.step(f"aoe flush {address}") as machine:
            driver = _loaded(machine)
            gone = driver.known.pop(address, None)
            if gone is not None and gone.disk.openers:
                machine.world.report_harm(f"{gone.disk.path} was flushed under {', '.join(gone.disk.openers)}")

    def devices(self) -> tuple[AoEDevice, ...]:
        with self._process.reading() as machine:
            return tuple(
                AoEDevice(
                    address=known.address,
                    up=known.up,
                    closewait=known.closewait,
                    size_bytes=known.disk.size_bytes,
                    interface=known.interface,
                    target_macs=tuple(known.macs),
                    # The driver tells only by the word closewait, which it shows of a device that is down.
                    open_count=None if known.up else int(known.closewait),
                )
                for _, known in sorted(_loaded(machine).known.items())
            )

    def identify(self, address: Address) -> str:
        with self._process.reading() as machine:
            known = _known(machine, address)
            if not known.up:
                raise Unreachable(f"{known.disk.path} is down; its target does not answer")
            return known.serial

    def in_use(self, address: Address) -> bool:
        with self._process.reading() as machine:
            known = _loaded(machine).known.get(address)
            return known is not None and bool(known.disk.openers)

    def deadsecs(self) -> int:
        with self._process.reading() as machine:
            return _loaded(machine).deadsecs


def _loaded(machine: "FakeMachine") -> DriverState:
    if not machine.initiator.loaded:
        raise NotFound("the aoe module is not loaded on this host; load it with its options in modprobe.d")
    return machine.initiator


def _known(machine: "FakeMachine", address: Address) -> KnownDevice:
    known = _loaded(machine).known.get(address)
    if known is None:
        raise NotFound(f"the aoe driver knows no device {address}; discover it first")
    return known
