"""Where a volume goes: `choose` is pure, nodes in, a name out; `place` writes it down.

The node with the most space left wins. What was placed and is not made yet counts as taken, so that a hundred claims at
once do not all go to the node that looked emptiest.
"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from msgspec.structs import replace

from aoe_core.errors import AoECsiError, NoSpace, Unreachable
from aoe_core.resources import conditions
from aoe_core.resources.fields import GROUP, parse_quantity
from aoe_core.resources.node import AoENode, PoolStatus
from aoe_core.resources.snapshot import AoESnapshot
from aoe_core.resources.store import Store
from aoe_core.resources.volume import AoEVolume

CHOSEN = f"{GROUP}/chosen-node"
"""Annotation of an AoEVolume: the node that was chosen for it. What a person wrote into spec.node stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A storage node that offers the pool on the SAN."""

    node: AoENode
    pool: PoolStatus | None
    promised_bytes: int

    @property
    def left_bytes(self) -> int:
        """What it can still give out of the pool."""
        return parse_quantity(self.pool.available) - self.promised_bytes if self.pool else 0

    def takes(self, size_bytes: int) -> bool:
        """Whether a volume of this size fits."""
        return (
            self.pool is not None
            and size_bytes <= parse_quantity(self.pool.largest_volume)
            and size_bytes <= self.left_bytes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """All nodes and all volumes, as they were when somebody looked."""

    nodes: tuple[AoENode, ...]
    volumes: tuple[AoEVolume, ...]


def choose(
    volume: AoEVolume,
    nodes: Iterable[AoENode],
    others: Iterable[AoEVolume],
    *,
    live: AbstractSet[str],
    source_node: str | None,
) -> str:
    """Return the storage node for a volume.

    Args: `others`: every other volume. `live`: nodes whose Lease is fresh. `source_node`: where the volume's source
    is, for a copy: it can be made there alone.
    Raises: NoSpace when no node has the room; Unreachable when those that may have it are away.
    """
    size_bytes, pool, san = parse_quantity(volume.spec.size), volume.spec.pool, volume.spec.san
    reach = {san} if san else set(volume.spec.reach)
    where = f" on SAN {' or '.join(sorted(reach))}" if reach else ""
    wanted = f"volume {volume.metadata.name}: pool {pool}{where}"
    offering = [
        node
        for node in nodes
        if not node.spec.decommissioned
        and any(one.name == pool for one in node.spec.pools)
        and (not reach or any(one.name in reach for one in node.spec.sans))
        and source_node in (None, node.metadata.name)
    ]
    if not offering:
        there = f" on {source_node}, where its source is," if source_node else ""
        raise NoSpace(f"{wanted} is offered{there} by no storage node; see kubectl get aoenodes -o yaml")
    promised = _promised(others, pool)
    usable = [
        Candidate(
            node=node,
            pool=next((one for one in node.status.pools if one.name == pool), None),
            promised_bytes=promised.get(node.metadata.name, 0),
        )
        for node in offering
        if node.metadata.name in live and is_ready(node) and not node.spec.unschedulable
    ]
    if not usable:
        names = ", ".join(sorted(node.metadata.name for node in offering))
        raise Unreachable(f"{wanted} is offered by {names}, and none of them is ready; see kubectl get aoenodes")
    fitting = [candidate for candidate in usable if candidate.takes(size_bytes)]
    if not fitting:
        room = "; ".join(
            f"{candidate.node.metadata.name} takes at most {_largest(candidate)}"
            for candidate in sorted(usable, key=lambda one: one.node.metadata.name)
        )
        raise NoSpace(f"{wanted} has no room for {volume.spec.size}: {room}; free some space, or add a disk")
    # By name when they are equal, so that two that decide at once decide the same.
    return min(fitting, key=lambda one: (-one.left_bytes, one.node.metadata.name)).node.metadata.name


def place(
    store: Store,
    volume: AoEVolume,
    looks: Iterable[Look],
    *,
    live: AbstractSet[str],
    now_s: int,
) -> AoEVolume:
    """Write down where a volume goes, or why nowhere; one that was accepted or is going is left alone.

    Args: `looks`: at least one; the next is taken when the one before refuses the volume.
    Safe beside another that does the same: the one that comes second finds the resource changed.
    Returns: the volume as it is now. Raises: Busy, Unreachable.
    """
    if not is_open(volume, live=live):
        return volume
    if volume.spec.node is not None and volume.metadata.annotations.get(CHOSEN) != volume.spec.node:
        waiting = Unreachable(
            f"volume {volume.metadata.name} is to be made on storage node {volume.spec.node}, which does not renew its"
            " Lease: bring it up, or delete the volume and make it without node"
        )
        return _say(store, volume, waiting, now_s)
    try:
        node = _choose_by(looks, volume, live=live, source_node=_source_node(store, volume))
    except AoECsiError as error:
        return _say(store, volume, error, now_s)
    return store.update(placed_on(volume, node))


def placed_on(volume: AoEVolume, node: str) -> AoEVolume:
    """Return a volume with the node that was chosen for it."""
    metadata = replace(volume.metadata, annotations={**volume.metadata.annotations, CHOSEN: node})
    return replace(volume, metadata=metadata, spec=replace(volume.spec, node=node))


def _choose_by(looks: Iterable[Look], volume: AoEVolume, *, live: AbstractSet[str], source_node: str | None) -> str:
    refused: AoECsiError | None = None
    for look in looks:
        others = [one for one in look.volumes if one.metadata.name != volume.metadata.name]
        try:
            return choose(volume, look.nodes, others, live=live, source_node=source_node)
        except AoECsiError as error:
            refused = error
    assert refused is not None
    raise refused


def is_open(volume: AoEVolume, *, live: AbstractSet[str]) -> bool:
    """Say whether there is anything to decide: nobody has taken it on, and nobody who lives was asked to."""
    if volume.status.node is not None or volume.metadata.deletion_timestamp is not None:
        return False
    return volume.spec.node is None or volume.spec.node not in live


def _say(store: Store, volume: AoEVolume, error: AoECsiError, now_s: int) -> AoEVolume:
    said = conditions.put_error(
        volume.status.conditions, "Placed", error, generation=volume.metadata.generation, now_s=now_s
    )
    if said == volume.status.conditions:
        return volume
    return store.update_status(replace(volume, status=replace(volume.status, conditions=said)))


def _source_node(store: Store, volume: AoEVolume) -> str | None:
    source = volume.spec.source
    if source is None:
        return None
    if source.snapshot is not None:
        return store.get(AoESnapshot, source.snapshot).spec.node
    assert source.volume is not None
    return store.get(AoEVolume, source.volume).spec.node


def _promised(others: Iterable[AoEVolume], pool: str) -> dict[str, int]:
    promised: dict[str, int] = {}
    for other in others:
        if other.spec.node and other.spec.pool == pool and _is_to_come(other):
            promised[other.spec.node] = promised.get(other.spec.node, 0) + parse_quantity(other.spec.size)
    return promised


def _is_to_come(volume: AoEVolume) -> bool:
    """Whether a volume's space is still in what its node says is available, as far as anybody can tell."""
    if volume.status.node is None:
        return True
    refused = conditions.find(volume.status.conditions, "Ready")
    return volume.status.phase == "Creating" and volume.status.progress is None and refused is None


def is_ready(node: AoENode) -> bool:
    """Say whether a node says it takes volumes, and nobody has found it silent since."""
    ready = conditions.find(node.status.conditions, "Ready")
    live = conditions.find(node.status.conditions, "Live")
    return ready is not None and ready.status == "True" and (live is None or live.status == "True")


def live_names(nodes: Iterable[AoENode]) -> frozenset[str]:
    """Return the nodes that the cluster role says are alive: for who does not watch their Leases himself."""
    said = ((node.metadata.name, conditions.find(node.status.conditions, "Live")) for node in nodes)
    return frozenset(name for name, live in said if live is not None and live.status == "True")


def _largest(candidate: Candidate) -> str:
    return candidate.pool.largest_volume if candidate.pool else "nothing"
