"""Wishes of many callers, carried out together.

To start a command can cost more than what it does. While one batch is carried out, those who come meanwhile gather for
the next one; whoever comes when nothing is going on hardly waits.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from aoe_core.errors import Busy

Wish = TypeVar("Wish")
Outcome = TypeVar("Outcome")


class _Batch(Generic[Wish, Outcome]):
    def __init__(self) -> None:
        self.wishes: list[Wish] = []
        self.outcomes: Future[Sequence[Outcome]] = Future()


class Batches(Generic[Wish, Outcome]):
    """Batches of one kind, one after the other.

    Args: `carry_out`: returns the outcome of each wish, in their order. `at_most`: wishes of one batch, so that its
    first caller does not wait for ever longer. `patience_s`: how long a batch waits for its turn. None: no limit.
    `hold`: returns once a batch whose turn it is had better begin; more may join until then. `linger_s`: a batch begins
    when nobody has joined for so long; for callers who come in flocks.
    """

    def __init__(
        self,
        carry_out: Callable[[Sequence[Wish]], Sequence[Outcome]],
        *,
        at_most: int | None = None,
        patience_s: float | None = None,
        hold: Callable[[], None] = lambda: None,
        linger_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._carry_out = carry_out
        self._at_most = at_most
        self._patience_s = patience_s
        self._hold = hold
        self._linger_s = linger_s
        self._guard = threading.Lock()
        self._turn = threading.Lock()
        self._gathering: _Batch[Wish, Outcome] | None = None

    def ask(self, wish: Wish) -> Outcome:
        """Return what became of a wish; carrying it out begins after this call. Raises: Busy when its turn did not come
        and nothing was done; and what `carry_out` raised, for all of the batch."""
        with self._guard:
            batch = self._gathering
            leads = batch is None or len(batch.wishes) == self._at_most
            if batch is None or leads:
                batch = self._gathering = _Batch()
            place = len(batch.wishes)
            batch.wishes.append(wish)
        if leads:
            self._lead(batch)
        return batch.outcomes.result()[place]

    def _lead(self, batch: _Batch[Wish, Outcome]) -> None:
        if not self._turn.acquire(timeout=-1 if self._patience_s is None else self._patience_s):
            self._close(batch)
            batch.outcomes.set_exception(Busy(f"others have been before this for {self._patience_s:g} s"))
            return
        try:
            try:
                self._hold()
                self._linger(batch)
            finally:
                self._close(batch)
            batch.outcomes.set_result(self._carry_out(tuple(batch.wishes)))
        except BaseException as error:  # noqa: BLE001
            # Passed on, not swallowed: whoever waits must be told of every ending.
            batch.outcomes.set_exception(error)
        finally:
            self._turn.release()

    def _close(self, batch: _Batch[Wish, Outcome]) -> None:
        with self._guard:
            if self._gathering is batch:
                self._gathering = None

    def _linger(self, batch: _Batch[Wish, Outcome]) -> None:
        step_s, before = self._linger_s(), 0
        while step_s and before < len(batch.wishes) != self._at_most:
            before = len(batch.wishes)
            time.sleep(step_s)
