"""SharedLook: one look serves all who asked before it began, and nobody who asked later."""

import threading
from collections.abc import Sequence

import pytest
from tests.callers import await_gathered

from aoe_core.errors import CommandFailed
from aoe_core.host.batches import Batches
from aoe_core.host.looks import SharedLook


class Slow:
    """A look that takes until it is allowed to end, and says the how-manieth it was."""

    def __init__(self) -> None:
        self.begun = 0
        self.running = 0
        self.most_at_once = 0
        self.may_end = threading.Semaphore(0)
        self.begins = threading.Semaphore(0)

    def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        self.begins.release()
        assert self.may_end.acquire(timeout=30)
        self.running -= 1
        return number


def asking(shared: SharedLook[int], answers: list[int]) -> threading.Thread:
    thread = threading.Thread(target=lambda: answers.append(shared.take()))
    thread.start()
    return thread


def test_whoever_asks_during_a_look_shares_the_next_one() -> None:
    slow = Slow()
    shared = SharedLook(slow)
    first: list[int] = []
    later: list[int] = []
    threads = [asking(shared, first)]
    assert slow.begins.acquire(timeout=30)
    threads += [asking(shared, later) for _ in range(20)]
    # None of them may be answered by the look that was under way when it asked.
    slow.may_end.release()
    threads[0].join(30)
    assert first == [1]
    for _ in range(20):
        slow.may_end.release()
    for thread in threads:
        thread.join(30)
    assert len(later) == 20
    assert min(later) >= 2
    # A thread that was slow to ask leads a look of its own; twenty looks would be no sharing.
    assert slow.begun < 15
    assert slow.most_at_once == 1


def test_whoever_asks_while_a_look_is_held_back_shares_it() -> None:
    slow = Slow()
    held, may_begin = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        assert may_begin.wait(30)

    shared = SharedLook(slow, hold=hold)
    answers: list[int] = []
    threads = [asking(shared, answers)]
    assert held.wait(30)
    assert slow.begun == 0
    threads += [asking(shared, answers) for _ in range(5)]
    await_gathered(shared._batches, 6)  # noqa: SLF001 - nothing tells of it from outside.
    slow.may_end.release()
    may_begin.set()
    for thread in threads:
        thread.join(30)
    assert answers == [1] * 6


def test_callers_one_after_the_other_get_a_look_each() -> None:
    slow = Slow()
    shared = SharedLook(slow)
    for number in (1, 2, 3):
        slow.may_end.release()
        assert shared.take() == number


def test_a_failed_look_fails_for_its_callers_and_no_others() -> None:
    outcomes = iter([CommandFailed("lvm is not there"), None])

    def look() -> str:
        if (error := next(outcomes)) is not None:
            raise error
        return "seen"

    shared = SharedLook(look)
    with pytest.raises(CommandFailed):
        shared.take()
    assert shared.take() == "seen"


def test_a_batch_lingers_for_those_who_come_with_its_first() -> None:
    carried: list[tuple[int, ...]] = []
    others = [threading.Thread(target=lambda number=number: batches.ask(number)) for number in (2, 3)]

    def carry_out(wishes: Sequence[int]) -> Sequence[int]:
        carried.append(tuple(wishes))
        return wishes

    def linger_s() -> float:
        # The first has its turn; the others come before it begins.
        for number, other in enumerate(others, start=2):
            other.start()
            await_gathered(batches, number)
        return 0.001

    batches = Batches(carry_out, linger_s=linger_s)
    assert batches.ask(1) == 1
    for other in others:
        other.join(30)
    assert carried == [(1, 2, 3)]
