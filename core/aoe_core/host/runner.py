"""The one place that starts a process.

No shell, LC_ALL=C, a limit on every command. A child that outlives its limit is killed; one that the kernel holds in
uninterruptible sleep is abandoned: its pipes are closed, it is reported, and nobody waits for it (a dead AoE target
would else take a thread for each try). Reads are logged at DEBUG, the caller's changes at INFO.
"""

import logging
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from aoe_core.errors import CommandFailed, Unfinished
from aoe_core.host.contracts import Finished

log = logging.getLogger(__name__)

_GRACE_S = 1.0
"""How long a killed child may take to be gone before it is called stuck; a healthy one needs milliseconds."""


_ENTER = ("nsenter", "--target", "1", "--mount", "--uts", "--ipc", "--net", "--")
"""nsenter(1): into the namespaces of the host's first process; a container needs the host's PID namespace for it."""
HOST_PROCESS = Path("/proc/1")


class HostRunner:
    """Runs commands on this host: in our own namespaces, or from a container in those of the host around it."""

    def __init__(self, *, enter_host: bool = False) -> None:
        self._prefix = _ENTER if enter_host else ()
        self.root = HOST_PROCESS / "root" if enter_host else Path("/")
        """The root directory that commands see, as a path of ours."""
        self.process = HOST_PROCESS if enter_host else Path("/proc/self")
        """A process in whose namespaces the commands run."""
        self._environment = {**os.environ, "LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1"}
        self._abandoned: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    def run(self, argv: Sequence[str], *, timeout_s: float, stdin: bytes | None = None) -> Finished:
        """Run a command to its end; a non-zero exit is the caller's to judge.

        Raises: Unfinished when the limit passes; CommandFailed when the program cannot be started.
        """
        command = [*self._prefix, *argv]
        started = time.monotonic()
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment,
                start_new_session=True,
            )
        except OSError as error:
            raise CommandFailed(f"{argv[0]} cannot be started ({error.strerror}); install it on this host") from error
        try:
            out, err = child.communicate(stdin, timeout=timeout_s)
        except subprocess.TimeoutExpired as expired:
            self._give_up(child)
            log.error("command exceeded its limit", extra={"argv": list(argv), "timeout_s": timeout_s})
            raise Unfinished(
                f"{argv[0]} did not end within {timeout_s:g} s and was abandoned; try again, and look at the host's "
                "kernel log if it repeats"
            ) from expired
        finished = Finished(
            argv=tuple(argv),
            code=child.returncode,
            stdout=out.decode("utf-8", "replace"),
            stderr=err.decode("utf-8", "replace"),
            seconds=time.monotonic() - started,
        )
        log.debug(
            "command ended",
            extra={"argv": list(argv), "code": finished.code, "ms": round(finished.seconds * 1000)},
        )
        return finished

    def has(self, program: str) -> bool:
        """Say whether a program, a name or a path, is installed where commands run."""
        if program.startswith("/"):
            return (self.root / program.lstrip("/")).exists()
        return any(
            (self.root / directory.lstrip("/") / program).exists()
            for directory in self._environment.get("PATH", os.defpath).split(os.pathsep)
        )

    def abandoned(self) -> tuple[int, ...]:
        """Return the process ids of children that were given up and still exist."""
        with self._lock:
            self._abandoned = [child for child in self._abandoned if child.poll() is None]
            return tuple(child.pid for child in self._abandoned)

    def _give_up(self, child: subprocess.Popen[bytes]) -> None:
        child.kill()
        try:
            child.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            with self._lock:
                self._abandoned.append(child)
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
