"""After a boot: what passes is waited for, what does not is told at once."""

from typing import Any

import pytest

from aoe_core.errors import (
    AoECsiError,
    Busy,
    CommandFailed,
    Conflict,
    IdentityMismatch,
    InUse,
    Invalid,
    NotFound,
    Unfinished,
    Unreachable,
)
from aoe_core.guests import readiness
from aoe_core.guests.readiness import ready_all
from aoe_core.model import VolumeId

VOLUME = VolumeId("web")


class Machine:
    """Disks and attacher in one; each fails some times, and then no more."""

    def __init__(self, error: AoECsiError | None = None, *, preparing: AoECsiError | None = None) -> None:
        self.error = error
        self.preparing = preparing
        self.fails = 2
        self.asked = 0

    def to_ready(self) -> tuple[VolumeId, ...]:
        return (VOLUME,)

    def prepare(self) -> None:
        self._fail(self.preparing)

    def ready(self, volume_id: VolumeId) -> None:
        assert volume_id == VOLUME
        self._fail(self.error)

    def _fail(self, error: AoECsiError | None) -> None:
        self.asked += 1
        if error is not None and self.asked <= self.fails:
            raise error


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_AGAIN_S", 0.01)


def readied(machine: Any, limit_s: float = 30.0) -> str:
    (outcome,) = ready_all(machine, machine, limit_s=limit_s)
    return outcome.problem


@pytest.mark.parametrize("kind", [Busy, CommandFailed, InUse, NotFound, Unfinished, Unreachable])
def test_what_may_pass_is_tried_again(kind: type[AoECsiError]) -> None:
    machine = Machine(kind("not yet"))
    assert readied(machine) == ""
    assert machine.asked == 3  # Once to prepare; the second look failed as well.
    assert readied(Machine(preparing=kind("not yet"))) == ""


@pytest.mark.parametrize("kind", [Conflict, IdentityMismatch, Invalid])
def test_what_does_not_pass_is_told_at_once(kind: type[AoECsiError]) -> None:
    machine = Machine(kind("never"))
    machine.fails = 10**6
    assert readied(machine) == "never"
    assert machine.asked == 2  # Once to prepare, once for the volume.
    with pytest.raises(kind):
        readied(Machine(preparing=kind("never")))


def test_what_does_not_pass_in_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    # How long its thread may take to say so, when the time is over.
    monkeypatch.setattr(readiness, "_AGAIN_S", 30.0)
    machine = Machine(CommandFailed("not yet"))
    machine.fails = 10**6
    assert readied(machine, limit_s=0.0) == "not yet"
