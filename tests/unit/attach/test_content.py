from dataclasses import replace
from typing import Literal

import pytest

from aoe_core.attach.content import Step, judge_content
from aoe_core.attach.records import FilesystemUse
from aoe_core.errors import AoECsiError, Conflict, IdentityMismatch, Invalid
from aoe_core.model import AccessMode, Address, Attachment, SanName, Serial, Transport, VolumeId
from aoe_core.units import GIB

ATTACHMENT = Attachment(
    volume_id=VolumeId("pvc-1"),
    transport=Transport.AOE,
    serial=Serial("abcdefghi"),
    size_bytes=GIB,
    filesystem="",
    writable=True,
    address=Address(10, 3),
    san=SanName("main"),
)


def judge(signature: str, *, seen: str = "", asked: Literal["ext4", "xfs"] = "ext4", read_only: bool = False) -> Step:
    use = FilesystemUse(mode=AccessMode.SINGLE_NODE_WRITER, filesystem=asked)
    return judge_content(replace(ATTACHMENT, filesystem=seen), use, signature, read_only=read_only)


@pytest.mark.parametrize(
    ("signature", "seen", "read_only", "step"),
    [
        ("", "", False, Step.MAKE),
        ("aoe-mkfs", "", False, Step.MAKE),
        ("ext4", "", False, Step.CHECK),
        ("ext4", "ext4", False, Step.CHECK),
        ("ext4", "", True, Step.NONE),
        ("ext4", "ext4", True, Step.NONE),
    ],
)
def test_what_comes_before_the_mount(signature: str, seen: str, read_only: bool, step: Step) -> None:
    assert judge(signature, seen=seen, read_only=read_only) is step


@pytest.mark.parametrize(
    ("signature", "seen", "read_only", "error"),
    [
        # Content the storage node saw is never made anew.
        ("", "ext4", False, IdentityMismatch),
        ("aoe-mkfs", "ext4", False, IdentityMismatch),
        ("", "xfs", True, IdentityMismatch),
        # What nobody recognises may be somebody's data.
        ("unknown-data", "", False, IdentityMismatch),
        ("unknown-data", "ext4", False, IdentityMismatch),
        ("xfs", "", False, Conflict),
        ("xfs", "ext4", True, Conflict),
        ("LVM2_member", "", False, Conflict),
        ("ambiguous", "", False, Conflict),
        ("partition-table-gpt", "", False, Conflict),
        # Nothing is written for a reader.
        ("", "", True, Invalid),
        ("aoe-mkfs", "", True, Invalid),
    ],
)
def test_what_is_refused(signature: str, seen: str, read_only: bool, error: type[AoECsiError]) -> None:
    with pytest.raises(error, match="pvc-1"):
        judge(signature, seen=seen, read_only=read_only)


def test_another_file_system_is_refused_naming_both() -> None:
    with pytest.raises(Conflict, match=r"ext4.*xfs"):
        judge("ext4", asked="xfs")
