"""Compute nodes as the cluster knows them: tickets follow their cards, and who does not register is told of.

A ticket names the cards its node had when it was written, and nobody writes it anew while the volume stays attached: a
node that came back with another card would be shut out of its own volumes.
"""

import logging
import time
from collections.abc import Callable, Mapping

from msgspec.structs import replace

from aoe_core.errors import AoECsiError, NotFound
from aoe_core.model import NodeIdentity
from aoe_core.resources.registrations import RegistrationStore
from aoe_core.resources.store import Store
from aoe_core.resources.volume import AoEVolume, Ticket
from aoe_operator import metrics

log = logging.getLogger(__name__)

LOOK_EVERY_S = 60
REGISTERED_AFTER_S = 300
"""A node server that starts may have to wait for its image, its host's preparation, and kubelet."""


class Registrations:
    """What the cluster role sees of compute nodes."""

    def __init__(self, store: Store, registered: RegistrationStore, now_s: Callable[[], int]) -> None:
        self._store = store
        self._registered = registered
        self._now_s = now_s
        self._looked_s = float("-inf")
        """When, by the monotonic clock: the other one may be set back."""
        self._ids: Mapping[str, str] = {}
        self._missing: frozenset[str] = frozenset()

    def look_sometimes(self) -> None:
        """Look if the last look was a while ago; what fails is logged, and tried again."""
        if time.monotonic() - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = time.monotonic()
        try:
            self.look()
        except AoECsiError as error:
            log.error("registrations cannot be looked at", extra={"error": str(error)})

    def look(self) -> None:
        """Write tickets anew whose nodes have other cards, note who has not registered. Raises: Busy, Unreachable."""
        ids = self._registered.node_ids()
        missing = unregistered(ids, self._registered.node_pods(), self._now_s())
        metrics.show_unregistered(missing)
        for node in sorted(missing - self._missing):
            log.warning(
                "node does not register: no pod there gets a volume; its aoe-csi-node pod's log and /readyz say why",
                extra={"node": node},
            )
        self._missing = missing
        if ids == self._ids:
            return
        for volume in self._store.list(AoEVolume):
            tickets = tuple(refreshed(ticket, ids) for ticket in volume.spec.tickets)
            if tickets != volume.spec.tickets and volume.metadata.deletion_timestamp is None:
                log.warning("a node's cards have changed; its ticket follows", extra={"volume": volume.metadata.name})
                # Not by apply: a ticket that was taken back since must not come back with it.
                self._store.update(replace(volume, spec=replace(volume.spec, tickets=tickets)))
        self._ids = ids


def unregistered(ids: Mapping[str, str], pods: Mapping[str, int], now_s: int) -> frozenset[str]:
    """Return the nodes whose node server had time enough to register and has not."""
    return frozenset(node for node, since_s in pods.items() if node not in ids and now_s - since_s > REGISTERED_AFTER_S)


def refreshed(ticket: Ticket, ids: Mapping[str, str]) -> Ticket:
    """Return a ticket with its node's present id if the cards in it differ.

    Another boot alone changes nothing: what a fenced boot had in flight is judged by the boot that was granted.
    """
    try:
        before, now = NodeIdentity.parse(ticket.node_id), NodeIdentity.parse(ids[ticket.node])
    except (KeyError, NotFound):
        return ticket
    if now.name != ticket.node or before.macs == now.macs:
        return ticket
    return replace(ticket, node_id=str(now))
