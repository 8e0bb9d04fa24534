"""Processes that may have a device open, in a /proc of files: which of their files are asked about at all."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aoe_core.errors import CommandFailed
from aoe_core.host import openers
from aoe_core.host.openers import DeviceUsers, HostPaths

LOCAL = "7 1 8:1 / /data rw shared:1 - ext4 /dev/sda1 rw\n"
REMOTE = "7 1 0:50 / /data rw shared:1 - nfs4 server:/data rw\n"


class Proc:
    """A /proc; every process has one open file, on mount 7, about which the kernel refuses to answer."""

    def __init__(self, root: Path) -> None:
        self.paths = HostPaths(proc=root / "proc", sys=root / "sys", dev=root / "dev")
        (self.paths.sys / "block").mkdir(parents=True)
        self._endless = root / "endless"
        self._endless.symlink_to(self._endless)

    def add(self, number: int, mounts: str, *, namespace: str = "mnt:[1]", root: str = "/") -> None:
        process = self.paths.proc / str(number)
        for directory in ("fd", "fdinfo", "ns"):
            (process / directory).mkdir(parents=True)
        (process / "fd" / "3").symlink_to(self._endless)
        (process / "fdinfo" / "3").write_text("pos:\t0\nmnt_id:\t7\n")
        (process / "ns" / "mnt").symlink_to(namespace)
        (process / "root").symlink_to(root)
        (process / "mountinfo").write_text(mounts)

    def find(self) -> str | None:
        return DeviceUsers(self.paths).find(frozenset({"152:16"}))


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def test_a_file_of_a_server_that_may_be_silent_is_not_asked_about(proc: Proc) -> None:
    proc.add(10, REMOTE)
    assert proc.find() is None


def test_whatever_else_does_not_answer_is_not_taken_for_closed(proc: Proc) -> None:
    proc.add(10, LOCAL)
    with pytest.raises(CommandFailed, match="process 10"):
        proc.find()


def test_mounts_are_read_once_for_all_who_see_the_same(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (10, 11, 12):
        proc.add(number, REMOTE)
    read: list[str] = []
    plain = Path.read_bytes

    def counted(path: Path) -> bytes:
        read.append(path.name)
        return plain(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    assert proc.find() is None
    assert read == ["mountinfo"]


@pytest.mark.parametrize("other", [{"namespace": "mnt:[2]"}, {"root": "/chroot"}], ids=["namespace", "root"])
def test_mounts_of_one_view_are_not_taken_for_another_s(proc: Proc, other: dict[str, str]) -> None:
    proc.add(10, REMOTE)
    proc.add(11, LOCAL, **other)
    with pytest.raises(CommandFailed, match="process 11"):
        proc.find()


def test_who_asks_while_one_look_is_under_way_shares_the_next(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, go_on = threading.Barrier(11), threading.Event()
    begun: list[None] = []

    def slowly(_: HostPaths) -> dict[str, str]:
        begun.append(None)
        number = len(begun)
        assert go_on.wait(10)
        return {"152:16": f"look {number}"}

    monkeypatch.setattr(openers, "_opened_by_processes", slowly)
    shared = DeviceUsers(proc.paths)
    with ThreadPoolExecutor(11) as threads:
        first = threads.submit(shared.find, frozenset({"152:16"}))
        while not begun:
            time.sleep(0.01)

        def ask() -> str | None:
            asked.wait(10)
            return shared.find(frozenset({"152:16", "152:17"}))

        others = [threads.submit(ask) for _ in range(10)]
        asked.wait(10)
        time.sleep(0.2)
        go_on.set()
        assert first.result() == "look 1"
        assert {one.result() for one in others} == {"look 2"}
