"""The cluster role: decides where a new volume goes, and decides anew while nobody has accepted it; and
gives up what was on a node that is gone for good."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet

from msgspec.structs import replace

from aoe_core.errors import AoECsiError
from aoe_core.recent import RecentLook
from aoe_core.resources import conditions, events, placement
from aoe_core.resources.events import Events
from aoe_core.resources.leases import Liveness
from aoe_core.resources.node import AoENode
from aoe_core.resources.store import Store
from aoe_core.resources.volume import AoEVolume
from aoe_operator import decommission, finalizer

log = logging.getLogger(__name__)

_UNPLACED_S = 2.0
_SILENT_S = 10.0
"""Until one that a person wants on a silent node is looked at again."""
_RESCUE_S = 30.0
"""Between two looks at those that were placed on a node that fell silent, while no other has room for them."""
_LOOK_S = 1.0


class ClusterRole:
    """What is decided once for the whole cluster. Two of it may run: each writes only over what it has read."""

    def __init__(
        self,
        store: Store,
        live: Callable[[], AbstractSet[str]],
        events: Events,
        now_s: Callable[[], int] = lambda: int(time.time()),
    ) -> None:
        self._store = store
        self._events = events
        self._live = RecentLook(live, age_s=_LOOK_S)
        """The storage nodes that renew their Leases."""
        self._now_s = now_s
        self._guard = threading.Lock()
        self._nodes: tuple[AoENode, ...] = ()
        self._volumes: dict[str, AoEVolume] = {}
        self._looked_s = self._look_took_s = float("-inf")
        self._told = Liveness()
        self._rescue_s = float("inf")
        """When to look for volumes on silent nodes, by the monotonic clock."""

    def tell_liveness(self, seen: Liveness) -> None:
        """Write into each AoENode whether its Lease is renewed, when that changes, and place anew what a node that fell
        silent had not taken on. Raises: Busy, Unreachable."""
        self._live.tell(seen.live)
        if seen != self._told:
            for node in self._store.list(AoENode):
                name = node.metadata.name
                if name in seen.live or seen.is_gone(name):
                    self._tell_one(node, is_live=name in seen.live)
            if self._told.live - seen.live or seen.dead - self._told.dead or seen.is_long > self._told.is_long:
                self._rescue_s = time.monotonic()
            self._told = seen
        if self._rescue_s <= time.monotonic():
            self._rescue_s = time.monotonic() + _RESCUE_S if self._rescue(seen) else float("inf")

    def _rescue(self, seen: Liveness) -> bool:
        """Place anew what waits for a silent node, and let go of what waits for it to be deleted. Returns: whether
        anything still does."""
        left = False
        for volume in self._store.list(AoEVolume):
            try:
                held = finalizer.FINALIZER in volume.metadata.finalizers and finalizer.never_taken_on(volume)
                if held and volume.spec.node not in seen.live:
                    if volume.spec.node is not None and seen.is_gone(volume.spec.node):
                        finalizer.take_off(self._store, volume)
                    else:
                        left = True
                elif volume.spec.node is not None and placement.is_open(volume, live=seen.live):
                    left |= self.place(volume.metadata.name) is not None
            except AoECsiError as error:
                log.warning("not placed anew", extra={"volume": volume.metadata.name, "error": str(error)})
                left = True
        return left

    def _tell_one(self, node: AoENode, *, is_live: bool) -> None:
        before = conditions.find(node.status.conditions, "Live")
        if before is not None and (before.status == "True") == is_live:
            return
        silent = (
            f"storage node {node.metadata.name} does not renew its Lease: is it up, and its pod of aoe-csi-storage? Its"
            " exports may go on; nothing is placed there, granted or revoked meanwhile"
        )
        said = conditions.put(
            node.status.conditions,
            "Live",
            holds=is_live,
            reason="Renewed" if is_live else "Silent",
            message="its Lease is renewed" if is_live else silent,
            generation=node.metadata.generation,
            now_s=self._now_s(),
        )
        self._store.update_status(replace(node, status=replace(node.status, conditions=said)))
        events.post_change(self._events, node, said)

    def decommission(self, name: str) -> float | None:
        """Give up what is on a decommissioned node. Returns: when to look again, None when there is nothing to do."""
        node = self._store.find(AoENode, name)
        if node is None or not node.spec.decommissioned:
            return None
        return decommission.give_up(self._store, self._events, node, self._told, self._now_s())

    def knows_live(self, node: str) -> bool:
        """Say whether a storage node renewed its Lease when that was last told."""
        return node in self._told.live

    def place(self, name: str) -> float | None:
        """Place one volume. Returns: when to look again, None once there is a live storage node to take it on: should
        that fall silent before it has, `tell_liveness` comes back to it."""
        volume = self._store.find(AoEVolume, name)
        if volume is None:
            return None
        live = self._live.take()
        if placement.is_open(volume, live=live):
            # One after the other: who is placed next has to see who was placed before.
            with self._guard:
                looks = self._looks(is_new=conditions.find(volume.status.conditions, "Placed") is None)
                written = placement.place(self._store, volume, looks, live=live, now_s=self._now_s())
                self._volumes[name] = written
            events.post_change(self._events, volume, written.status.conditions)
            volume = written
        if volume.status.node is not None or volume.spec.node in live:
            return None
        return _UNPLACED_S if volume.spec.node is None else _SILENT_S

    def _looks(self, *, is_new: bool) -> Iterator[placement.Look]:
        """Look at nodes and volumes: a crowd shares one look, but a new volume is not refused by an old one.

        A look at ten thousand volumes takes seconds. So it is good for ten times what it took, and never takes up more
        than a tenth of the time.
        """
        yield self._look(max(_LOOK_S, 10 * self._look_took_s))
        if is_new:
            yield self._look(_LOOK_S)

    def _look(self, age_s: float) -> placement.Look:
        """Return the last look if it is younger than `age_s`, with what was placed since; else look."""
        begin_s = time.monotonic()
        if begin_s - self._looked_s >= age_s:
            self._nodes = self._store.list(AoENode)
            self._volumes = {one.metadata.name: one for one in self._store.list(AoEVolume)}
            self._looked_s = time.monotonic()
            self._look_took_s = self._looked_s - begin_s
        return placement.Look(nodes=self._nodes, volumes=tuple(self._volumes.values()))
