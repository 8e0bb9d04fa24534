"""Noticing that the API server was put back to an older state, for a process that remembers what it was told.

The CSI sidecars go on with what they saw after the backup, and would attach for objects that are no more. They end when
their driver does, and start anew; so it is the driver that looks. A step back by fewer revisions than are written
between two looks goes unnoticed. Leases alone are renewed all the time: only a backup of seconds ago is so near.
"""

import logging
import threading
from collections.abc import Callable

from aoe_core.errors import AoECsiError
from aoe_core.resources.leases import RENEW_S, WENT_BACK

log = logging.getLogger(__name__)


class StepBack:
    """Sets `end` when the API server's revision, which otherwise only grows, is smaller than before."""

    def __init__(self, revision: Callable[[], int], end: threading.Event, *, every_s: float = RENEW_S) -> None:
        """`revision` may raise AoECsiError: who does not answer has not gone back."""
        self._revision = revision
        self._end = end
        self._every_s = every_s
        self._seen = 0

    def start_background(self) -> None:
        """Look now and again, in a thread of its own, until `end` is set."""
        threading.Thread(target=self._look_for_ever, name="step back", daemon=True).start()

    def stop_background(self) -> None:
        """Look no more."""
        self._end.set()

    def look(self) -> None:
        """Ask once. Raises: Unreachable."""
        revision = self._revision()
        if revision < self._seen:
            log.warning(WENT_BACK)
            self._end.set()
        self._seen = revision

    def _look_for_ever(self) -> None:
        while not self._end.is_set():
            try:
                self.look()
            except AoECsiError as error:
                log.warning("the API server's revision is not known", extra={"error": str(error)})
            except Exception:
                # Without this thread a step back would go unnoticed.
                log.exception("a look at the API server's revision failed")
            self._end.wait(self._every_s)
