"""What requests say of names, ids, sizes and paths, as values that code below may trust.

Refuses what cannot be meant (Invalid), what names nothing of ours (NotFound) and what no volume can be as large as
(OutOfRange), before anything is locked or touched. Source: csi.proto and the error tables of the CSI specification.
"""

import re
from dataclasses import dataclass

from aoe_core.errors import Invalid, NotFound, OutOfRange
from aoe_core.model import Attachment, NodeIdentity, NodeName, SnapshotId, VolumeId, derive_id, is_derived_id
from aoe_core.units import GIB, SECTOR_BYTES, format_bytes
from aoe_csi.proto import csi_pb2 as csi

MAX_NAME_BYTES = 128
"""csi.proto, "Size Limits": any string not said to be otherwise."""
MAX_PATH_BYTES = 4095
"""Linux: PATH_MAX without its NUL."""
DEFAULT_SIZE_BYTES = GIB
"""The size of a volume that is asked for without one."""
LARGEST_VOLUME_BYTES = 2**48 * SECTOR_BYTES
"""ATA's extended commands, the only ones AoE carries beyond 128 GiB, number sectors with 48 bits: 128 PiB."""

# csi.proto, CreateVolumeRequest.name: the control characters no name may hold.
_BANNED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_CONTROL = re.compile("[\x00-\x1f\x7f]")


def shown(text: str) -> str:
    """Return foreign text for a message: quoted, escaped and short (a gRPC trailer holds 8 KiB in all)."""
    return repr(text if len(text) <= 60 else text[:59] + "…")


def parse_name(name: str) -> str:
    """Return the id that a create request's name stands for. Raises: Invalid."""
    if not name:
        raise Invalid(f"name is missing; give a name of 1 to {MAX_NAME_BYTES} bytes")
    size = len(name.encode())
    if size > MAX_NAME_BYTES:
        raise Invalid(f"name {shown(name)} has {size} bytes; give a name of at most {MAX_NAME_BYTES}")
    banned = _BANNED.search(name)
    if banned:
        raise Invalid(f"name {shown(name)} holds the control character U+{ord(banned[0]):04X}; leave it out")
    return derive_id(name)


def _given(text: str, field: str) -> str:
    if not text:
        raise Invalid(f"{field} is missing; every {field.replace('_', ' ')} is at least one character")
    return text


def find_volume_id(text: str, field: str = "volume_id") -> VolumeId | None:
    """Return a volume's id, or None when no volume of ours can have it. Raises: Invalid when there is none."""
    return VolumeId(text) if is_derived_id(_given(text, field)) else None


def get_volume_id(text: str, field: str = "volume_id") -> VolumeId:
    """Return a volume's id. Raises: Invalid when there is none; NotFound when no volume of ours can have it."""
    volume_id = find_volume_id(text, field)
    if volume_id is None:
        raise NotFound(f"volume {shown(text)} does not exist; ask for an id that CreateVolume returned")
    return volume_id


def find_snapshot_id(text: str) -> SnapshotId | None:
    """Return a snapshot's id, or None when no snapshot of ours can have it. Raises: Invalid when there is none."""
    return SnapshotId(text) if is_derived_id(_given(text, "snapshot_id")) else None


def get_snapshot_id(text: str) -> SnapshotId:
    """Return a snapshot's id. Raises: Invalid when there is none; NotFound when no snapshot of ours can have it."""
    snapshot_id = find_snapshot_id(text)
    if snapshot_id is None:
        raise NotFound(f"snapshot {shown(text)} does not exist; ask for an id that CreateSnapshot returned")
    return snapshot_id


def get_node(node_id: str) -> NodeIdentity:
    """Return the node a node_id spells. Raises: Invalid when there is none; NotFound when it names no node of ours."""
    return NodeIdentity.parse(_given(node_id, "node_id"))


def find_node_name(node_id: str) -> NodeName | None:
    """Return the name in front of a node_id, None when there is none.

    Revoking must not depend on the rest: a node whose cards were changed, or that an older version named, is asked
    for by an id that no longer parses, and its grant has to go all the same.
    """
    name = node_id.partition("|")[0]
    return NodeName(name) if name else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRange:
    """The sizes that will do; 0 stands for "not said"."""

    required_bytes: int
    limit_bytes: int

    def smallest(self, otherwise_bytes: int) -> int:
        """Return the size to make: what is required, or else `otherwise_bytes` as far as the limit lets it."""
        if self.required_bytes:
            return self.required_bytes
        return min(otherwise_bytes, self.limit_bytes) if self.limit_bytes else otherwise_bytes


def parse_range(message: csi.CapacityRange) -> SizeRange:
    """Return the range a request gives; an absent message gives none.

    Raises: Invalid for a negative number (csi.proto: "MUST NOT be negative"); OutOfRange for a range nothing fits.
    """
    for field, value in (("required_bytes", message.required_bytes), ("limit_bytes", message.limit_bytes)):
        if value < 0:
            raise Invalid(f"capacity_range.{field} is {value}; give 0 for none, or a number of bytes")
    if message.required_bytes > LARGEST_VOLUME_BYTES:
        raise OutOfRange(
            f"capacity_range.required_bytes is {message.required_bytes}; "
            f"ask for at most {format_bytes(LARGEST_VOLUME_BYTES)}, the most ATA can address"
        )
    if 0 < message.limit_bytes < message.required_bytes:
        raise OutOfRange(
            f"capacity_range.limit_bytes is {message.limit_bytes}, below its required_bytes "
            f"{message.required_bytes}; raise the limit or ask for less"
        )
    return SizeRange(required_bytes=message.required_bytes, limit_bytes=message.limit_bytes)


def parse_volume_path(path: str, field: str) -> str:
    """Return a path to look a volume up by; whether it is the volume's is for the attacher to say. Raises: Invalid."""
    _given(path, field)
    if _CONTROL.search(path):
        raise Invalid(f"{field} {shown(path)} holds a control character; give a path without")
    if len(path.encode()) > MAX_PATH_BYTES:
        raise Invalid(f"{field} {shown(path)} has {len(path.encode())} bytes; Linux takes {MAX_PATH_BYTES}")
    return path


def parse_mount_path(path: str, field: str) -> str:
    """Return a path to create, mount on or remove: absolute and plain. Raises: Invalid."""
    parse_volume_path(path, field)
    if not path.startswith("/") or ".." in path.split("/"):
        raise Invalid(f"{field} {shown(path)} is not a plain absolute path; start it with / and leave out ..")
    return path


def parse_attachment(context: dict[str, str], volume_id: VolumeId) -> Attachment:
    """Return the attachment in a publish_context. Raises: Invalid when it is missing, malformed or another volume's."""
    if not context:
        raise Invalid(
            f"publish_context is missing for volume {volume_id}; pass on what ControllerPublishVolume returned"
        )
    attachment = Attachment.parse(context)
    if attachment.volume_id != volume_id:
        raise Invalid(
            f"publish_context is volume {shown(attachment.volume_id)}'s, the request is for {volume_id}; "
            "pass on what ControllerPublishVolume returned for this volume"
        )
    return attachment
