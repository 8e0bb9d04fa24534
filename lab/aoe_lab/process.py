"""Programs run on the host that carries the lab.

Owns: the only use of `subprocess` in the lab. Refuses: shells; every argument is passed on as it is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from aoe_lab.errors import CommandFailed, CommandTimedOut

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Child = subprocess.Popen[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A program that ended: its argv, exit code, decoded output and duration."""

    argv: tuple[str, ...]
    code: int
    stdout: str
    stderr: str
    seconds: float


def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float,
    check: bool = True,
    stdin: bytes | str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    where: str = "host",
) -> Finished:
    """Run a program to its end; `env` is added to ours.

    Raises: CommandTimedOut; CommandFailed unless `check` is false.
    """
    words = tuple(str(word) for word in argv)
    begin = time.monotonic()
    try:
        done = subprocess.run(
            words,
            input=stdin.encode() if isinstance(stdin, str) else (b"" if stdin is None else stdin),
            capture_output=True,
            timeout=timeout_s,
            check=False,
            env={**os.environ, "LC_ALL": "C", **(env or {})},
            cwd=cwd,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandTimedOut(f"{where}: `{' '.join(words)}` did not end within {timeout_s:g} s") from error
    finished = Finished(
        argv=words,
        code=done.returncode,
        stdout=done.stdout.decode(errors="replace"),
        stderr=done.stderr.decode(errors="replace"),
        seconds=time.monotonic() - begin,
    )
    if check and finished.code != 0:
        raise CommandFailed(where, finished)
    return finished


def start(
    argv: Sequence[str | Path],
    *,
    output: Path | None = None,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Child:
    """Start a program in a session of its own, so that a Ctrl-C here is ours alone to answer; output goes to a file."""
    with (output or Path(os.devnull)).open("ab") as sink:
        return subprocess.Popen(
            [str(word) for word in argv],
            stdin=stdin,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C", **(env or {})},
            pass_fds=tuple(pass_fds),
        )


def start_with_pipe(argv: Sequence[str | Path], *, env: Mapping[str, str]) -> Child:
    """Start a program whose standard input stays open exactly as long as this process lives."""
    return start(argv, stdin=subprocess.PIPE, env=env)


def is_running(pid: int, *, mark: str) -> bool:
    """Tell whether `pid` is alive and its command line contains `mark`, which shows that the number was not reused."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return mark.encode() in words  # A zombie has an empty command line.


def read_pid(pidfile: Path) -> int | None:
    """Return the number in a pid file; None if there is none (yet)."""
    try:
        return int(pidfile.read_text())
    except (FileNotFoundError, ValueError):
        return None


def kill(pids: Sequence[int], *, timeout_s: float = 10) -> None:
    """SIGKILL processes as one, none living to see another's death, and wait until they are gone.

    A zombie of ours counts as gone. Raises: CommandTimedOut.
    """
    end = time.monotonic() + timeout_s
    for name, is_so in ((signal.SIGSTOP, _is_still), (signal.SIGKILL, _is_gone)):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, name)
        while waiting := sorted(pid for pid in pids if not is_so(pid)):
            if time.monotonic() > end:
                raise CommandTimedOut(f"host: processes {waiting} outlived {name.name} by {timeout_s:g} s")
            time.sleep(0.01)


def _is_still(pid: int) -> bool:
    """Tell whether no thread of the process runs: stopped, in the kernel on the way to it, or dead."""
    return set(_thread_states(pid)) <= set("DTtXZ")


def _thread_states(pid: int) -> list[str]:
    """Return the letter of each thread of a process, none of one that is no more. Source: proc(5), /proc/pid/stat."""
    states = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in list(Path(f"/proc/{pid}/task").iterdir()):
            with suppress(FileNotFoundError, ProcessLookupError):
                states.append((thread / "stat").read_text().rpartition(")")[2].split()[0])
    return states


def _is_gone(pid: int) -> bool:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    # Its first thread may be a zombie while others still hold its files and locks.
    return _thread_states(pid) in ([], ["Z"])
