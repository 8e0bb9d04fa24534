"""The cluster role: decides where a new volume goes, and decides anew while nobody has accepted it."""

import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from aoe_core.errors import NotFound
from aoe_core.resources import placement
from aoe_core.resources.node import AoENode
from aoe_core.resources.store import Store
from aoe_core.resources.volume import AoEVolume

_UNPLACED_S = 2.0
_UNACCEPTED_S = 10.0


class ClusterRole:
    """What is decided once for the whole cluster. Two of it may run: each writes only over what it has read."""

    def __init__(
        self, store: Store, live: Callable[[], AbstractSet[str]], now_s: Callable[[], int] = lambda: int(time.time())
    ) -> None:
        self._store = store
        self._live = live
        """The storage nodes that renew their Leases."""
        self._now_s = now_s

    def place(self, name: str) -> float | None:
        """Place one volume. Returns: when to look again, None once its storage node has accepted it."""
        try:
            volume = self._store.get(AoEVolume, name)
        except NotFound:
            return None
        placement.place(
            self._store,
            volume,
            self._store.list(AoENode),
            self._store.list(AoEVolume),
            live=self._live(),
            now_s=self._now_s(),
        )
        if volume.status.node is not None:
            return None
        return _UNACCEPTED_S if volume.spec.node is not None else _UNPLACED_S
