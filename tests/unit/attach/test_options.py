from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe_core.attach.options import bind_options, is_read_only, mount_options
from aoe_core.attach.records import FilesystemUse
from aoe_core.errors import Invalid
from aoe_core.model import AccessMode

CONTEXT = 'context="system_u:object_r:container_file_t:s0:c1,c2"'


def use(*options: str, filesystem: Literal["ext4", "xfs"] = "ext4") -> FilesystemUse:
    return FilesystemUse(mode=AccessMode.SINGLE_NODE_WRITER, filesystem=filesystem, options=options)


def test_what_nobody_asks_for_is_still_safe() -> None:
    assert mount_options(use(), read_only=False) == ("errors=remount-ro", "rw")
    assert mount_options(use(filesystem="xfs"), read_only=False) == ("nouuid", "rw")


def test_a_reader_replays_no_journal() -> None:
    assert mount_options(use(), read_only=True)[-2:] == ("ro", "noload")
    assert mount_options(use(filesystem="xfs"), read_only=True) == ("nouuid", "ro", "norecovery")
    assert mount_options(use("ro"), read_only=False)[-2:] == ("ro", "noload")
    assert is_read_only(use("noatime,ro"))
    assert not is_read_only(use("rw"))


def test_an_option_alone_makes_nothing_writable() -> None:
    assert "rw" not in mount_options(use("rw"), read_only=True)


def test_selinux_contexts_pass_whole() -> None:
    assert CONTEXT in mount_options(use(CONTEXT, "noatime"), read_only=False)
    assert mount_options(use(f"noatime,{CONTEXT},nodev"), read_only=False)[:3] == ("noatime", CONTEXT, "nodev")


def test_the_users_error_policy_replaces_ours() -> None:
    assert mount_options(use("errors=continue"), read_only=False) == ("errors=continue", "rw")


@pytest.mark.parametrize(
    "option",
    [
        "bind",
        "remount",
        "move",
        "loop",
        "loop=/dev/loop0",
        "X-mount.mkdir",
        "x-systemd.automount",
        "journal_path=/dev/vda",
        "errors=panic",
        "nobarrier",
        "barrier=0",
        "noload",
        "norecovery",
        "commit=5;x",
        "commit=",
        'context="a" b',
        'context="',
        "noatime bind",
        "noatime,bind",
        "-o",
        " noatime",
        "\0",
    ],
)
def test_an_option_that_could_harm_is_refused(option: str) -> None:
    with pytest.raises(Invalid, match="mount option"):
        mount_options(use(option), read_only=False)


def test_options_of_the_other_file_system_are_refused() -> None:
    assert "allocsize=64k" in mount_options(use("allocsize=64k", filesystem="xfs"), read_only=False)
    with pytest.raises(Invalid):
        mount_options(use("allocsize=64k"), read_only=False)
    with pytest.raises(Invalid):
        mount_options(use("data=ordered", filesystem="xfs"), read_only=False)


@given(st.text())
def test_no_text_gets_past_as_anything_but_what_is_offered(option: str) -> None:
    try:
        passed = mount_options(use(option), read_only=False)
    except Invalid:
        return
    assert all(character not in "".join(passed) for character in "\0\n\t \\;")


def test_a_remounted_bind_is_given_its_flags_again() -> None:
    assert bind_options(use("nosuid,nodev", "noatime", "commit=5")) == ("nosuid", "nodev", "noatime")
