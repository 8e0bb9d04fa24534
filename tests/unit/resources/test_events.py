from aoe_core.resources.events import of_change
from aoe_core.resources.fields import Condition


def condition(status: str, reason: str, message: str = "") -> Condition:
    return Condition(
        type="Ready", status=status, reason=reason, message=message, last_transition_time="2026-01-01T00:00:00Z"
    )


def told(before: Condition | None, after: Condition) -> list[tuple[str, bool]]:
    events = of_change(() if before is None else (before,), (after,))
    return [(event.reason, event.is_warning) for event in events]


def test_a_change_of_status_is_told() -> None:
    assert told(None, condition("False", "NoSpace", "full")) == [("NoSpace", True)]
    assert told(condition("True", "Done"), condition("False", "NoSpace", "full")) == [("NoSpace", True)]
    assert told(condition("False", "NoSpace", "full"), condition("True", "Done")) == [("Ready", False)]


def test_what_every_resource_comes_to_is_told_when_it_comes_back_alone() -> None:
    assert told(None, condition("True", "Done")) == []


def test_another_reason_or_sentence_is_told_and_the_same_is_not() -> None:
    full = condition("False", "NoSpace", "10 missing")
    assert told(full, full) == []
    assert told(full, condition("False", "NoSpace", "20 missing")) == [("NoSpace", True)]
    assert told(full, condition("False", "Unreachable", "no answer")) == [("Unreachable", True)]
    assert told(condition("True", "Done", "a"), condition("True", "Done", "b")) == []


def test_progress_is_told_once_and_is_no_warning() -> None:
    wiping = condition("False", "Unfinished", "1 of 9")
    assert told(None, wiping) == [("Unfinished", False)]
    assert told(wiping, condition("False", "Unfinished", "2 of 9")) == []
