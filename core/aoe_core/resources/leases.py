"""Signs of life: a storage node renews its Lease, and is live while others see it change.

Judged by changes that this process has seen, on its own clock: the clocks of two machines need not agree.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from aoe_core.errors import AoECsiError

log = logging.getLogger(__name__)

RENEW_S = 10.0
LIVE_S = 40.0
"""As Kubernetes does with nodes: four renewals may fail."""


class LeaseStore(Protocol):
    """Where Leases are kept."""

    def renew_lease(self, node: str) -> None:
        """Write that a node is alive. Raises: Unreachable."""

    def leases(self) -> Mapping[str, str]:
        """Return node → a mark that differs after each renewal. Raises: Unreachable."""


class LiveNodes:
    """Which storage nodes renew their Leases.

    A node is live from the first change that is seen, not from its first sight: a Lease may be a dead node's. So in its
    first seconds a new process knows of none, and placement waits; and `watch` has to look all the time.
    """

    def __init__(self, store: LeaseStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._guard = threading.Lock()
        self._seen: dict[str, tuple[str, float | None]] = {}

    def watch(self, stop: threading.Event, every_s: float = RENEW_S / 2) -> threading.Thread:
        """Begin to look now and again until `stop` is set. Returns: the thread that does."""

        def look() -> None:
            while not stop.is_set():
                try:
                    self()
                except AoECsiError as error:
                    log.error("leases cannot be read", extra={"error": str(error)})
                stop.wait(every_s)

        thread = threading.Thread(target=look, name="leases")
        thread.start()
        return thread

    def __call__(self) -> frozenset[str]:
        """Look at all Leases, and return the live nodes. Raises: Unreachable."""
        marks = self._store.leases()
        now = self._clock()
        with self._guard:
            for node, mark in marks.items():
                before = self._seen.get(node)
                if before is None:
                    self._seen[node] = (mark, None)
                elif before[0] != mark:
                    self._seen[node] = (mark, now)
            for gone in self._seen.keys() - marks.keys():
                del self._seen[gone]
            return frozenset(
                node for node, (_, changed) in self._seen.items() if changed is not None and now - changed < LIVE_S
            )
