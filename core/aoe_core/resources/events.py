"""Events: what `kubectl describe` and `kubectl events` tell a person of an object's past.

An event is posted when a condition changes, so that it is posted once: what a condition says now, its events said when
it began.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from aoe_core.errors import Busy, Unfinished
from aoe_core.resources.fields import Condition
from aoe_core.resources.node import AoENode
from aoe_core.resources.snapshot import AoESnapshot
from aoe_core.resources.volume import AoEVolume

Subject = AoEVolume | AoESnapshot | AoENode
_PASSING = (Busy.__name__, Unfinished.__name__)
"""Reasons that take care of themselves; their messages may tell of progress and change all the time."""
_EXPECTED = ("Placed", "Ready")
"""Conditions that every resource comes to: that they hold for the first time is no news."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened to an object."""

    reason: str
    """One CamelCase word."""
    message: str
    """The fact, and the remedy if somebody has to do something."""
    is_warning: bool


class Events(Protocol):
    """Where events are posted."""

    def post(self, subject: Subject, event: Event) -> None:
        """Post an event. Nothing is raised: no work waits for a message about it."""


def of_change(before: Iterable[Condition], after: Iterable[Condition]) -> tuple[Event, ...]:
    """Return what is worth an event when an object's conditions change."""
    known = {one.type: one for one in before}
    return tuple(
        Event(
            reason=one.type if one.status == "True" else one.reason,
            message=one.message,
            is_warning=one.status == "False" and one.reason not in _PASSING,
        )
        for one in after
        if _is_news(known.get(one.type), one)
    )


def post_change(to: Events, subject: Subject, after: Iterable[Condition]) -> None:
    """Post what is worth an event when an object's conditions become others."""
    for event in of_change(subject.status.conditions, after):
        to.post(subject, event)


def _is_news(before: Condition | None, now: Condition) -> bool:
    if before is None and now.type in _EXPECTED and now.status == "True":
        return False
    if before is None or before.status != now.status:
        return True
    if now.status == "True":
        return False
    return before.reason != now.reason or (before.message != now.message and now.reason not in _PASSING)
