"""QEMU's machine protocol: JSON over a unix socket.

Owns: one connection per command; the emulator serves one client at a time, and several processes may steer one lab.
Source: QEMU's docs/interop/qmp-spec.rst.
"""

from __future__ import annotations

import json
import socket
from typing import IO, TYPE_CHECKING, Any

from aoe_lab.errors import LabError, MachineUnreachable

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_S = 30.0


def execute(path: Path, command: str, **arguments: object) -> Any:
    """Run one command of the emulator listening at `path` and return its answer's "return" member.

    Raises: MachineUnreachable if nobody listens, LabError if the command is refused.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT_S)
        try:
            connection.connect(str(path))
            with connection.makefile("rw", encoding="utf-8") as stream:
                stream.readline()  # The greeting.
                _ask(stream, {"execute": "qmp_capabilities"})
                answer = _ask(stream, {"execute": command, "arguments": arguments})
        except (OSError, ValueError) as error:
            raise MachineUnreachable(
                f"{path}: the emulator does not answer ({error}): cut the power and boot it"
            ) from error
    if "error" in answer:
        raise LabError(f"{path}: {command} refused: {answer['error'].get('desc')}")
    return answer["return"]


def human(path: Path, command: str) -> str:
    """Run a command of the emulator's human monitor, for what the protocol has none for; return what it prints."""
    return str(execute(path, "human-monitor-command", **{"command-line": command}))


def _ask(stream: IO[str], request: dict[str, object]) -> dict[str, Any]:
    stream.write(json.dumps(request) + "\n")
    stream.flush()
    for line in stream:
        message: dict[str, Any] = json.loads(line)
        if "event" not in message:
            return message
    raise ConnectionError("connection closed")
