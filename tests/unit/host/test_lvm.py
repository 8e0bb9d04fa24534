"""HostLvm changes a volume group by one command at a time, several groups side by side, and durably."""

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from aoe_core.errors import CommandFailed, Unfinished
from aoe_core.host.contracts import Finished
from aoe_core.host.lvm import HostLvm


class Commands:
    """Runs nothing; counts how many commands of each VG, and of all, were under way at once."""

    def __init__(self, begins: threading.Barrier | None = None) -> None:
        self.most: dict[str, int] = {}
        self._running: dict[str, int] = {}
        self._guard = threading.Lock()
        self._begins = begins

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,  # noqa: ARG002
        stdin: bytes | None = None,  # noqa: ARG002
    ) -> Finished:
        for key in (argv[-1].split("/")[0], "all"):
            with self._guard:
                self._running[key] = self._running.get(key, 0) + 1
                self.most[key] = max(self.most.get(key, 0), self._running[key])
        if self._begins is not None:
            self._begins.wait(30)
        for key in (argv[-1].split("/")[0], "all"):
            with self._guard:
                self._running[key] -= 1
        return Finished(argv=tuple(argv), code=0, stdout="", stderr="", seconds=0)


def test_changes_of_one_volume_group_wait_for_each_other() -> None:
    commands = Commands()
    lvm = HostLvm(commands)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: lvm.remove("data", f"v-{number}"), range(64)))
    assert commands.most == {"data": 1, "all": 1}


def test_another_volume_group_is_not_waited_for() -> None:
    # Each command ends only when the other one has begun.
    commands = Commands(threading.Barrier(2))
    lvm = HostLvm(commands)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda vg: lvm.remove(vg, "v-a"), ["data", "other"]))
    assert commands.most == {"data": 1, "other": 1, "all": 2}


VG = {
    "vg_uuid": "u", "vg_size": "4194304", "vg_free": "0", "vg_extent_size": "4194304", "vg_attr": "wz--n-",
    "vg_missing_pv_count": "0",
}  # fmt: skip
REPORT = {
    "report": [
        {
            "vg": [{"vg_name": "data", "vg_systemid": "here", **VG}],
            "pv": [{"pv_name": "/dev/b"}, {"pv_name": "/dev/a"}],
        },
        {
            "vg": [{"vg_name": "torn", "vg_systemid": "here", **VG}],
            "pv": [{"pv_name": "/dev/c"}, {"pv_name": "[unknown]"}],
        },
        {"vg": [{"vg_name": "theirs", "vg_systemid": "there", **VG}], "pv": [{"pv_name": "/dev/d"}]},
    ]
}


class Host:
    """Two VGs of this host and one of another; notes commands and flushes in their order."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.failing: Exception | None = None

    def run(self, argv: Sequence[str], *, timeout_s: float, stdin: bytes | None = None) -> Finished:  # noqa: ARG002
        said = ""
        if argv[1] == "systemid":
            said = "system ID: here"
        elif argv[1] == "fullreport":
            said = json.dumps(REPORT)
        elif argv[0] == "systemd-run":
            self.done.append(argv[argv.index("--") + 1])
            if self.failing:
                raise self.failing
        return Finished(argv=tuple(argv), code=0, stdout=said, stderr="", seconds=0)

    def flush(self, device: str) -> None:
        self.done.append(device)


def test_the_first_report_is_not_believed_before_it_is_durable_and_every_change_is() -> None:
    """A former process may have died between a change and its flush."""
    host = Host()
    lvm = HostLvm(host, flush=host.flush)
    assert [group.devices for group in lvm.report().groups] == [("/dev/a", "/dev/b"), ("/dev/c",), ("/dev/d",)]
    assert host.done == ["/dev/a", "/dev/b", "/dev/c"]
    host.done.clear()
    lvm.report()
    lvm.retag("data", "v-a", add=["x"])
    assert host.done == ["lvchange", "/dev/a", "/dev/b"]


def test_a_change_that_was_not_waited_for_is_flushed_with_the_next_report() -> None:
    host = Host()
    lvm = HostLvm(host, flush=host.flush)
    lvm.report()
    host.failing = Unfinished("it goes on")
    with pytest.raises(Unfinished):
        lvm.remove("data", "v-a")
    host.done.clear()
    lvm.report()
    assert host.done == ["/dev/a", "/dev/b", "/dev/c"]


def test_a_change_that_cannot_be_made_durable_is_not_finished() -> None:
    host = Host()
    broken = False

    def flush(device: str) -> None:
        host.flush(device)
        if broken:
            raise CommandFailed(f"flushing {device} failed; look at the disk")

    lvm = HostLvm(host, flush=flush)
    lvm.report()
    broken = True
    with pytest.raises(Unfinished, match="may not survive a power cut"):
        lvm.rename("data", "v-a", "d-0-a")
    with pytest.raises(CommandFailed):
        lvm.report()
    broken = False
    host.done.clear()
    lvm.report()
    assert host.done == ["/dev/a", "/dev/b", "/dev/c"]
