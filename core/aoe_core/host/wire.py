"""AoE frames as values, and the probe that asks the wire past the kernel's driver.

Only two questions are ever sent: query config and ATA IDENTIFY, each with bit 31 of the tag set, which marks a
program's request: the kernel's driver ignores replies to such tags (aoenet_rcv in drivers/block/aoe/aoenet.c), so
asking about an address makes no device appear. Replies are taken only when everything fits: ethertype, version,
response flag, no error, our tag, our address, our card. No bytes from the wire ever raise.
Layout: AoEr11, and struct aoe_hdr, aoe_atahdr and aoe_cfghdr in drivers/block/aoe/aoe.h. All integers are big-endian,
except the words of IDENTIFY's data (ATA: little-endian, strings with each pair of bytes swapped).
"""

import secrets
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from aoe_core.errors import CommandFailed, Unreachable
from aoe_core.host.contracts import Answer
from aoe_core.model import Address, Mac
from aoe_core.units import SECTOR_BYTES

ETHERTYPE = 0x88A2
BROADCAST = Mac("ff:ff:ff:ff:ff:ff")
VERSION = 1
FLAG_RESPONSE = 0x8
FLAG_ERROR = 0x4
COMMAND_ATA = 0
COMMAND_CONFIG = 1
CONFIG_READ = 0
ATA_IDENTIFY = 0xEC
PROGRAM_TAG = 0x80000000
"""Set in the tags of programs, clear in the kernel's."""
ANY_SLOT = 0xFF

_HEADER = struct.Struct(">6s6sHBBHBBI")
_ATA = struct.Struct(">BBBB6sH")
_CONFIG = struct.Struct(">HHBBH")
_MIN_FRAME_BYTES = 60
"""What Ethernet pads to, without the checksum."""
_RESEND_S = 0.2
_ATA_ERROR = 0x01
_IDENTITY_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One AoE frame. Shelf 0xffff and slot 0xff are broadcast addresses, hence no `Address`."""

    destination: Mac
    source: Mac
    response: bool
    error: int
    """AoE's error code; 0 is none, and the error flag is set exactly when there is one."""
    shelf: int
    slot: int
    command: int
    tag: int
    arguments: bytes = b""
    """What follows the header, with Ethernet's padding if the frame was short."""


def encode(frame: Frame) -> bytes:
    """Return a frame's bytes, padded to Ethernet's minimum."""
    flags = (FLAG_RESPONSE if frame.response else 0) | (FLAG_ERROR if frame.error else 0)
    header = _HEADER.pack(
        _mac_bytes(frame.destination),
        _mac_bytes(frame.source),
        ETHERTYPE,
        VERSION << 4 | flags,
        frame.error,
        frame.shelf,
        frame.slot,
        frame.command,
        frame.tag,
    )
    return (header + frame.arguments).ljust(_MIN_FRAME_BYTES, b"\0")


def decode(data: bytes) -> Frame | None:
    """Return the frame some bytes are, or None when they are no AoE frame of version 1."""
    if len(data) < _HEADER.size:
        return None
    destination, source, ethertype, version, error, shelf, slot, command, tag = _HEADER.unpack_from(data)
    if ethertype != ETHERTYPE or version >> 4 != VERSION or bool(version & FLAG_ERROR) != bool(error):
        return None
    return Frame(
        destination=_mac_text(destination),
        source=_mac_text(source),
        response=bool(version & FLAG_RESPONSE),
        error=error,
        shelf=shelf,
        slot=slot,
        command=command,
        tag=tag,
        arguments=data[_HEADER.size :],
    )


def config_query(source: Mac, shelf: int, slot: int, tag: int) -> Frame:
    """Return the broadcast question who serves a slot of a shelf, or any slot of it (`ANY_SLOT`)."""
    return Frame(
        destination=BROADCAST,
        source=source,
        response=False,
        error=0,
        shelf=shelf,
        slot=slot,
        command=COMMAND_CONFIG,
        tag=tag,
        arguments=_CONFIG.pack(0, 0, 0, VERSION << 4 | CONFIG_READ, 0),
    )


def identify_request(source: Mac, target: Mac, address: Address, tag: int) -> Frame:
    """Return ATA's question what a target's disk is."""
    return Frame(
        destination=target,
        source=source,
        response=False,
        error=0,
        shelf=address.shelf,
        slot=address.slot,
        command=COMMAND_ATA,
        tag=tag,
        arguments=_ATA.pack(0, 0, 1, ATA_IDENTIFY, bytes(6), 0),
    )


def parse_identity(arguments: bytes) -> tuple[str, int] | None:
    """Return (serial, size in bytes) from the arguments of an ATA response, None when they hold no identity.

    Source: ATA/ATAPI-7, IDENTIFY DEVICE: serial in words 10-19, 48-bit sector count in words 100-103.
    """
    if len(arguments) < _ATA.size + _IDENTITY_BYTES:
        return None
    _, _, _, status, _, _ = _ATA.unpack_from(arguments)
    if status & _ATA_ERROR:
        return None
    data = arguments[_ATA.size : _ATA.size + _IDENTITY_BYTES]
    swapped = bytearray(data[20:40])
    swapped[0::2], swapped[1::2] = swapped[1::2], swapped[0::2]
    sectors: int = struct.unpack_from("<Q", data, 200)[0]
    return serial_text(bytes(swapped)), sectors * SECTOR_BYTES


def serial_text(field: bytes) -> str:
    """Return IDENTIFY's serial field as text: up to the first NUL, without the blanks that fill it up."""
    return field.split(b"\0")[0].decode("ascii", "replace").strip()


class Roll:
    """Who answered for one address, and what each says it is. Holds no socket, so that any bytes can be tried on it."""

    def __init__(self, own: Mac, address: Address, first_tag: int) -> None:
        self._own = own
        self._address = address
        self._tag_config = PROGRAM_TAG | first_tag
        self._tag_identify = PROGRAM_TAG | (first_tag ^ 1)
        self._identities: dict[Mac, set[tuple[str, int]]] = {}

    def questions(self) -> tuple[bytes, ...]:
        """Return the frames to send now: the query, and an IDENTIFY for each card that has not told what it is."""
        waiting = [mac for mac, known in self._identities.items() if not known]
        return (
            encode(config_query(self._own, self._address.shelf, self._address.slot, self._tag_config)),
            *(encode(identify_request(self._own, mac, self._address, self._tag_identify)) for mac in waiting),
        )

    def take(self, data: bytes) -> bytes | None:
        """Take one frame from the wire; return the question it calls for, if any."""
        frame = decode(data)
        if frame is None or not frame.response or frame.error or frame.destination != self._own:
            return None
        if (frame.shelf, frame.slot) != (self._address.shelf, self._address.slot):
            return None
        if frame.command == COMMAND_CONFIG and frame.tag == self._tag_config:
            if frame.source in self._identities:
                return None
            self._identities[frame.source] = set()
            return encode(identify_request(self._own, frame.source, self._address, self._tag_identify))
        if frame.command == COMMAND_ATA and frame.tag == self._tag_identify and frame.source in self._identities:
            identity = parse_identity(frame.arguments)
            if identity is not None:
                self._identities[frame.source].add(identity)
        return None

    def answers(self) -> tuple[Answer, ...]:
        """Return what was said: one answer per card, more when one card gave two identities (two targets behind one
        card); an empty serial and no size for a card that answered the query and kept silent about itself."""
        found = ((mac, *identity) for mac, known in self._identities.items() for identity in (known or {("", 0)}))
        return tuple(Answer(mac=mac, serial=serial, size_bytes=size) for mac, serial, size in sorted(found))


class ShelfRoll:
    """Who answered for any slot of a shelf."""

    def __init__(self, own: Mac, shelf: int, first_tag: int) -> None:
        self._own = own
        self._shelf = shelf
        self._tag = PROGRAM_TAG | first_tag
        self._users: set[Mac] = set()

    def questions(self) -> tuple[bytes, ...]:
        """Return the frame to send now."""
        return (encode(config_query(self._own, self._shelf, ANY_SLOT, self._tag)),)

    def take(self, data: bytes) -> bytes | None:
        """Take one frame from the wire; nothing more is asked."""
        frame = decode(data)
        if (
            frame is not None
            and frame.response
            and not frame.error
            and (frame.destination, frame.command, frame.tag) == (self._own, COMMAND_CONFIG, self._tag)
            and frame.shelf == self._shelf
            and frame.source != self._own
        ):
            self._users.add(frame.source)
        return None

    def users(self) -> tuple[Mac, ...]:
        """Return the cards that answered."""
        return tuple(sorted(self._users))


_Heard = TypeVar("_Heard", Roll, ShelfRoll)


class RawSegments:
    """Segments, by raw sockets of this host."""

    def shelf_users(self, interface: str, shelf: int, *, timeout_s: float) -> tuple[Mac, ...]:
        """Ask with a broadcast for slot 255, which every target of the shelf answers that admits this interface."""
        return _listen(
            interface, f"shelf {shelf}", lambda own: ShelfRoll(own, shelf, secrets.randbits(31)), timeout_s
        ).users()


def probe(interface: str, address: Address, *, timeout_s: float) -> tuple[Answer, ...]:
    """Ask one interface's segment who serves an address, for the whole of `timeout_s`.

    Needs CAP_NET_RAW in the host's network namespace. Raises: Unreachable when the interface is missing or down,
    CommandFailed when raw sockets are refused.
    """
    return _listen(interface, str(address), lambda own: Roll(own, address, secrets.randbits(31)), timeout_s).answers()


def _listen(interface: str, what: str, open_roll: Callable[[Mac], _Heard], timeout_s: float) -> _Heard:
    """Ask and listen until `timeout_s` have passed, and return the filled roll."""
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as link:
            # Bound in one step: a socket given the protocol before its interface would hear all interfaces at first.
            link.bind((interface, ETHERTYPE))
            roll = open_roll(_mac_text(link.getsockname()[4]))
            end_s = time.monotonic() + timeout_s
            send_s = time.monotonic()
            while (now_s := time.monotonic()) < end_s:
                if now_s >= send_s:
                    for question in roll.questions():
                        link.send(question)
                    send_s = now_s + _RESEND_S
                link.settimeout(max(0.001, min(send_s, end_s) - now_s))
                try:
                    heard = link.recv(65536)
                except TimeoutError:
                    continue
                follow_up = roll.take(heard)
                if follow_up is not None:
                    link.send(follow_up)
            return roll
    except PermissionError as error:
        raise CommandFailed(
            f"no raw socket on {interface} ({error.strerror}); run this process with CAP_NET_RAW"
        ) from error
    except OSError as error:
        raise Unreachable(
            f"interface {interface} cannot be asked for {what} ({error.strerror}); check that it exists and is up"
        ) from error


def _mac_bytes(mac: Mac) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _mac_text(data: bytes) -> Mac:
    return Mac(data.hex(":"))
