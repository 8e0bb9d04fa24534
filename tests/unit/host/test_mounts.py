import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe_core.errors import CommandFailed, NotFound
from aoe_core.host.contracts import Mount
from aoe_core.host.mounts import HostMounts, parse_mountinfo
from aoe_core.host.runner import HostRunner


@pytest.fixture
def mounts() -> HostMounts:
    return HostMounts(HostRunner())


def octal(text: str) -> bytes:
    """A field as the kernel writes it: seq_path and seq_escape mangle blank, tab, newline, backslash."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in os.fsencode(text))


def test_a_line_is_read_as_proc_documents_it() -> None:
    line = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue\n"
    assert parse_mountinfo(line) == (
        Mount(
            target="/mnt2",
            source="/dev/root",
            root="/mnt1",
            filesystem="ext3",
            device="98:0",
            options=frozenset({"rw", "noatime", "errors=continue"}),
        ),
    )


def test_a_bound_device_node_shows_its_path_in_devtmpfs() -> None:
    (mount,) = parse_mountinfo(b"71 29 0:5 /etherd/e10.3 /var/dev/pod rw,nosuid shared:2 - devtmpfs udev rw,size=4k\n")
    assert (mount.root, mount.filesystem, mount.device) == ("/etherd/e10.3", "devtmpfs", "0:5")


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@given(names, names, names)
def test_any_path_survives_the_kernels_escapes(target: str, source: str, root: str) -> None:
    line = b"36 35 98:0 %s %s rw - ext4 %s rw\n" % (octal(root), octal("/" + target), octal(source))
    (mount,) = parse_mountinfo(line * 1)
    assert (mount.root, mount.target, mount.source) == (root, "/" + target, source)


@given(st.binary(max_size=300))
def test_no_bytes_raise(content: bytes) -> None:
    assert len(parse_mountinfo(content)) <= content.count(b" - ")


def test_an_octal_escape_is_not_taken_twice() -> None:
    (mount,) = parse_mountinfo(rb"36 35 98:0 / /a\134040b rw - ext4 /dev/vda rw" + b"\n")
    assert mount.target == r"/a\040b"


def test_the_real_table_has_a_root(mounts: HostMounts) -> None:
    assert "/" in {mount.target for mount in mounts.table()}


def test_what_is_at_a_path_is_told_without_following_links(mounts: HostMounts, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("directory")
    os.mkfifo(tmp_path / "pipe")
    found = {
        name: mounts.kind(str(tmp_path / name)) for name in ("directory", "file", "link", "pipe", "none", "file/x")
    }
    assert found == {
        "directory": "directory",
        "file": "file",
        "link": "link",
        "pipe": "other",
        "none": "absent",
        "file/x": "absent",
    }


def test_links_among_the_parents_are_resolved_and_the_last_part_is_not(mounts: HostMounts, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real/last").symlink_to("/elsewhere")
    assert mounts.resolve(f"{tmp_path}/link/last") == f"{tmp_path.resolve()}/real/last"
    assert mounts.resolve(f"{tmp_path}/link//new/") == f"{tmp_path.resolve()}/real/new"
    assert mounts.resolve("/") == "/"


def test_mount_points_are_made_with_their_parents_and_removed_alone(mounts: HostMounts, tmp_path: Path) -> None:
    directory, file = str(tmp_path / "a/b"), str(tmp_path / "c/d")
    for _ in range(2):
        mounts.make_directory(directory)
        mounts.make_file(file)
    assert (mounts.kind(directory), mounts.kind(file)) == ("directory", "file")
    for _ in range(2):
        mounts.remove_path(directory)
        mounts.remove_path(file)
    assert (mounts.kind(directory), mounts.kind(file)) == ("absent", "absent")
    assert mounts.kind(str(tmp_path / "a")) == "directory"


def test_what_holds_anything_is_not_removed(mounts: HostMounts, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("content")
    (tmp_path / "link").symlink_to("full")
    for path in ("full", "full/file", "link"):
        with pytest.raises(CommandFailed):
            mounts.remove_path(str(tmp_path / path))
    assert (tmp_path / "link/file").read_text() == "content"


def test_a_mount_point_is_not_made_through_a_link(mounts: HostMounts, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(CommandFailed):
        mounts.make_file(str(tmp_path / "link"))
    assert not (tmp_path / "outside").exists()


def test_only_block_devices_have_a_device_number(mounts: HostMounts, tmp_path: Path) -> None:
    for path in ("/dev/null", str(tmp_path), str(tmp_path / "none")):
        with pytest.raises(NotFound):
            mounts.device_number(path)
