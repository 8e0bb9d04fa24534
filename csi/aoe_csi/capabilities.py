"""CSI's volume capabilities as access modes and uses.

A request may list several; a volume must then satisfy each of them, though not at once (csi.proto,
CreateVolumeRequest.volume_capabilities). A logical volume can be block today and a file system tomorrow, or be
written today and only read tomorrow; what it cannot be is two kinds of file system.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from aoe_core.attach.records import BlockUse, FilesystemUse, Use
from aoe_core.errors import Invalid, OutOfRange
from aoe_core.model import AccessMode
from aoe_core.units import MIB, format_bytes
from aoe_csi.proto import csi_pb2 as csi
from aoe_csi.requests import shown

FileSystemName = Literal["ext4", "xfs"]
FILE_SYSTEMS: tuple[FileSystemName, ...] = get_args(FileSystemName)
DEFAULT_FILE_SYSTEM: FileSystemName = "ext4"
SMALLEST_XFS_BYTES = 300 * MIB
"""mkfs.xfs(8) refuses less."""
MAX_MOUNT_FLAGS_BYTES = 4096
"""csi.proto, MountVolume.mount_flags."""

_Mode = csi.VolumeCapability.AccessMode
_MODES = {
    _Mode.SINGLE_NODE_WRITER: AccessMode.SINGLE_NODE_WRITER,
    _Mode.SINGLE_NODE_SINGLE_WRITER: AccessMode.SINGLE_NODE_SINGLE_WRITER,
    _Mode.SINGLE_NODE_MULTI_WRITER: AccessMode.SINGLE_NODE_MULTI_WRITER,
    _Mode.SINGLE_NODE_READER_ONLY: AccessMode.SINGLE_NODE_READER_ONLY,
    _Mode.MULTI_NODE_READER_ONLY: AccessMode.MULTI_NODE_READER_ONLY,
    _Mode.MULTI_NODE_MULTI_WRITER: AccessMode.MULTI_NODE_MULTI_WRITER,
}
_CONTROL = re.compile("[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """One way a volume is to be used."""

    mode: AccessMode
    block: bool
    filesystem: FileSystemName | None = None
    """None for block, and where the request leaves the choice open."""
    options: tuple[str, ...] = ()

    def use(self, *, writable: bool, filesystem: FileSystemName | None = None) -> Use:
        """Return the use to stage or publish a volume for.

        `writable` is what was granted; `filesystem` what the volume was created for, if the request does not say.
        """
        read_only = not (writable and self.mode.writes)
        if self.block:
            return BlockUse(mode=self.mode, read_only=read_only)
        return FilesystemUse(
            mode=self.mode,
            filesystem=self.filesystem or filesystem or DEFAULT_FILE_SYSTEM,
            options=self.options,
            read_only=read_only,
        )


def parse_filesystem(text: str, field: str) -> FileSystemName:
    """Return a file system's name. Raises: Invalid naming the ones there are."""
    for name in FILE_SYSTEMS:
        if text == name:
            return name
    raise Invalid(f"{field} is {shown(text)}; say {' or '.join(FILE_SYSTEMS)}")


def parse_capability(message: csi.VolumeCapability) -> Capability:
    """Return a capability. Raises: Invalid for what is missing, and for what no volume of ours can do."""
    kind = message.WhichOneof("access_type")
    if kind is None:
        raise Invalid("volume_capability is missing or has no access_type; say block or mount")
    mode = _parse_mode(message.access_mode.mode)
    if kind == "block":
        return Capability(mode=mode, block=True)
    if mode is AccessMode.MULTI_NODE_MULTI_WRITER:
        raise Invalid(
            "access mode MULTI_NODE_MULTI_WRITER is asked for a file system, which two nodes writing at once would "
            "destroy; ask for block, or for a mode with one writer"
        )
    if message.mount.volume_mount_group:
        raise Invalid("mount.volume_mount_group is set, and ext4 and xfs take none; leave it out and use fsGroup")
    return Capability(
        mode=mode,
        block=False,
        filesystem=parse_filesystem(message.mount.fs_type, "mount.fs_type") if message.mount.fs_type else None,
        options=_parse_flags(message.mount.mount_flags),
    )


def access_mode(mode: AccessMode) -> csi.VolumeCapability.AccessMode.Mode.ValueType:
    """Return CSI's number of a mode."""
    return next(number for number, ours in _MODES.items() if ours is mode)


def parse_capabilities(messages: Iterable[csi.VolumeCapability]) -> tuple[Capability, ...]:
    """Return the capabilities one volume must have. Raises: Invalid when there is none, or no volume can have all."""
    capabilities = tuple(parse_capability(message) for message in messages)
    if not capabilities:
        raise Invalid("volume_capabilities is empty; say how the volume is to be used")
    wanted = sorted({one.filesystem for one in capabilities if one.filesystem is not None})
    if len(wanted) > 1:
        raise Invalid(f"volume_capabilities ask for {' and '.join(wanted)}, and a volume holds one; say one of them")
    return capabilities


def require_fitting(capabilities: Iterable[Capability], wanted: FileSystemName | None, size_bytes: int) -> None:
    """Check that a file system can be made on so many bytes; else every stage would fail. Raises: OutOfRange."""
    asked = {one.filesystem or wanted for one in capabilities if not one.block}
    if "xfs" in asked and size_bytes < SMALLEST_XFS_BYTES:
        raise OutOfRange(
            f"xfs needs {format_bytes(SMALLEST_XFS_BYTES)} and {format_bytes(size_bytes)} are asked for; ask for more, "
            "or for ext4"
        )


def _parse_mode(mode: int) -> AccessMode:
    known = {int(number): ours for number, ours in _MODES.items()}.get(mode)
    if known is None:
        name = _Mode.Mode.Name(_Mode.Mode.ValueType(mode)) if mode in _Mode.Mode.values() else str(mode)
        raise Invalid(
            f"volume_capability.access_mode is {name}, which is not offered; "
            f"say one of {', '.join(one.name for one in AccessMode)}"
        )
    return known


def _parse_flags(flags: Iterable[str]) -> tuple[str, ...]:
    # csi.proto: mount flags may be sensitive, so messages name their place and never their text.
    options = tuple(flags)
    for place, option in enumerate(options):
        if not option:
            raise Invalid(f"mount.mount_flags[{place}] is empty; leave it out")
        if option.startswith("-"):
            raise Invalid(f"mount.mount_flags[{place}] begins with '-'; give mount options, not switches")
        if _CONTROL.search(option):
            raise Invalid(f"mount.mount_flags[{place}] holds a control character; give it without")
    size = sum(len(option.encode()) for option in options)
    if size > MAX_MOUNT_FLAGS_BYTES:
        raise Invalid(f"mount.mount_flags have {size} bytes in all; keep them within {MAX_MOUNT_FLAGS_BYTES}")
    return options
