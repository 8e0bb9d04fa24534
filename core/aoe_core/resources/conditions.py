"""Conditions as values: set without touching the time of what did not change, and read back as our own errors.

A condition that is False because of an error has the error's class as its reason and its sentence as its message, so
that whoever waits for the resource raises what the storage node met.
"""

from collections.abc import Iterable
from datetime import UTC, datetime

from aoe_core import errors
from aoe_core.errors import AoECsiError
from aoe_core.resources.fields import Condition

_ERRORS: dict[str, type[AoECsiError]] = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, AoECsiError) and kind is not AoECsiError
}
_LONGEST_MESSAGE = 1024


def time_of(seconds: int) -> str:
    """Return seconds since the epoch as metav1.Time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_of(time: str) -> int:
    """Return a metav1.Time as seconds since the epoch."""
    return int(datetime.fromisoformat(time).timestamp())


def find(conditions: Iterable[Condition], type_: str) -> Condition | None:
    """Return the condition of one type."""
    return next((one for one in conditions if one.type == type_), None)


def put(
    conditions: Iterable[Condition], type_: str, *, holds: bool, reason: str, message: str, generation: int, now_s: int
) -> tuple[Condition, ...]:
    """Return the conditions with one of them set, in its place; its time is kept if its status is."""
    status = "True" if holds else "False"
    kept = tuple(conditions)
    before = find(kept, type_)
    same = before is not None and before.status == status
    fresh = Condition(
        type=type_,
        status=status,
        reason=reason,
        message=message[:_LONGEST_MESSAGE],
        last_transition_time=before.last_transition_time if before is not None and same else time_of(now_s),
        observed_generation=generation,
    )
    if before is None:
        return (*kept, fresh)
    # At its place: moved, it would make a status differ that says the same.
    return tuple(fresh if one.type == type_ else one for one in kept)


def put_error(
    conditions: Iterable[Condition], type_: str, error: AoECsiError, *, generation: int, now_s: int
) -> tuple[Condition, ...]:
    """Return the conditions with one of them False because of an error."""
    return put(
        conditions,
        type_,
        holds=False,
        reason=type(error).__name__,
        message=str(error),
        generation=generation,
        now_s=now_s,
    )


def error_of(reason: str, message: str) -> AoECsiError | None:
    """Return the error that a reason and a message stand for, None when the reason is no error's."""
    kind = _ERRORS.get(reason)
    return kind(message) if kind is not None else None
