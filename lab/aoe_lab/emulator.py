"""A machine's emulator while it runs: its process, its processors and its cables.

Owns: the pid file, the control socket and the marks of pulled cables in the machine's directory. Refuses: to take an
emulator that does not answer for one that ended; only its process tells.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from aoe_lab import process, qmp
from aoe_lab.errors import LabError, MachineUnreachable

if TYPE_CHECKING:
    from pathlib import Path

START_TIMEOUT_S = 30.0


class MachineState(StrEnum):
    """What the emulator does; a machine that is RUNNING may still be booting, or hang."""

    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulator:
    """The emulator of the machine whose directory is `place`; `argv` starts it, inside the lab's network."""

    place: Path
    argv: tuple[str, ...]

    def start(self) -> None:
        """Start the emulator, all cables plugged; it goes into the background by itself once it runs."""
        for mark in self.place.glob("pulled-*"):
            mark.unlink()
        process.run(self.argv, timeout_s=START_TIMEOUT_S, where=self.place.name)

    def pid(self) -> int | None:
        pid = process.read_pid(self.place / "qemu.pid")
        return pid if pid is not None and process.is_running(pid, mark=str(self.place)) else None

    def state(self) -> MachineState:
        if self.pid() is None:
            return MachineState.OFF
        try:
            status = self._execute("query-status")["status"]
        except MachineUnreachable:
            if self.pid() is None:
                return MachineState.OFF
            raise
        return MachineState.PAUSED if status == "paused" else MachineState.RUNNING

    def pause(self) -> None:
        self._execute("stop")

    def resume(self) -> None:
        self._execute("cont")

    def whereabouts(self) -> str:
        """Return at which instruction each processor is, or why nobody knows: a last word on a machine that hangs."""
        try:
            registers = qmp.human(self.place / "qmp.sock", "info registers -a")
        except LabError as error:
            return str(error)
        return ", ".join(re.findall(r"[ER]IP=[0-9a-f]+", registers))

    def set_link(self, card: str, *, up: bool) -> None:
        """Plug or pull the cable of a card, "mgmt" or "san-NAME"."""
        self._execute("set_link", name=card, up=up)
        mark = self._pulled_mark(card)
        if up:
            mark.unlink(missing_ok=True)
        else:
            mark.touch()

    def link_is_up(self, card: str) -> bool:
        """Tell whether the cable is plugged, whichever process pulled it."""
        return not self._pulled_mark(card).exists()

    def _pulled_mark(self, card: str) -> Path:
        return self.place / f"pulled-{card}"

    def _execute(self, command: str, **arguments: object) -> dict[str, object]:
        return dict(qmp.execute(self.place / "qmp.sock", command, **arguments))
