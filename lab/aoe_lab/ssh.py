"""One ssh connection per machine and boot, which every call shares.

Owns: the master connection, calls, copies and forwarded unix sockets over it. Refuses: a connection of its own per
call, and any attempt to reach a machine's address outside the lab's network, where it may be somebody else's.
"""

from __future__ import annotations

import hashlib
import shlex
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aoe_lab import process
from aoe_lab.errors import CommandFailed, CommandTimedOut, MachineUnreachable
from aoe_lab.process import Finished

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SSH_FAILED = 255  # ssh(1): its own failures, but also a remote command's exit with 255.
CONNECT_TIMEOUT_S = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """The connection to `machine` at `address`; its sockets are in `place`; `enter` leads into the lab's network."""

    machine: str
    address: str
    key: Path
    place: Path
    enter: tuple[str, ...]

    @property
    def _control(self) -> Path:
        return self.place / "ssh.sock"

    def open(self) -> None:
        """Connect anew, trying until CONNECT_TIMEOUT_S have passed. Raises: MachineUnreachable."""
        self.close()
        end = time.monotonic() + CONNECT_TIMEOUT_S
        options = {
            "BatchMode": "yes",
            # A new machine has a key nobody knows, and the network has no strangers.
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "ConnectTimeout": "10",
            "ControlPersist": "yes",
            "KexAlgorithms": "curve25519-sha256",  # The default's post-quantum half costs half a second emulated.
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        socket, key = str(self._control), str(self.key)
        argv = ["ssh", "-F", "none", "-MNf", "-S", socket, "-i", key, *words, f"root@{self.address}"]
        while True:
            log = self.place / "ssh.log"
            log.unlink(missing_ok=True)
            # Not process.run(): the connection stays behind and would hold its pipes open.
            child = process.start([*self.enter, *argv], output=log)
            if child.wait() == 0:
                return
            if time.monotonic() > end:
                raise MachineUnreachable(f"{self.machine}: no ssh at {self.address}: {log.read_text().strip()}")
            time.sleep(0.2)

    def close(self) -> None:
        """End the connection and every call that uses it; it is not an error when there is none."""
        if self._control.exists():
            with suppress(CommandTimedOut):
                self._ask_master("exit")
            self._control.unlink(missing_ok=True)

    def is_open(self) -> bool:
        return self._control.exists() and self._ask_master("check").code == 0

    def argv(self, command: str | Sequence[str], *options: str) -> list[str]:
        """Return the argv that runs `command` (a shell's line, or words) over the connection."""
        line = command if isinstance(command, str) else shlex.join(command)
        return [*self._client(), *options, f"root@{self.address}", "--", line]

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        timeout_s: float = 60,
        stdin: bytes | str | None = None,
    ) -> Finished:
        """Run a command on the machine to its end. A timed-out command is abandoned there, not ended.

        Raises: CommandTimedOut; MachineUnreachable; CommandFailed unless `check` is false.
        """
        finished = process.run(self.argv(command), check=False, timeout_s=timeout_s, stdin=stdin, where=self.machine)
        if finished.code == SSH_FAILED and not self.is_open():
            raise MachineUnreachable(f"{self.machine}: connection lost or never made: {finished.stderr.strip()}")
        asked = Finished(
            argv=(command,) if isinstance(command, str) else tuple(command),
            code=finished.code,
            stdout=finished.stdout,
            stderr=finished.stderr,
            seconds=finished.seconds,
        )
        if check and asked.code != 0:
            raise CommandFailed(self.machine, asked)
        return asked

    def copy(self, source: str, target: str, *, timeout_s: float) -> None:
        """Copy a file or a tree; one of the two begins with `connection.remote("")`."""
        # scp's own names for what ssh takes with -S; the rest is as in _client().
        options = ["-F", "none", "-o", f"ControlPath={self._control}", "-o", "ProxyCommand=false"]
        process.run(["scp", "-rpq", *options, source, target], timeout_s=timeout_s, where=self.machine)

    def remote(self, path: str) -> str:
        return f"root@{self.address}:{path}"

    def forward_from(self, remote_socket: str) -> Path:
        """Return a local unix socket that leads to `remote_socket` on the machine, for as long as this boot lasts."""
        name = hashlib.sha256(remote_socket.encode()).hexdigest()[:8]
        local = self.place / f"from-{name}.sock"
        with suppress(CommandFailed):
            self._ask_master("cancel", "-L", f"{local}:{remote_socket}")
        local.unlink(missing_ok=True)
        self._ask_master("forward", "-L", f"{local}:{remote_socket}", check=True)
        return local

    def forward_to(self, local_socket: Path, remote_socket: str) -> None:
        """Make `remote_socket` on the machine lead to a local unix socket, for as long as this boot lasts."""
        self._ask_master("cancel", "-R", f"{remote_socket}:{local_socket}")
        self._ask_master("forward", "-R", f"{remote_socket}:{local_socket}", check=True)

    def _client(self) -> list[str]:
        # Without its master, ssh would connect by itself, from outside the lab's network; the proxy command forbids it.
        return ["ssh", "-F", "none", "-S", str(self._control), "-o", "ProxyCommand=false", "-o", "LogLevel=ERROR"]

    def _ask_master(self, request: str, *options: str, check: bool = False) -> Finished:
        argv = [*self._client(), "-O", request, *options, f"root@{self.address}"]
        return process.run(argv, check=check, timeout_s=10, where=self.machine)
