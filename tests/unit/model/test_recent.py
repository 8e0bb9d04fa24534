"""RecentLook: one look is good for a while, and for whoever comes meanwhile."""

import itertools

import pytest

from aoe_core.errors import CommandFailed
from aoe_core.recent import RecentLook


def test_a_look_serves_until_it_is_old_or_forgotten() -> None:
    lately = RecentLook(itertools.count().__next__, age_s=1000)
    assert [lately.take(), lately.take()] == [0, 0]
    lately._looked_s -= 1000  # noqa: SLF001 - it grows old.
    assert [lately.take(), lately.take()] == [1, 1]
    lately.forget()
    assert lately.take() == 2


def test_what_somebody_else_saw_serves_too() -> None:
    lately = RecentLook(itertools.count().__next__, age_s=1000)
    lately.tell(7)
    assert lately.take() == 7


def test_nothing_is_a_sight_too() -> None:
    answers = iter([None, "a lack"])
    lately: RecentLook[str | None] = RecentLook(lambda: next(answers), age_s=1000)
    assert lately.take() is None
    assert lately.take() is None


def test_a_look_that_failed_is_made_again() -> None:
    numbers = itertools.count()

    def look() -> int:
        number = next(numbers)
        if number == 0:
            raise CommandFailed("no")
        return number

    lately = RecentLook(look, age_s=1000)
    with pytest.raises(CommandFailed):
        lately.take()
    assert lately.take() == 1


def test_another_way_of_looking_counts_as_a_look_and_one_that_fails_leaves_nothing() -> None:
    lately = RecentLook(itertools.count().__next__, age_s=1000)
    assert lately.renew(lambda: "seven", len) == "seven"
    assert lately.take() == 5
    with pytest.raises(ValueError, match="blind"):
        lately.renew(_fails, len)
    assert lately.take() == 0


def _fails() -> str:
    raise ValueError("blind")
