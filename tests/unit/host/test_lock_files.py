"""Names held between processes: real processes, real flock."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from aoe_core.errors import Busy, CommandFailed
from aoe_core.host.lock_files import LockFiles, file_name
from aoe_core.locks import Locks

HOLD = """
import sys, time
from pathlib import Path
from aoe_core.host.lock_files import LockFiles
from aoe_core.locks import Locks
with Locks(LockFiles(Path(sys.argv[1]))).hold(sys.argv[2]):
    print("held", flush=True)
    {then}
"""
Holder = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    """Start another process that holds a name, and `then` does something."""
    with ExitStack() as started:

        def start(name: str, then: str = "time.sleep(600)") -> "subprocess.Popen[str]":
            argv = [sys.executable, "-c", HOLD.format(then=then), str(tmp_path / "locks"), name]
            child = started.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
            started.callback(child.kill)
            assert child.stdout is not None
            assert child.stdout.readline() == "held\n"
            return child

        yield start


def locks(tmp_path: Path) -> Locks:
    return Locks(LockFiles(tmp_path / "locks"))


def test_what_another_process_holds_is_refused_at_once_and_other_names_are_not(tmp_path: Path, holder: Holder) -> None:
    holder("volume a")
    mine = locks(tmp_path)
    with pytest.raises(Busy, match="another process is at work on volume a"), mine.hold("volume a"):
        pytest.fail("held twice")
    with mine.hold("volume b"):
        pass
    # A refusal left nothing held in this process.
    with pytest.raises(Busy, match="another process"), mine.hold("volume a"):
        pytest.fail("held twice")


def test_control_without_the_files_two_processes_hold_one_name(holder: Holder) -> None:
    holder("volume a")
    with Locks().hold("volume a"):
        pass


def test_a_killed_holder_holds_nothing(tmp_path: Path, holder: Holder) -> None:
    child = holder("volume a")
    child.send_signal(signal.SIGKILL)
    child.wait()
    with locks(tmp_path).hold("volume a"):
        pass


def test_a_command_that_outlives_its_starter_does_not_keep_the_lock(tmp_path: Path, holder: Holder) -> None:
    sleeper = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    child = holder("volume a", then=sleeper)
    assert child.stdout is not None
    orphan = int(child.stdout.readline())
    try:
        child.send_signal(signal.SIGKILL)
        child.wait()
        os.kill(orphan, 0)
        with locks(tmp_path).hold("volume a"):
            pass
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_a_forked_child_that_keeps_the_descriptor_does_not_keep_the_lock(tmp_path: Path) -> None:
    """As between fork and exec. Closing alone would leave the lock with the child."""
    with locks(tmp_path).hold("volume a"):
        child = os.fork()
        if child == 0:
            time.sleep(600)
            os._exit(0)
    try:
        with locks(tmp_path).hold("volume a"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_files_do_not_pile_up(tmp_path: Path, holder: Holder) -> None:
    mine = locks(tmp_path)
    for number in range(20):
        with mine.hold(f"volume {number}"):
            assert len(list((tmp_path / "locks").iterdir())) == 1
    assert list((tmp_path / "locks").iterdir()) == []
    child = holder("volume left")
    child.kill()
    child.wait()
    assert len(list((tmp_path / "locks").iterdir())) == 1
    with mine.hold("volume left"):
        pass
    assert list((tmp_path / "locks").iterdir()) == []


def test_no_two_processes_are_ever_inside_at_once(tmp_path: Path) -> None:
    """Also not when one opened the file just before its holder unlinked it: three processes in and out for a while."""
    inside = tmp_path / "inside"
    script = f"""
import os, sys, time
from pathlib import Path
from aoe_core.errors import Busy
from aoe_core.host.lock_files import LockFiles
locks, ends, entered = LockFiles(Path({str(tmp_path / "locks")!r})), time.monotonic() + 3, 0
while time.monotonic() < ends:
    try:
        with locks.hold("volume a"):
            os.close(os.open({str(inside)!r}, os.O_CREAT | os.O_EXCL))
            os.unlink({str(inside)!r})
            entered += 1
    except Busy:
        pass
print(entered)
"""
    children = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    entered = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert all(int(one) > 0 for one in entered)


@pytest.mark.parametrize("name", ["volume/../../x", "..", ".", "", "a\0b", "ä/€", "x" * 5000, "address e1.2", "\ud800"])
def test_any_name_has_a_file_of_its_own(tmp_path: Path, name: str) -> None:
    with locks(tmp_path).hold(name):
        (file,) = (tmp_path / "locks").iterdir()
        assert file.is_file()
        with pytest.raises(Busy), locks(tmp_path).hold(name):
            pytest.fail("held twice")
    others = {"a b", "a%20b", "a/b", "a%2Fb", "A b", name}
    assert len({file_name(one) for one in others}) == len(others)


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "locks").write_text("a file")
    with pytest.raises(CommandFailed, match="cannot be opened"), locks(tmp_path).hold("volume a"):
        pytest.fail("held")
