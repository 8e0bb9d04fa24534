"""The nftables ingress rules in memory: which target the initiator hears on which interface."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aoe_core.errors import CommandFailed, NotFound
from aoe_core.model import Address, Mac

if TYPE_CHECKING:
    from aoe_core.fakes.world import FakeMachine, Process


class IngressState:
    """The rules of one machine. Without rules on an interface, everything gets in."""

    def __init__(self) -> None:
        self.pins: dict[str, set[tuple[Address, Mac]]] = {}
        """Interface → pins; an interface that is absent has no rules."""

    def hears(self, interface: str, address: Address, mac: Mac) -> bool:
        """Say whether the initiator gets to see a target's frames."""
        return interface not in self.pins or (address, mac) in self.pins[interface]

    def flush(self) -> None:
        """Lose every rule, as `nft flush ruleset` by somebody else does."""
        self.pins.clear()


class FakeIngressRules:
    """`IngressRules` in memory."""

    def __init__(self, process: "Process") -> None:
        self._process = process

    def ensure(self, interfaces: Sequence[str]) -> frozenset[tuple[str, Address, Mac]]:
        with self._process.step(f"nft ensure {' '.join(interfaces)}") as machine:
            for interface in interfaces:
                if interface not in machine.cards:
                    raise NotFound(f"this host has no network interface {interface}")
                machine.ingress.pins.setdefault(interface, set())
            return _all_pins(machine)

    def pin(self, interface: str, address: Address, mac: Mac) -> None:
        with self._process.step(f"nft pin {interface} {address} {mac}") as machine:
            pins = _pins(machine, interface)
            pins -= {pin for pin in pins if pin[0] == address}
            pins.add((address, mac))

    def unpin(self, interface: str, address: Address) -> None:
        with self._process.step(f"nft unpin {interface} {address}") as machine:
            pins = machine.ingress.pins.get(interface, set())
            pins -= {pin for pin in pins if pin[0] == address}

    def pinned(self) -> frozenset[tuple[str, Address, Mac]]:
        with self._process.reading() as machine:
            return _all_pins(machine)


def _all_pins(machine: "FakeMachine") -> frozenset[tuple[str, Address, Mac]]:
    return frozenset(
        (interface, address, mac) for interface, pins in machine.ingress.pins.items() for address, mac in pins
    )


def _pins(machine: "FakeMachine", interface: str) -> set[tuple[Address, Mac]]:
    pins = machine.ingress.pins.get(interface)
    if pins is None:
        raise CommandFailed(f"interface {interface} has no ingress rules; make them stand first")
    return pins
