"""Time that passes only when a test, or the code under test by sleeping, makes it pass."""

import threading
from collections.abc import Callable

START_S = 1_800_000_000.0
"""A date in 2027: late enough to be mistaken for nothing else, and not zero."""


class VirtualClock:
    """Seconds since the epoch, for everything in one world."""

    def __init__(self, now_s: float = START_S) -> None:
        self._now_s = now_s
        self._lock = threading.Lock()
        self._on_passing: list[Callable[[], None]] = []

    def now(self) -> float:
        """Return the time, in seconds since the epoch; it serves as the monotonic time too."""
        return self._now_s

    def sleep(self, seconds: float) -> None:
        """Let time pass at once, and whatever was due in it happen."""
        with self._lock:
            self._now_s += max(0.0, seconds)
        for due in self._on_passing:
            due()

    def at_passing(self, due: Callable[[], None]) -> None:
        """Have something looked at whenever time has passed."""
        self._on_passing.append(due)
