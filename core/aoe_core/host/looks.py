"""Looks at the host that many callers share.

`lvm fullreport` and `systemctl show` read everything at once, and take the longer the more of them run beside each
other. Fifty calls at once need one of each, not fifty.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Seen = TypeVar("Seen")


class SharedLook(Generic[Seen]):
    """Callers that ask while a look is under way share the next one.

    What a caller gets was always read after it asked: a look already under way may have passed by what the caller has
    just changed. Two looks never run at the same time.
    """

    def __init__(self, look: Callable[[], Seen]) -> None:
        self._look = look
        self._guard = threading.Lock()
        self._looking = threading.Lock()
        self._next: Future[Seen] | None = None

    def take(self) -> Seen:
        """Return what a look begun after this call saw. Raises: what that look raised, for all who share it."""
        with self._guard:
            leads = self._next is None
            if self._next is None:
                self._next = Future()
            mine = self._next
        if leads:
            with self._looking:
                with self._guard:
                    self._next = None
                try:
                    mine.set_result(self._look())
                except BaseException as error:  # noqa: BLE001
                    # Passed on, not swallowed: whoever waits must be told of every ending.
                    mine.set_exception(error)
        return mine.result()
