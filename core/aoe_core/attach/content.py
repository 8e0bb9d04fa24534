"""What may be done with what is found on a proven device, before it is mounted. Pure.

Never blank: a file system is made only on a device that is blank (or where a mkfs of ours was cut), that may be
written, and on which the storage node never saw a file system.
"""

import enum

from aoe_core.attach.records import FilesystemUse
from aoe_core.errors import Conflict, IdentityMismatch, Invalid
from aoe_core.host.blocks import MKFS_LABEL
from aoe_core.model import Attachment


class Step(enum.Enum):
    """What comes before the mount."""

    MAKE = "make"
    CHECK = "check"
    NONE = "none"
    """Read-only: nothing may be written, not even a journal replayed."""


def judge_content(attachment: Attachment, use: FilesystemUse, signature: str, *, read_only: bool) -> Step:
    """Return what to do before mounting, from what `BlockDevices.signature` found.

    Raises: IdentityMismatch when content is missing that the storage node saw, or cannot be recognised; Conflict when
    another file system is there; Invalid when there is nothing to read for a read-only use.
    """
    volume = f"volume {attachment.volume_id}"
    if signature == use.filesystem:
        return Step.NONE if read_only else Step.CHECK
    if signature not in ("", MKFS_LABEL):
        if signature == "unknown-data":
            raise IdentityMismatch(
                f"{volume} holds data without a known file system and {use.filesystem} was asked for; nothing was "
                "written, use it as a block device or empty it yourself"
            )
        raise Conflict(
            f"{volume} holds {signature} and {use.filesystem} was asked for; ask for {signature} or use another volume"
        )
    if attachment.filesystem:
        raise IdentityMismatch(
            f"{volume} looks blank on this node, but its storage node saw {attachment.filesystem} on it; nothing was "
            "written, look at the logical volume on the storage node"
        )
    if read_only:
        raise Invalid(f"{volume} is blank and is to be read only; write something to it first")
    return Step.MAKE
