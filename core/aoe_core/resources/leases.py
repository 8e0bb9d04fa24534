"""Signs of life: a storage node renews its Lease, and is live while others see it change.

Judged by changes that this process has seen, on its own clock: the clocks of two machines need not agree.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from aoe_core.errors import AoECsiError

log = logging.getLogger(__name__)

RENEW_S = 10.0
LIVE_S = 40.0
"""As Kubernetes does with nodes: four renewals may fail."""


WENT_BACK = "the API server was put back to an older state; ending, to start anew with it"
"""A watch goes on from the revision it had reached, and would hear nothing until that is reached again."""


class LeaseStore(Protocol):
    """Where Leases are kept."""

    def renew_lease(self, node: str) -> int:
        """Write that a node is alive. Returns: the API server's revision, which only grows. Raises: Unreachable."""

    def leases(self) -> Mapping[str, int]:
        """Return node → the revision of its last renewal. Raises: Unreachable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """What is known of storage nodes."""

    live: frozenset[str] = frozenset()
    dead: frozenset[str] = frozenset()
    """Who has a Lease and has not renewed it for LIVE_S."""
    leased: frozenset[str] = frozenset()
    """Who has a Lease at all."""
    is_long: bool = False
    """Whether it has been looked for LIVE_S: who lives and had no Lease would have one by now."""

    def is_gone(self, node: str) -> bool:
        """Say whether a node shows no sign of life, and would have."""
        return node in self.dead or (self.is_long and node not in self.leased)


@dataclass(frozen=True, slots=True)
class _Sight:
    revision: int
    first_s: float
    changed_s: float | None = None


class LiveNodes:
    """Which storage nodes renew their Leases.

    A node is live from the first change that is seen, not from its first sight: a Lease may be a dead node's. So in its
    first seconds a new process knows of none, and placement waits; and `watch` has to look all the time.
    """

    def __init__(self, store: LeaseStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._guard = threading.Lock()
        self._seen: dict[str, _Sight] = {}
        self._looked_s = 0.0
        self._began_s: float | None = None
        """When the first look succeeded, and later by as long as nobody could be asked since."""
        self._blind = False
        """Whether a look has failed since the last that did not."""
        self._went_back = False

    def watch(
        self, stop: threading.Event, tell: Callable[[Liveness], None] = lambda _: None, every_s: float = RENEW_S / 2
    ) -> threading.Thread:
        """Begin to look now and again until `stop` is set, which it is too once the API server has gone back in time.

        `tell` is called after each look. Returns: the thread that does.
        """

        def look() -> None:
            while not stop.is_set():
                try:
                    tell(self.look())
                except AoECsiError as error:
                    log.error("leases cannot be read", extra={"error": str(error)})
                except Exception:
                    # Else nobody would ever be found silent, or alive, by a process that seems well.
                    log.exception("a look at the leases failed")
                if self._went_back:
                    log.warning(WENT_BACK)
                    stop.set()
                stop.wait(every_s)

        thread = threading.Thread(target=look, name="leases")
        thread.start()
        return thread

    def __call__(self) -> frozenset[str]:
        """Look at all Leases, and return the live nodes. Raises: Unreachable."""
        return self.look().live

    def look(self) -> Liveness:
        """Look at all Leases. Raises: Unreachable."""
        # One look after the other: two at once could note theirs in the wrong order, and the API server would seem to
        # have gone back in time.
        with self._guard:
            try:
                marks = self._store.leases()
            except AoECsiError:
                self._blind = True
                raise
            now = self._clock()
            if self._blind:
                # While nobody could be asked, nobody could renew either.
                self._forgive(now - self._looked_s)
            self._looked_s, self._blind = now, False
            self._began_s = now if self._began_s is None else self._began_s
            for node, revision in marks.items():
                before = self._seen.get(node)
                if before is None:
                    self._seen[node] = _Sight(revision, now)
                elif before.revision != revision:
                    self._went_back |= revision < before.revision
                    self._seen[node] = _Sight(revision, before.first_s, now)
            for gone in self._seen.keys() - marks.keys():
                del self._seen[gone]
            return Liveness(
                live=frozenset(
                    node
                    for node, sight in self._seen.items()
                    if sight.changed_s is not None and now - sight.changed_s < LIVE_S
                ),
                dead=frozenset(
                    node for node, sight in self._seen.items() if now - (sight.changed_s or sight.first_s) >= LIVE_S
                ),
                leased=frozenset(self._seen),
                is_long=now - self._began_s >= LIVE_S,
            )

    def _forgive(self, away_s: float) -> None:
        if self._began_s is not None:
            self._began_s += away_s
        self._seen = {
            node: _Sight(one.revision, one.first_s + away_s, None if one.changed_s is None else one.changed_s + away_s)
            for node, one in self._seen.items()
        }
