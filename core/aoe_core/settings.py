"""The configuration file of one machine (TOML), read once at start.

Every key is documented here and in docs/configuration.md; an unknown key, a wrong type or a contradiction is refused
by name before anything starts. Nothing else in the project reads configuration, environment or defaults.
"""

import re
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from aoe_core.errors import Invalid
from aoe_core.model import MAX_SHELF, RESERVED_SHELF, Mac, NodeName, PoolName, SanName, parse_mac
from aoe_core.units import GIB

DEFAULT_PATH = Path("/etc/aoe-csi/config.toml")

_NAME = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
Name = Annotated[str, msgspec.Meta(pattern=_NAME)]
Bytes = Annotated[int, msgspec.Meta(ge=0)]
File = TypeVar("File", bound=msgspec.Struct)


class San(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One Ethernet segment this machine is on."""

    name: Name
    """The segment's name, the same on every machine on it."""
    interface: Annotated[str, msgspec.Meta(pattern=r"^[^\s/]{1,15}$")]
    """This machine's network interface on it: a NIC, a bond or a VLAN; never a bridge port."""
    shelves: tuple[tuple[int, int], ...] = ()
    """Ranges [first, last] of AoE shelves that this machine alone exports on. Storage machines need at least one;
    no other machine or cluster on the segment may use them (a probe cannot see masked exports)."""


class Pool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named class of space on this machine: a volume group, or a thin pool in it."""

    name: Name
    """What StorageClass parameter `pool` says."""
    volume_group: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,126}$")]
    """The LVM volume group; it must have this machine's system ID."""
    thin_pool: Annotated[str, msgspec.Meta(pattern=r"^$|^[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,126}$")] = ""
    """The thin pool in it; empty for thick volumes. Only thin pools have snapshots."""
    overprovision: Annotated[float, msgspec.Meta(ge=1.0, le=100.0)] = 1.0
    """Thin only: how many times its size a pool may promise. Above 1.0 a full pool fails its guests' writes."""
    spare_bytes: Bytes = 0
    """Space never given out."""
    thin_data_limit_percent: Annotated[float, msgspec.Meta(gt=0, le=100)] = 90.0
    """Thin only: above this share of used data space, new volumes and snapshots are refused."""
    thin_metadata_limit_percent: Annotated[float, msgspec.Meta(gt=0, le=100)] = 80.0
    """Thin only: the same for its metadata space."""


class Node(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A compute machine that a standalone server may grant volumes to."""

    name: Name
    """As its own configuration says in `node`."""
    macs: dict[Name, tuple[str, ...]] = {}
    """SAN → its MAC addresses. When given, they alone are admitted, whatever the node says of itself."""


class Exports(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How this machine exports."""

    exporter: Annotated[str, msgspec.Meta(pattern=r"^/\S+$")] = "/usr/sbin/vblade"
    """A program with vblade's command line."""
    buffers: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 16
    """Frames an initiator may have in flight per target (vblade -b)."""
    rest_s: Annotated[int, msgspec.Meta(ge=1)] = 660
    """How long a revoked address rests before another node may get it; must exceed every initiator's aoe_deadsecs."""


class Initiator(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How this machine attaches."""

    deadsecs: Annotated[int, msgspec.Meta(ge=1)] = 600
    """aoe_deadsecs: after so long without an answer I/O fails. It must outlast a storage machine's reboot, and the
    storage machines' rest_s must exceed it. 0 (wait for ever) is refused."""
    max_volumes: Annotated[int, msgspec.Meta(ge=1, le=10000)] = 128
    """Volumes this node takes at once (CSI's max_volumes_per_node)."""
    probe_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 0.4
    """How long stage listens for answers to an address before it counts them; every stage takes so long. It asks every
    0.2 s."""
    stage_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 30.0
    """How long stage waits for a target to answer at all."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    node: Name
    """This machine's name, unique in the cluster."""
    san: tuple[San, ...] = ()
    pool: tuple[Pool, ...] = ()
    known_node: tuple[Node, ...] | None = ()
    """Compute machines, for the standalone server only. None, which no file can say, is for a caller that vouches for
    every node it names: a cluster, where a node's own identity is what is known of it."""
    compute: bool = True
    """Whether this machine attaches volumes; false on machines that only export."""
    exports: Exports = Exports()
    initiator: Initiator = Initiator()
    state_directory: Annotated[str, msgspec.Meta(pattern=r"^/\S*$")] = "/var/lib/aoe-csi"
    """Where export files and stage records live; on a file system that survives power loss."""
    max_volume_bytes: Bytes = 16 * 1024 * GIB
    """The largest volume given out."""

    @property
    def node_name(self) -> NodeName:
        """This machine's name as a typed id."""
        return NodeName(self.node)

    def pool_named(self, name: PoolName) -> Pool | None:
        """Return a pool by name."""
        return next((pool for pool in self.pool if pool.name == name), None)

    def san_named(self, name: SanName) -> San | None:
        """Return a SAN by name."""
        return next((san for san in self.san if san.name == name), None)

    def known_macs(self, node: NodeName) -> dict[SanName, tuple[Mac, ...]] | None:
        """Return the MACs configured for a known node (perhaps none), or None when the node is not known."""
        if self.known_node is None:
            return {}
        entry = next((one for one in self.known_node if one.name == node), None)
        if entry is None:
            return None
        return {SanName(san): tuple(parse_mac(mac) for mac in macs) for san, macs in entry.macs.items()}


def read(path: Path = DEFAULT_PATH) -> Settings:
    """Read and check a configuration file. Raises: Invalid naming the file, the key, the fact and the remedy."""
    settings = read_as(Settings, path)
    _check(settings, str(path))
    return settings


def parse(text: str, origin: str = "configuration") -> Settings:
    """Check a configuration's text. Raises: Invalid."""
    settings = _decode(Settings, text, origin)
    _check(settings, origin)
    return settings


def read_as(kind: type[File], path: Path) -> File:
    """Read a TOML file of any kind of ours; what contradicts itself in it is its owner's to find. Raises: Invalid."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise Invalid(f"configuration {path} cannot be read ({error.strerror}); create it or pass --config") from error
    except UnicodeDecodeError as error:
        raise Invalid(f"configuration {path} is not UTF-8 text (byte {error.start}); write it as TOML") from error
    return _decode(kind, text, str(path))


def _decode(kind: type[File], text: str, origin: str) -> File:
    try:
        return msgspec.toml.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise Invalid(f"{origin}: {_in_words(str(error))}; see docs/configuration.md") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise Invalid(f"{origin} is no valid TOML: {error}") from error


def _in_words(message: str) -> str:
    unknown = re.fullmatch(r"Object contains unknown field `(.*?)`(?: - at `\$\.?(.*?)`)?", message)
    if unknown:
        return f"unknown key {unknown[1]!r}" + (f" in {unknown[2]}" if unknown[2] else "")
    return message.replace("`$.", "`").replace("Object missing required field", "missing key")


def _check(settings: Settings, origin: str) -> None:
    for kind, names in (
        ("san", [san.name for san in settings.san]),
        ("san interface", [san.interface for san in settings.san]),
        ("pool", [pool.name for pool in settings.pool]),
        ("known_node", [node.name for node in settings.known_node or ()]),
        ("pool on", [f"{pool.volume_group}/{pool.thin_pool}" for pool in settings.pool]),
    ):
        for name in names:
            if names.count(name) > 1:
                raise Invalid(f"{origin}: {kind} {name!r} is given {names.count(name)} times; give it once")
    taken: dict[int, str] = {}
    for san in settings.san:
        for first, last in san.shelves:
            if not 0 <= first <= last <= MAX_SHELF or first <= RESERVED_SHELF <= last:
                raise Invalid(
                    f"{origin}: san {san.name!r} has shelves [{first}, {last}]; "
                    "use first <= last within 0 to 65534 and leave out 4095"
                )
            for shelf in range(first, last + 1):
                if shelf in taken:
                    raise Invalid(
                        f"{origin}: shelf {shelf} is given twice ({taken[shelf]}, {san.name}); once is enough"
                    )
                taken[shelf] = san.name
    for node in settings.known_node or ():
        for san_name, macs in node.macs.items():
            for mac in macs:
                try:
                    parse_mac(mac)
                except Invalid as error:
                    raise Invalid(f"{origin}: known_node {node.name!r}, san {san_name!r}: {error}") from error
    if settings.pool and settings.exports.rest_s <= settings.initiator.deadsecs:
        raise Invalid(
            f"{origin}: exports.rest_s is {settings.exports.rest_s} s and must exceed initiator.deadsecs "
            f"({settings.initiator.deadsecs} s), or a fenced node's frozen writes could land; raise rest_s"
        )
