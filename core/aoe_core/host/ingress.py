"""nftables ingress rules on the SAN interfaces: whom this host's exporters and its initiator hear.

Owns table `netdev aoe_csi`: for each SAN interface a chain at hook ingress, which runs before the AoE driver and before
packet sockets, and a set of pins (source MAC, shelf and slot). Nothing else is touched, and nothing but AoE is judged.
- Requests (for exporters here): reading and writing, and reading the configuration. Everything that would change a
  target's mask, reservation or configuration is dropped.
- Responses (for the initiator here): to programs, whose tags the driver ignores (bit 31), and from pinned targets.
  Without pins the initiator hears nobody.
An interface's rules stand when its chain holds exactly the rules this module writes, told by a digest in each rule's
comment: nft prints expressions differently from version to version. Rules are replaced in one transaction, and pins
stay through it.
Tagged frames are judged like plain ones, for the kernel gives them to AoE unless their VLAN has an interface here. So
an interface and a VLAN on it cannot both be SANs of one host: the VLAN's targets would have no pins on the first.
Sources: nft(8) (raw payload expressions, netdev family), net/core/dev.c (__netif_receive_skb_core), AoEr11 for the
offsets; `@nh` begins after the Ethernet header and the tag the kernel has stripped.
"""

import hashlib
import json
import logging
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aoe_core.errors import AoECsiError, CommandFailed, Invalid, NotFound
from aoe_core.host.contracts import Runner
from aoe_core.model import Address, Mac, parse_mac

log = logging.getLogger(__name__)

TABLE = "aoe_csi"
_LIMIT_S = 30.0
_PRIORITY = -500
_INTERFACE = re.compile(r"[A-Za-z0-9._:@-]{1,15}")
_PIN_TYPE = "ether saddr . @nh,16,24"

# Offsets in bits from the end of the Ethernet header.
_RULES = (
    # The kernel strips VLAN tags with id 0, one before this hook and any further ones after it.
    "meta protocol { 0x8100, 0x88a8 } @ll,116,12 0x000 counter drop",
    # Not `ether type`, which shows the tag: a frame whose VLAN has no interface reaches AoE all the same.
    "meta protocol != 0x88a2 accept",
    # Requests: flag 0x8 of the first byte is clear. Command 0 is ATA, 1 configuration with 0 = read in the low nibble.
    "@nh,0,8 & 0x08 == 0x00 @nh,40,8 0x00 accept",
    "@nh,0,8 & 0x08 == 0x00 @nh,40,8 0x01 @nh,120,8 & 0x0f == 0x00 accept",
    "@nh,0,8 & 0x08 == 0x00 counter drop",
    # Responses: bit 31 of the tag marks a program's question.
    "@nh,48,8 & 0x80 == 0x80 accept",
    f"{_PIN_TYPE} @pins accept",
    "counter drop",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What `nft -j list ruleset netdev` shows of the table."""

    comments: dict[str, tuple[str, ...]]
    """Chain → its rules' comments, in order; an empty one for a rule without."""
    pins: dict[str, frozenset[tuple[Address, Mac]]]
    """Set → its elements."""


class NftIngressRules:
    """IngressRules of this host."""

    def __init__(self, runner: Runner, sys: Path = Path("/sys")) -> None:
        self._runner = runner
        self._sys = sys
        # One at a time: what is written follows from what was read before. And the kernel takes one change at a time: a
        # crowd of nfts would wait for each other while their limits run. No volume can hold one up.
        self._turn = threading.Lock()

    def ensure(self, interfaces: Sequence[str]) -> frozenset[tuple[str, Address, Mac]]:
        """Make the rules stand; those that stand already keep their counters. Returns the pins."""
        for interface in interfaces:
            if not (self._sys / "class/net" / interface).exists():
                raise NotFound(f"network interface {interface} is missing; check `interface` of its san")
        with self._turn:
            listing = self._listing()
            broken = [one for one in interfaces if not stands(listing, one)]
            if broken:
                text = "".join(_replace(one, listing) for one in broken)
                self._apply(text, f"ingress rules on {', '.join(broken)}")
                log.warning("ingress rules set", extra={"interfaces": broken})
        return self._pins(listing)

    def pin(self, interface: str, address: Address, mac: Mac) -> None:
        """Pin one target and drop the address's other pins, in one transaction."""
        with self._turn:
            held = self._listing().pins.get(_set(interface), frozenset())
            others = sorted(pin for pin in held if pin[0] == address and pin[1] != mac)
            text = "".join(_element("delete", interface, *pin) for pin in others)
            self._apply(text + _element("add", interface, address, mac), f"pin of {address} on {interface}")

    def unpin(self, interface: str, address: Address) -> None:
        """Drop every pin of an address."""
        with self._turn:
            held = self._listing().pins.get(_set(interface), frozenset())
            text = "".join(_element("delete", interface, *pin) for pin in sorted(held) if pin[0] == address)
            if text:
                self._apply(text, f"pin of {address} on {interface}")

    def pinned(self) -> frozenset[tuple[str, Address, Mac]]:
        """Return every pin of an interface that exists."""
        with self._turn:
            listing = self._listing()
        return self._pins(listing)

    def _pins(self, listing: Listing) -> frozenset[tuple[str, Address, Mac]]:
        pins = listing.pins
        try:
            names = {_set(path.name): path.name for path in (self._sys / "class/net").iterdir()}
        except OSError as error:
            raise CommandFailed(f"network interfaces cannot be listed ({error.strerror}); mount sysfs") from error
        return frozenset((names[name], *pin) for name, held in pins.items() if name in names for pin in held)

    def _listing(self) -> Listing:
        finished = self._runner.run(["nft", "-j", "list", "ruleset", "netdev"], timeout_s=_LIMIT_S)
        if finished.code != 0:
            log.warning("nft failed", extra={"stderr": finished.stderr})
            raise CommandFailed(f"ingress rules cannot be read (nft exit {finished.code}); is nftables installed?")
        return parse_listing(finished.stdout)

    def _apply(self, text: str, what: str) -> None:
        finished = self._runner.run(["nft", "-f", "-"], timeout_s=_LIMIT_S, stdin=text.encode())
        log.info("nft ended", extra={"script": text, "code": finished.code, "ms": round(finished.seconds * 1000)})
        if finished.code != 0:
            log.warning("nft failed", extra={"stderr": finished.stderr})
            raise CommandFailed(f"{what} cannot be set (nft exit {finished.code}); look at the log")


def render(interface: str) -> str:
    """Return the nft script that makes one interface's rules stand, keeping the pins it has; one transaction.

    Raises: Invalid for a name that nft could read as anything else.
    """
    if not _INTERFACE.fullmatch(interface):
        raise Invalid(f"network interface {interface!r} has a name that nftables cannot take; rename it")
    chain = f"netdev {TABLE} {_chain(interface)}"
    lines = [
        f"add table netdev {TABLE}",
        f"add set netdev {TABLE} {_set(interface)} {{ typeof {_PIN_TYPE}; }}",
        f'add chain {chain} {{ type filter hook ingress device "{interface}" priority {_PRIORITY}; policy accept; }}',
        f"flush chain {chain}",
        *(
            f'add rule {chain} {rule} comment "{comment}"'
            for rule, comment in zip(_rules(interface), _comments(interface), strict=True)
        ),
    ]
    return "\n".join(lines) + "\n"


def boot_ruleset(interfaces: Sequence[str]) -> str:
    """Return the text of /etc/aoe-csi/ingress.nft: rules without pins, so that at boot the initiator hears nobody.

    nft refuses a chain for an interface that is missing, and with it all it was given at once; so
    aoe-csi-ingress.service takes the parts between the marks one by one, and waits for those that come later.
    """
    parts = (f"# interface {interface}\n{render(interface)}# end {interface}\n" for interface in interfaces)
    return "# Written by aoe-csi for aoe-csi-ingress.service; changes are lost.\n" + "".join(parts)


def interfaces_in(text: str) -> frozenset[str]:
    """Return the interfaces that a text of `boot_ruleset` has rules for."""
    return frozenset(re.findall(r"(?m)^# interface (\S+)$", text))


def stands(listing: Listing, interface: str) -> bool:
    """Say whether an interface's chain holds exactly the rules `render` writes."""
    return listing.comments.get(_chain(interface)) == _comments(interface) and _set(interface) in listing.pins


def parse_listing(text: str) -> Listing:
    """Return what the JSON of `nft -j list ruleset netdev` says of our table. Raises: CommandFailed.

    Source: libnftables-json(5). A pin is `{"concat": ["<mac>", <shelf * 256 + slot>]}`.
    """
    comments: dict[str, list[str]] = {}
    pins: dict[str, frozenset[tuple[Address, Mac]]] = {}
    try:
        for entry in json.loads(text)["nftables"]:
            for kind, value in entry.items():
                if kind not in ("chain", "set", "rule") or value["table"] != TABLE or value["family"] != "netdev":
                    continue
                if kind == "chain":
                    comments.setdefault(str(value["name"]), [])
                elif kind == "rule":
                    comments.setdefault(str(value["chain"]), []).append(str(value.get("comment", "")))
                else:
                    pins[str(value["name"])] = frozenset(_parse_pin(one) for one in value.get("elem", ()))
    except (ValueError, KeyError, TypeError, AttributeError, AoECsiError) as error:
        raise CommandFailed(f"nft's listing cannot be read ({error!r}); flush table netdev {TABLE}") from error
    return Listing(comments={chain: tuple(one) for chain, one in comments.items()}, pins=pins)


def _parse_pin(element: object) -> tuple[Address, Mac]:
    if isinstance(element, dict) and "elem" in element:  # Newer versions wrap elements that carry more than a value.
        element = element["elem"]["val"]
    if not isinstance(element, dict):
        raise CommandFailed(f"{element!r} is no pin")
    mac, number = element["concat"]
    place = number if isinstance(number, int) else int(str(number), 0)
    return Address(place >> 8, place & 0xFF), parse_mac(str(mac))


def _rules(interface: str) -> tuple[str, ...]:
    return tuple(rule.replace("@pins", f"@{_set(interface)}") for rule in _RULES)


def _comments(interface: str) -> tuple[str, ...]:
    rules = _rules(interface)
    digest = hashlib.sha256("\n".join((interface, str(_PRIORITY), *rules)).encode()).hexdigest()[:12]
    return tuple(f"aoe-csi {number}/{len(rules)} {digest}" for number in range(1, len(rules) + 1))


def _replace(interface: str, listing: Listing) -> str:
    """Return the script that puts an interface's rules in the place of whatever bears their names, pins included."""
    remains = [
        (kind, name)
        for kind, name, there in (
            ("chain", _chain(interface), _chain(interface) in listing.comments),
            ("set", _set(interface), _set(interface) in listing.pins),
        )
        if there
    ]
    drop = "".join(f"flush {kind} netdev {TABLE} {name}\n" for kind, name in remains) + "".join(
        f"delete {kind} netdev {TABLE} {name}\n" for kind, name in remains
    )
    pins = sorted(listing.pins.get(_set(interface), frozenset()))
    return drop + render(interface) + "".join(_element("add", interface, *pin) for pin in pins)


def _element(verb: str, interface: str, address: Address, mac: Mac) -> str:
    place = f"0x{address.shelf << 8 | address.slot:06x}"
    return f"{verb} element netdev {TABLE} {_set(interface)} {{ {mac} . {place} }}\n"


def _chain(interface: str) -> str:
    return "in_" + _word(interface)


def _set(interface: str) -> str:
    return "pins_" + _word(interface)


def _word(interface: str) -> str:
    """Return an interface's name in letters, digits and underscores; no two names give the same word."""
    return "".join(char if char.isascii() and char.isalnum() else f"_{ord(char):02x}" for char in interface)
