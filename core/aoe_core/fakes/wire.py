"""The Ethernet segments in memory: which target answers whom for which address.

A target answers when its machine runs, its exporter runs and is not stuck, both cables are in, and the mask
admits the asking card (vblade's aoe(): an empty mask admits everybody). A machine never hears its own frames.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aoe_core.errors import CommandFailed, Unreachable
from aoe_core.fakes.blocks import BLOCK_BYTES, Device
from aoe_core.model import Address, Mac, SanName

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aoe_core.fakes.world import FakeMachine, Process


@dataclass(slots=True)
class Card:
    """A network card of a machine."""

    interface: str
    mac: Mac
    san: SanName
    linked: bool = True
    """The cable is in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Something that serves an address."""

    address: Address
    mac: Mac
    serial: str
    """IDENTIFY's: `<shelf>.<slot>:<host name>`."""
    size_bytes: int
    """As the exporter read it when it started."""
    writable: bool
    device: Device

    def load(self, block: int) -> bytes:
        """Serve a read."""
        self._reach(block)
        dirty = self.device.dirty.get(block)
        return self.device.medium.load(block) if dirty is None else dirty

    def store(self, block: int, data: bytes) -> None:
        """Serve a write; it is durable when acknowledged (vblade -s)."""
        self._reach(block)
        if not self.writable:
            raise CommandFailed(f"target {self.address} at {self.mac} serves read-only and aborts writes")
        self.device.medium.store(block, data)
        self.device.dirty.pop(block, None)

    def filled(self, first: int, end: int) -> list[int]:
        """Return the blocks in [first, end) that are not zero."""
        cached = {block for block, data in self.device.dirty.items() if data and first <= block < end}
        return sorted(cached | set(self.device.medium.filled(first, end)))

    def _reach(self, block: int) -> None:
        if (block + 1) * BLOCK_BYTES > self.size_bytes:
            raise CommandFailed(f"target {self.address} ends at {self.size_bytes} bytes and aborts block {block}")


@dataclass(frozen=True, slots=True)
class Imposter:
    """A target that is none of ours, put on a segment by a test."""

    san: SanName
    target: Target


class Wire:
    """All segments of a world."""

    def __init__(self, machines: "Mapping[str, FakeMachine]") -> None:
        self._machines = machines
        self.imposters: list[Imposter] = []

    def answering(self, asker: "FakeMachine", interface: str, address: Address | None = None) -> list[Target]:
        """Return every target that answers a machine's card, for one address or for all."""
        card = asker.cards.get(interface)
        if card is None or not card.linked or not asker.runs:
            return []
        found = [one.target for one in self.imposters if one.san == card.san]
        for machine in self._machines.values():
            if machine is not asker and machine.runs:
                found += machine.exports.targets_for(card.san, card.mac)
        return [target for target in found if address is None or target.address == address]


class FakeSegments:
    """`Segments` in memory."""

    def __init__(self, process: "Process") -> None:
        self._process = process

    def shelf_users(self, interface: str, shelf: int, *, timeout_s: float) -> tuple[Mac, ...]:
        with self._process.reading() as machine:
            card = machine.cards.get(interface)
            if card is None:
                raise Unreachable(f"this host has no network interface {interface}")
            machine.world.clock.sleep(timeout_s)
            heard = machine.world.wire.answering(machine, interface)
            return tuple(sorted({one.mac for one in heard if one.address.shelf == shelf and one.mac != card.mac}))
