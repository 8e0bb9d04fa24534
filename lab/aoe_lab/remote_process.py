"""A program that runs on a machine until it is stopped.

Owns: its process group there, and the file its output goes to here.
"""

from __future__ import annotations

import itertools
import shlex
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from aoe_lab import process
from aoe_lab.errors import CommandTimedOut, MachineUnreachable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from aoe_lab.process import Child
    from aoe_lab.ssh import Connection

START_TIMEOUT_S = 30.0
_numbers = itertools.count(1)


def runs(program: str) -> str:
    """Return a shell's condition: whether a program runs with these words in its command line."""
    # The bracket keeps pgrep from finding the shell that runs it.
    return f"pgrep -f '[{program[0]}]{program[1:]}' >/dev/null"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteProcess:
    """A started program; as a context manager it is stopped at the end."""

    connection: Connection
    child: Child
    pid: int
    log: Path

    @classmethod
    def start(cls, connection: Connection, command: str | Sequence[str], *, log: Path) -> Self:
        """Start `command`, its output appended to a new file in the directory `log`."""
        line = command if isinstance(command, str) else "exec " + shlex.join(command)
        output = log / f"spawned-{time.time_ns()}-{next(_numbers)}.log"
        # sshd gives each session a process group of its own, led by this shell.
        child = process.start(connection.argv(f"echo $$; {line}"), output=output)
        end = time.monotonic() + START_TIMEOUT_S
        while not (first := output.read_bytes().partition(b"\n"))[1]:
            if child.poll() is not None or time.monotonic() > end:
                raise MachineUnreachable(f"{connection.machine}: cannot start `{line}`: {output.read_text().strip()}")
            time.sleep(0.02)
        return cls(connection=connection, child=child, pid=int(first[0]), log=output)

    def output(self) -> str:
        """Return what the program has written so far, to both streams."""
        return self.log.read_text(errors="replace").partition("\n")[2]

    def code(self) -> int | None:
        """Return the exit code; None while it runs; 255 too when the connection was lost."""
        return self.child.poll()

    def wait(self, timeout_s: float) -> int:
        """Wait for the program's end and return its exit code. Raises: CommandTimedOut."""
        end = time.monotonic() + timeout_s
        while (code := self.child.poll()) is None:
            if time.monotonic() > end:
                raise CommandTimedOut(f"{self.connection.machine}: process {self.pid} did not end in {timeout_s:g} s")
            time.sleep(0.02)
        return code

    def signal(self, name: str) -> None:
        """Send a signal ("TERM", "KILL", …) to the program and its children; one that has ended is left in peace."""
        self.connection.run(f"kill -s {name} -- -{self.pid}", check=False)

    def stop(self, timeout_s: float = 10) -> None:
        """End the program: politely, then by force. A machine that is gone has ended it already."""
        if self.child.poll() is not None:
            return
        try:
            self.signal("TERM")
            self.wait(timeout_s)
        except CommandTimedOut:
            self.signal("KILL")
            self.wait(timeout_s)
        except MachineUnreachable:
            self.child.kill()
            self.child.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
