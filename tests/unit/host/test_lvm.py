"""HostLvm changes a volume group by one unit at a time, several groups side by side, and durably."""

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from tests.callers import await_gathered, outcome

from aoe_core.errors import Busy, CommandFailed, Unfinished
from aoe_core.host.contracts import Finished
from aoe_core.host.lvm import HostLvm


class Commands:
    """Has a shell run what systemd would, with lvm's commands replaced; notes the units, and who was under way."""

    def __init__(self, tmp_path: Path, begins: threading.Barrier | None = None) -> None:
        self.units: list[str] = []
        self.scripts: list[str] = []
        self.reports = 0
        self.most: dict[str, int] = {}
        self._running: dict[str, int] = {}
        self._guard = threading.Lock()
        self._begins = begins
        self.held: threading.Event | None = None
        self._programs = tmp_path
        self.program("lvextend", "exit 0")
        self.program("lvremove", """echo "  Logical volume \\"${2#*/}\\" successfully removed" """)
        # LVM's shell.
        self.program("lvm", "while read -r command; do $command; done")
        self.program("systemid", 'echo "  system ID: here"')

    def program(self, name: str, text: str) -> None:
        """Say what a command does."""
        path = self._programs / name
        path.write_text(f"#!/bin/sh\n{text}\n", encoding="ascii")
        path.chmod(0o755)

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        stdin: bytes | None = None,  # noqa: ARG002
    ) -> Finished:
        if argv[0] == "lvm":
            self.reports += argv[1] == "fullreport"
            said = '{"report": []}' if argv[1] == "fullreport" else "  system ID: here"
            return Finished(argv=tuple(argv), code=0, stdout=said, stderr="", seconds=0)
        (unit,) = (word.removeprefix("--unit=") for word in argv if word.startswith("--unit="))
        command = argv[argv.index("--") + 1 :]
        for key in (unit, "all"):
            with self._guard:
                self._running[key] = self._running.get(key, 0) + 1
                self.most[key] = max(self.most.get(key, 0), self._running[key])
        self.units.append(unit)
        self.scripts.append(command[-1])
        if self._begins is not None:
            self._begins.wait(30)
        if self.held is not None:
            assert self.held.wait(30)
        path = f"{self._programs}:{os.environ['PATH']}"
        ended = subprocess.run(
            command, env={"PATH": path}, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        for key in (unit, "all"):
            with self._guard:
                self._running[key] -= 1
        return Finished(argv=tuple(argv), code=ended.returncode, stdout=ended.stdout, stderr=ended.stderr, seconds=0)


def test_changes_of_one_volume_group_wait_for_each_other(tmp_path: Path) -> None:
    commands = Commands(tmp_path)
    lvm = HostLvm(commands)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: lvm.remove("data", f"v-{number}"), range(64)))
    assert commands.most == {"aoe-csi-lvm-data.service": 1, "all": 1}
    done = re.findall(r"lvremove --yes (\S+)", "\n".join(commands.scripts))
    assert sorted(done) == sorted(f"data/v-{number}" for number in range(64))


def test_another_volume_group_is_not_waited_for(tmp_path: Path) -> None:
    # Each command ends only when the other one has begun.
    commands = Commands(tmp_path, threading.Barrier(2))
    lvm = HostLvm(commands)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda vg: lvm.remove(vg, "v-a"), ["a+b", "a_b"]))
    assert len(set(commands.units)) == commands.most["all"] == 2


def test_a_report_waits_for_the_change_under_way_and_is_shared(tmp_path: Path) -> None:
    commands = Commands(tmp_path)
    commands.held = threading.Event()
    lvm = HostLvm(commands, waits_for_others=False)
    change = threading.Thread(target=lvm.remove, args=("data", "v-a"))
    change.start()
    while not commands.scripts:
        time.sleep(0.01)
    lookers = [threading.Thread(target=lvm.report) for _ in range(5)]
    for looker in lookers:
        looker.start()
    # Nothing tells from outside that a thread waits: one that comes late looks once more.
    time.sleep(0.5)
    assert commands.reports == 0
    commands.held.set()
    for thread in (change, *lookers):
        thread.join(30)
    assert 1 <= commands.reports < 5


def test_those_who_wait_are_done_together_and_told_apart(tmp_path: Path) -> None:
    commands = Commands(tmp_path)
    commands.program("lvremove", 'echo "  Logical volume $2 in use." >&2; exit 5')
    commands.program("lvextend", 'case $3 in */v-gone) echo "  Failed to find logical volume" >&2; exit 5;; esac')
    commands.held = threading.Event()
    lvm = HostLvm(commands)
    outcomes: dict[str, str] = {}

    def ask(name: str) -> None:
        change = (
            partial(lvm.remove, "data", name) if name.endswith("open") else partial(lvm.extend, "data", name, 1 << 20)
        )
        outcomes[name] = outcome(change)

    names = ["v-first", *(f"v-{number}" for number in range(9)), "v-open", "v-gone", "v-'; exit 3; '"]
    threads = [threading.Thread(target=ask, args=(name,)) for name in names]
    threads[0].start()
    while not commands.scripts:
        time.sleep(0.01)
    for thread in threads[1:]:
        thread.start()
    # Nothing tells from outside that a thread waits: one that comes late is done in one more unit.
    time.sleep(0.5)
    commands.held.set()
    for thread in threads:
        thread.join(30)
    assert outcomes == dict.fromkeys(names, "done") | {"v-open": "InUse", "v-gone": "NotFound"}
    sizes = [script.count("\n") + 1 for script in commands.scripts]
    assert sizes[0] == 1
    assert sum(sizes) == len(names)
    assert max(sizes) == 8
    assert len(sizes) < 6


def test_removals_that_wait_share_a_process_and_are_told_apart(tmp_path: Path) -> None:
    """Also where LVM dies half-way: what it did not come to is unfinished, and what it did is done."""
    commands = Commands(tmp_path)
    commands.program(
        "lvremove",
        """case $2 in
        */v-open) echo "  Logical volume $2 in use.";;
        */v-deadly) kill -9 $PPID;;
        *) echo "  Logical volume \\"${2#*/}\\" successfully removed";;
        esac""",
    )
    commands.held = threading.Event()
    lvm = HostLvm(commands)
    outcomes: dict[str, str] = {}

    def ask(name: str) -> None:
        outcomes[name] = outcome(partial(lvm.remove, "data", name))

    names = ("v-0", "v-1", "v-open", "v-2", "v-deadly", "v-3")
    threads = [threading.Thread(target=ask, args=(name,)) for name in names]
    threads[0].start()
    while not commands.scripts:
        time.sleep(0.01)
    for number, thread in enumerate(threads[1:], start=1):
        thread.start()
        await_gathered(lvm._batches["data"], number)  # noqa: SLF001 - nothing tells of it from outside.
    commands.held.set()
    for thread in threads:
        thread.join(30)
    assert outcomes == {
        "v-0": "done", "v-1": "done", "v-open": "InUse", "v-2": "done", "v-deadly": "Unfinished", "v-3": "Unfinished",
    }  # fmt: skip
    assert [script.split()[0] for script in commands.scripts] == ["lvremove", "lvm"]


def test_a_change_that_never_says_how_it_ended_is_unfinished_and_those_before_it_are_done(tmp_path: Path) -> None:
    commands = Commands(tmp_path)
    commands.program("lvremove", "kill -9 $PPID")
    lvm = HostLvm(commands)
    with pytest.raises(Unfinished, match="lvremove of data/v-a did not come to its end"):
        lvm.remove("data", "v-a")
    lvm.extend("data", "v-a", 1 << 20)


def test_a_unit_that_runs_on_refuses_every_change_of_its_volume_group() -> None:
    said = "Failed to start transient service unit: Unit aoe-csi-lvm-data.service was already loaded."
    lvm = HostLvm(Refusing(said))
    with pytest.raises(Busy, match="data/v-a: a change of its volume group still runs"):
        lvm.remove("data", "v-a")


class Refusing:
    """A systemd that starts nothing."""

    def __init__(self, said: str) -> None:
        self._said = said

    def run(self, argv: Sequence[str], *, timeout_s: float, stdin: bytes | None = None) -> Finished:  # noqa: ARG002
        return Finished(argv=tuple(argv), code=1, stdout="", stderr=self._said, seconds=0)


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
        self.running = ""
        """What systemctl list-units prints."""
        self.system_id_code = 0
        self.meanwhile: Callable[[], None] = lambda: None
        """Done while a change is under way."""

    def run(self, argv: Sequence[str], *, timeout_s: float, stdin: bytes | None = None) -> Finished:  # noqa: ARG002
        said, code = "", 0
        if argv[1] == "systemid":
            said, code = "system ID: here", self.system_id_code
        elif argv[0] == "systemctl":
            said = self.running
        elif argv[1] == "fullreport":
            said = json.dumps(REPORT)
        elif argv[0] == "systemd-run":
            command = argv[-1].split()[0]
            self.done.append(command)
            if self.failing:
                raise self.failing
            self.meanwhile()
            said = "\naoe-csi-ended 0\n"
        return Finished(argv=tuple(argv), code=code, stdout=said, stderr="", seconds=0)

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


def given_up() -> tuple[Host, HostLvm]:
    """Return a host on which a change was not waited for to its end."""
    host = Host()
    lvm = HostLvm(host, flush=host.flush)
    lvm.report()
    host.failing = Unfinished("it goes on")
    with pytest.raises(Unfinished):
        lvm.remove("data", "v-a")
    return host, lvm


def test_a_change_that_was_not_waited_for_is_flushed_with_the_next_report() -> None:
    host, lvm = given_up()
    host.done.clear()
    lvm.report()
    assert host.done == ["/dev/a", "/dev/b", "/dev/c"]


def test_a_report_is_not_believed_while_a_change_that_was_given_up_runs_on_under_the_next_one_s_name() -> None:
    """Of one volume group all have one unit's name; whoever comes next is refused it only a moment later."""
    host, lvm = given_up()
    host.failing, host.running = None, "aoe-csi-lvm-data.service loaded active running"
    refused: list[Busy] = []

    def look() -> None:
        with pytest.raises(Busy, match="still changes this host's volumes") as refusal:
            lvm.report()
        refused.append(refusal.value)

    host.meanwhile = look
    lvm.remove("data", "v-b")
    look()
    host.running = ""
    lvm.report()
    assert len(refused) == 2


def test_a_system_id_that_cannot_be_asked_for_is_not_taken_for_none() -> None:
    host = Host()
    lvm = HostLvm(host, flush=host.flush)
    host.system_id_code = 137
    with pytest.raises(CommandFailed, match="system ID"):
        lvm.report()
    host.system_id_code = 0
    assert [group.foreign for group in lvm.report().groups] == [False, False, True]


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
