"""The words of the design as values: ids, addresses, volumes, snapshots, grants.

Nothing here touches a host. Every value is frozen and checks itself, so that code below may trust what it is given.
Facts about addresses and serials come from drivers/block/aoe and vblade (docs/design.md, "AoE facts").
"""

import enum
import hashlib
import re
from dataclasses import dataclass, field
from typing import NewType, Self

from aoe_core.errors import Invalid, NotFound

VolumeId = NewType("VolumeId", str)
SnapshotId = NewType("SnapshotId", str)
NodeName = NewType("NodeName", str)
PoolName = NewType("PoolName", str)
SanName = NewType("SanName", str)
Mac = NewType("Mac", str)
"""Lower case, colons: `52:54:00:00:01:15`."""
Serial = NewType("Serial", str)
"""Nine characters, see `serial_of`."""

MAX_SLOT = 254
MAX_SHELF = 65534
RESERVED_SHELF = 4095
"""aoecmd_cfg_rsp() refuses it: the driver prints "AoE device %d.%d ... shelf 0xfff" and drops the reply."""
MAX_MASK_MACS = 32
"""vblade's setmask() writes past a static array with a 33rd."""
MAX_NODE_ID_BYTES = 256
"""csi.proto, NodeGetInfoResponse.node_id."""

_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_HASHED_ID = re.compile(r"h-[0-9a-f]{32}")
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


def derive_id(request_name: str) -> str:
    """Return the id of the volume or snapshot a request name stands for: the name if it is a DNS label, else a hash.

    Derived, never generated: the same request finds the same object after any crash. A name that looks like a hashed
    id is hashed too, so no two names share an id.

    Raises: Invalid when the name is empty.
    """
    if not request_name:
        raise Invalid("the name is empty; give a name of 1 to 128 characters")
    if _ID.fullmatch(request_name) and not _HASHED_ID.fullmatch(request_name):
        return request_name
    return "h-" + hashlib.sha256(request_name.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def is_derived_id(text: str) -> bool:
    """Say whether `derive_id` can have made this id; anything else names no object of ours."""
    return _ID.fullmatch(text) is not None


def serial_of(volume_id: VolumeId) -> Serial:
    """Return the nine characters that identify a volume on the wire.

    vblade's serial is `<shelf>.<slot>:<host name>` in 20 characters, so `65534.254:` leaves ten, one for the NUL.
    libvirt lower-cases serials, hence no capitals. Nine base-32 characters are 45 bits.
    """
    number = int.from_bytes(hashlib.sha256(f"aoe-csi volume {volume_id}".encode()).digest()[:6], "big") >> 3
    alphabet = "abcdefghijklmnopqrstuvwxyz234567"
    return Serial("".join(alphabet[(number >> shift) & 31] for shift in range(40, -1, -5)))


def parse_mac(text: str) -> Mac:
    """Return a MAC address in the one spelling used here. Raises: Invalid."""
    mac = text.strip().lower().replace("-", ":")
    if not _MAC.fullmatch(mac):
        raise Invalid(f"{text!r} is no MAC address; write six bytes in hex, like 52:54:00:12:34:56")
    if int(mac[:2], 16) & 1:
        raise Invalid(f"{text!r} is a multicast address; give the address of a network card")
    return Mac(mac)


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """An AoE address. Linux takes shelves 0–65534 except 4095 and slots 0–254 (aoecmd.c, aoecmd_cfg_rsp)."""

    shelf: int
    slot: int

    def __post_init__(self) -> None:
        if not 0 <= self.shelf <= MAX_SHELF or self.shelf == RESERVED_SHELF:
            raise Invalid(f"shelf {self.shelf} cannot be used; AoE shelves are 0 to 65534 without 4095")
        if not 0 <= self.slot <= MAX_SLOT:
            raise Invalid(f"slot {self.slot} cannot be used; AoE slots are 0 to 254")

    def __str__(self) -> str:
        return f"e{self.shelf}.{self.slot}"

    @property
    def instance(self) -> str:
        """The address as a systemd instance name, `10.3`."""
        return f"{self.shelf}.{self.slot}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the address written `e10.3` or `10.3`. Raises: Invalid."""
        match = re.fullmatch(r"e?(\d{1,5})\.(\d{1,3})", text)
        if match is None:
            raise Invalid(f"{text!r} is no AoE address; write it like e10.3")
        return cls(int(match[1]), int(match[2]))


class AccessMode(enum.Enum):
    """CSI's access modes that a volume can be granted in (csi.proto, VolumeCapability.AccessMode)."""

    SINGLE_NODE_WRITER = "single-node-writer"
    SINGLE_NODE_SINGLE_WRITER = "single-node-single-writer"
    SINGLE_NODE_MULTI_WRITER = "single-node-multi-writer"
    SINGLE_NODE_READER_ONLY = "single-node-reader-only"
    MULTI_NODE_READER_ONLY = "multi-node-reader-only"
    MULTI_NODE_MULTI_WRITER = "multi-node-multi-writer"

    @property
    def writes(self) -> bool:
        """Whether the mode lets its holder write."""
        return self not in (AccessMode.SINGLE_NODE_READER_ONLY, AccessMode.MULTI_NODE_READER_ONLY)

    @property
    def many_nodes(self) -> bool:
        """Whether several nodes may hold the mode at once."""
        return self in (AccessMode.MULTI_NODE_READER_ONLY, AccessMode.MULTI_NODE_MULTI_WRITER)

    @property
    def many_targets(self) -> bool:
        """Whether one node may publish the volume at several paths (CSI's NodePublish table)."""
        return self.many_nodes or self in (AccessMode.SINGLE_NODE_MULTI_WRITER, AccessMode.SINGLE_NODE_READER_ONLY)


class Durability(enum.Enum):
    """What makes an acknowledged write durable on the storage node; there is no third choice."""

    SYNC = "sync"
    """vblade -s: O_SYNC."""
    DIRECT_SYNC = "direct-sync"
    """vblade -d -s: O_DIRECT and O_SYNC; needs frames that are multiples of the device's logical block."""


class Wipe(enum.Enum):
    """How a deleted thick volume is made unreadable before its space is free."""

    ZERO = "zero"
    DISCARD_AND_ZERO = "discard-and-zero"


class VolumeState(enum.Enum):
    """Where a volume stands, as LVM's tags say it."""

    NEW = "new"
    """Being made; holds nothing anybody was promised."""
    READY = "ready"
    """Given out; never made empty again."""
    DELETING = "deleting"
    """Its name is free; its space is not, until it is wiped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FromSnapshot:
    """A volume's content comes from a snapshot."""

    snapshot_id: SnapshotId


@dataclass(frozen=True, slots=True, kw_only=True)
class FromVolume:
    """A volume's content comes from another volume."""

    volume_id: VolumeId


Source = FromSnapshot | FromVolume


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeSpec:
    """What is asked of a volume; equal specs are the same request."""

    volume_id: VolumeId
    pool: PoolName
    size_bytes: int
    """The smallest size that will do, as asked for."""
    limit_bytes: int = 0
    """The largest size that will do; 0 = any."""
    durability: Durability = Durability.SYNC
    wipe: Wipe = Wipe.ZERO
    san: SanName | None = None
    """The SAN it is exported on; None: whichever its storage node and a compute node share."""
    reach: tuple[SanName, ...] = ()
    """SANs one of which its storage node must be on; empty: any."""
    source: Source | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A volume as LVM knows it."""

    volume_id: VolumeId
    pool: PoolName
    size_bytes: int
    """Bytes asked for, not rounded to extents: a restore of the same size must not be refused."""
    device_bytes: int
    """Bytes of the logical volume."""
    state: VolumeState
    durability: Durability
    wipe: Wipe
    san: SanName | None = None
    source: Source | None = None
    filesystem: str | None = None
    """The file system the storage node saw on it, once it saw one."""
    grown_from_bytes: int | None = None
    """The device's bytes before a growth that is not known to have come to its end; None when there is none."""
    reach: tuple[SanName, ...] = ()
    """The SANs its storage node exports it on; empty: all of whoever provides it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A thin snapshot as LVM knows it."""

    snapshot_id: SnapshotId
    source: VolumeId
    pool: PoolName
    size_bytes: int
    """The bytes asked for of its source."""
    created_s: int
    """Seconds since the epoch."""
    filesystem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIdentity:
    """Who asks for a volume: a compute node, its present boot and its network cards per SAN.

    Written as CSI's node_id: `compute1|<boot>|main=525400010015+…,second=…`.
    """

    name: NodeName
    boot: str
    """The first eight hex digits of the kernel's boot_id: tells a node that rebooted from one that was paused."""
    macs: tuple[tuple[SanName, tuple[Mac, ...]], ...]

    def macs_on(self, san: SanName) -> tuple[Mac, ...]:
        """Return the node's MAC addresses on one SAN, none if it is not on it."""
        return next((macs for name, macs in self.macs if name == san), ())

    def __str__(self) -> str:
        sans = ",".join(f"{san}={'+'.join(mac.replace(':', '') for mac in macs)}" for san, macs in self.macs)
        return f"{self.name}|{self.boot}|{sans}"

    @classmethod
    def parse(cls, node_id: str) -> Self:
        """Return the identity a node_id spells.

        Raises: NotFound when it is none of ours: CSI answers NOT_FOUND for a node that does not exist, and an id we
        cannot have given names no node.
        """
        absent = NotFound(f"node id {node_id[:80]!r} names no node of this driver; check the node's registration")
        parts = node_id.split("|")
        if len(node_id.encode()) > MAX_NODE_ID_BYTES or len(parts) != 3 or not _NAME.fullmatch(parts[0]):
            raise absent
        if not re.fullmatch(r"[0-9a-f]{8}", parts[1]):
            raise absent
        sans: list[tuple[SanName, tuple[Mac, ...]]] = []
        for item in parts[2].split(",") if parts[2] else ():
            san, _, digits = item.partition("=")
            if not _NAME.fullmatch(san) or not re.fullmatch(r"[0-9a-f]{12}(\+[0-9a-f]{12})*", digits):
                raise absent
            macs = tuple(Mac(":".join(mac[i : i + 2] for i in range(0, 12, 2))) for mac in digits.split("+"))
            sans.append((SanName(san), macs))
        if len({san for san, _ in sans}) != len(sans):
            raise absent
        return cls(name=NodeName(parts[0]), boot=parts[1], macs=tuple(sans))


class Transport(enum.Enum):
    """How a granted volume reaches its node."""

    AOE = "aoe"
    LOCAL = "local"
    """Storage and compute node are one machine: it uses the logical volume itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """Everything a node needs to use a granted volume: CSI's publish_context."""

    volume_id: VolumeId
    transport: Transport
    serial: Serial
    size_bytes: int
    """At grant time; the device must be at least as large (the context is never refreshed)."""
    filesystem: str
    """The file system the storage node saw on the volume, empty if it never saw one."""
    writable: bool
    address: Address | None = None
    san: SanName | None = None
    target_mac: Mac | None = None
    """Advisory: the card the target answered from when the grant was made."""
    device: str = ""
    """The logical volume's path, for LOCAL."""
    version: int = field(default=1)
    """Of this context's layout; a node refuses one it does not know."""

    def context(self) -> dict[str, str]:
        """Return the publish_context (csi.proto: a map of strings, at most 4 KiB)."""
        return {
            "version": str(self.version),
            "volume_id": self.volume_id,
            "transport": self.transport.value,
            "serial": self.serial,
            "size_bytes": str(self.size_bytes),
            "filesystem": self.filesystem,
            "writable": "true" if self.writable else "false",
            "address": str(self.address) if self.address else "",
            "san": self.san or "",
            "target_mac": self.target_mac or "",
            "device": self.device,
        }

    @classmethod
    def parse(cls, context: dict[str, str]) -> Self:
        """Return the attachment a publish_context spells. Raises: Invalid naming the key."""
        version = context.get("version", "")
        if version != "1":
            raise Invalid(
                f"publish_context has version {version!r}, this node knows 1; upgrade the node plugin or publish again"
            )
        try:
            transport = Transport(context["transport"])
            attachment = cls(
                volume_id=VolumeId(context["volume_id"]),
                transport=transport,
                serial=Serial(context["serial"]),
                size_bytes=int(context["size_bytes"]),
                filesystem=context["filesystem"],
                writable={"true": True, "false": False}[context["writable"]],
                address=Address.parse(context["address"]) if transport is Transport.AOE else None,
                san=SanName(context["san"]) if context["san"] else None,
                target_mac=parse_mac(context["target_mac"]) if context["target_mac"] else None,
                device=context["device"],
            )
        except KeyError as error:
            raise Invalid(f"publish_context lacks or misspells {error.args[0]!r}; publish the volume again") from error
        except ValueError as error:
            raise Invalid(f"publish_context is malformed ({error}); publish the volume again") from error
        if transport is Transport.LOCAL and not attachment.device.startswith("/dev/"):
            raise Invalid("publish_context names no device for a local volume; publish the volume again")
        return attachment


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The right of one node to use one volume, in force as long as its export file says so."""

    volume_id: VolumeId
    node: NodeName
    node_id: str
    """As the orchestrator spelled it: what ListVolumes must answer for it to recognise its own."""
    boot: str
    mode: AccessMode
    writable: bool
    block: bool
    transport: Transport
    san: SanName | None
    macs: tuple[Mac, ...]
    address: Address | None
    granted_s: int
    half_revoked: bool = False
    """Its revocation has begun and not ended: nobody is to be promised it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeStatus:
    """A volume with who holds it."""

    volume: Volume
    grants: tuple[Grant, ...]
    guest_nodes: frozenset[NodeName] = frozenset()
    """In a cluster, the nodes that hold it for a guest, which no kubelet sees to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What can still be given out of some pools."""

    available_bytes: int
    maximum_volume_bytes: int


NO_CAPACITY = Capacity(available_bytes=0, maximum_volume_bytes=0)
