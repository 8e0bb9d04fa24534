"""The errors of the lab, one tree: whoever drives machines catches `LabError`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aoe_lab.process import Finished


class LabError(Exception):
    """Something of the lab is not as asked; the message names it and the remedy."""


class CommandFailed(LabError):
    """A program, here or on a machine, exited with something else than 0."""

    def __init__(self, where: str, finished: Finished) -> None:
        self.finished = finished
        output = (finished.stderr.strip() or finished.stdout.strip())[-2000:]
        super().__init__(f"{where}: `{' '.join(finished.argv)}` exited with {finished.code}: {output or '(no output)'}")


class CommandTimedOut(LabError):
    """A program did not end in the time it was given."""


class MachineUnreachable(LabError):
    """A machine is not running, or does not answer on ssh."""


class BootFailed(LabError):
    """A machine did not become ready; the message carries the end of its console."""
