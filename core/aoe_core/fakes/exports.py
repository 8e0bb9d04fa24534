"""The export units in memory: systemd, the wrapper and vblade as one.

A unit serves what its export file said when it started and read its device's size then. It refuses a file that is not
live. While a former exporter is stuck its lock is held, and the unit tries again until it is free. A boot starts every
live export by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aoe_core.errors import CommandFailed, Invalid, Unfinished
from aoe_core.fakes.blocks import Device
from aoe_core.fakes.wire import Target
from aoe_core.host.contracts import ExportUnit
from aoe_core.host.exports import ExportFile, ExportState
from aoe_core.model import Address, Mac, SanName

if TYPE_CHECKING:
    from aoe_core.fakes.world import FakeMachine, Process

EXPORTS = "exports"
"""The name of the directory of export files, below the state directory."""


@dataclass(slots=True)
class Exporter:
    """A running vblade."""

    file: ExportFile
    address: Address
    device: Device
    size_bytes: int
    stuck: bool = False
    """In uninterruptible sleep: it answers nobody and cannot be killed."""
    doomed: bool = False
    """Killed while it was stuck: it ends as soon as the kernel lets go of it."""

    @property
    def opener(self) -> str:
        """Its name among the openers of its device."""
        return f"exporter {self.address}"


class ExportsState:
    """The exporters and units of one machine."""

    def __init__(self, machine: "FakeMachine") -> None:
        self._machine = machine
        self.exporters: dict[Address, Exporter] = {}
        """Every exporter process that exists, stopped units' stuck ones too: each holds its lock."""
        self.active: set[Address] = set()
        """Units that systemd wants to run; without an exporter they are waiting for their next try."""
        self.foreign_locks: set[Address] = set()
        """Locks that some process holds which is no exporter here, as a test says."""

    @property
    def locked(self) -> frozenset[Address]:
        """Every export whose lock is held."""
        return frozenset(self.exporters.keys() | self.foreign_locks)

    def targets_for(self, san: SanName, asking: Mac) -> list[Target]:
        """Return the targets that answer one card on a segment."""
        found = []
        for exporter in self.exporters.values():
            card = self._machine.cards.get(exporter.file.interface)
            admitted = not exporter.file.macs or asking in exporter.file.macs
            if card and card.san == san and card.linked and admitted and not exporter.stuck:
                found.append(
                    Target(
                        address=exporter.address,
                        mac=card.mac,
                        serial=f"{exporter.address.instance}:{exporter.file.serial}"[:20],
                        size_bytes=exporter.size_bytes,
                        writable=exporter.file.writable,
                        device=exporter.device,
                    )
                )
        return found

    def stick(self, address: Address) -> None:
        """Have the kernel hold an exporter, as a disk that does not answer does."""
        self.exporters[address].stuck = True

    def release(self, address: Address) -> None:
        """Let a stuck exporter go on; one that was killed meanwhile ends."""
        exporter = self.exporters[address]
        exporter.stuck = False
        if exporter.doomed:
            self._end(address)
        self._machine.world.settle()

    def try_start(self, address: Address) -> bool:
        """Do what the wrapper does once. Returns whether the exporter serves; a refused unit is active no more."""
        text = self._machine.record_directory(EXPORTS).seen.get(address.instance)
        if text is None:
            self.active.discard(address)
            return False
        try:
            file = ExportFile.parse(address.instance, text)
        except Invalid:
            self.active.discard(address)
            return False
        if file.state is not ExportState.LIVE or not file.macs:
            self.active.discard(address)
            return False
        self.active.add(address)
        device = self._machine.find_device(file.device)
        if address in self.locked or device is None or file.interface not in self._machine.cards:
            return False
        exporter = Exporter(file, address, device, device.size_bytes)
        self.exporters[address] = exporter
        device.open(exporter.opener)
        self._advertise(exporter)
        return True

    def end(self, address: Address) -> None:
        """Stop a unit; its exporter stays when it is stuck."""
        self.active.discard(address)
        exporter = self.exporters.get(address)
        if exporter is not None and exporter.stuck:
            exporter.doomed = True
        elif exporter is not None:
            self._end(address)

    def retry_waiting(self) -> None:
        """Have the units that wait for a lock or a device try again, as Restart=always does."""
        for address in sorted(self.active - self.exporters.keys()):
            self.try_start(address)

    def boot(self) -> None:
        """Start a unit for every file that says live."""
        for name in sorted(self._machine.record_directory(EXPORTS).seen):
            if not name.startswith("local."):
                self.try_start(Address.parse(name))

    def _end(self, address: Address) -> None:
        exporter = self.exporters.pop(address)
        exporter.device.close(exporter.opener)

    def _advertise(self, exporter: Exporter) -> None:
        """Announce itself to those in the mask: vblade's aoe_ad at start reaches their kernels unasked."""
        for machine in self._machine.world.machines.values():
            if machine is not self._machine and machine.runs:
                machine.initiator.hear_all(exporter.address)


class FakeExportUnits:
    """`ExportUnits` in memory."""

    def __init__(self, process: "Process") -> None:
        self._process = process

    def start(self, address: Address) -> None:
        with self._process.step(f"systemctl start {address}") as machine:
            if address in machine.exports.active and address in machine.exports.exporters:
                return
            _start(machine, address)

    def restart(self, address: Address) -> None:
        # One step: systemd does both parts of it, whether whoever asked still lives or not.
        with self._process.step(f"systemctl restart {address}") as machine:
            machine.exports.end(address)
            _start(machine, address)

    def stop(self, address: Address) -> None:
        with self._process.step(f"systemctl stop {address}") as machine:
            machine.exports.end(address)

    def states(self) -> Mapping[Address, ExportUnit]:
        with self._process.reading() as machine:
            exports = machine.exports
            return {
                address: ExportUnit(
                    active=address in exports.active,
                    serving=address in exports.active and address in exports.exporters,
                    locked=address in exports.locked,
                )
                for address in exports.active | exports.locked
            }


def _start(machine: "FakeMachine", address: Address) -> None:
    if address.instance not in machine.record_directory(EXPORTS).seen:
        raise CommandFailed(f"systemd could not start the export {address} (exit 1): it has no export file")
    if not machine.exports.try_start(address):
        raise Unfinished(f"export {address} was started and does not serve yet; see its journal")
