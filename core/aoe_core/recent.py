"""Looks that are still good a while later: for what is asked more often than it changes, and may be a little old."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Seen = TypeVar("Seen")
Whole = TypeVar("Whole")


class RecentLook(Generic[Seen]):
    """What was seen last, seen anew once it is older than `age_s`. Those who come while somebody looks wait for what he
    sees."""

    def __init__(self, look: Callable[[], Seen], *, age_s: float) -> None:
        self._look = look
        self._age_s = age_s
        self._guard = threading.Lock()
        self._seen: tuple[Seen, ...] = ()
        """What was seen last, if anything."""
        self._looked_s = float("-inf")

    def take(self) -> Seen:
        """Return what was seen at most `age_s` ago. Raises: what the look raises; the next one looks again."""
        with self._guard:
            if not self._seen or time.monotonic() - self._looked_s >= self._age_s:
                self._note(self._look())
            return self._seen[0]

    def renew(self, look: Callable[[], Whole], of: Callable[[Whole], Seen]) -> Whole:
        """Return what another look sees now, and keep what `of` makes of it; who asks meanwhile waits for that.

        Raises: what the look raises, and nothing is kept.
        """
        with self._guard:
            self._seen = ()
            whole = look()
            self._note(of(whole))
            return whole

    def tell(self, seen: Seen) -> None:
        """Take what somebody else has seen just now."""
        with self._guard:
            self._note(seen)

    def forget(self) -> None:
        """Look anew next time, and keep nothing until then."""
        with self._guard:
            self._seen = ()

    def _note(self, seen: Seen) -> None:
        self._seen, self._looked_s = (seen,), time.monotonic()
