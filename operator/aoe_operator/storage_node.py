"""A storage node's own resource: its settings out of the spec, and its status out of the engine.

The claims to shelves are resources too (AoEShelf): a node may claim what its spec's ranges allow and nobody has.
"""

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from aoe_core.errors import AoECsiError, Conflict, NoSpace, Unreachable
from aoe_core.model import PoolName
from aoe_core.resources import conditions, events
from aoe_core.resources.events import Event, Events
from aoe_core.resources.fields import ObjectMeta, parse_quantity, quantity
from aoe_core.resources.node import MAX_ORPHANS, AoENode, AoENodeStatus, Finding, Orphan, PoolStatus, SanSpec, SanStatus
from aoe_core.resources.shelf import AoEShelf, AoEShelfSpec, shelf_name
from aoe_core.resources.store import Store
from aoe_core.settings import Exports, Pool, San, Settings
from aoe_core.volumes.engine import Engine
from aoe_operator import metrics


def settings_of(node: AoENode, claims: Iterable[AoEShelf]) -> Settings:
    """Return what the engine of this node is told: its spec, with the shelves it has claimed."""
    claimed = [claim.spec for claim in claims if claim.spec.node == node.metadata.name]
    return Settings(
        node=node.metadata.name,
        known_node=None,
        # The node server sees to the initiator of a machine that attaches as well.
        compute=False,
        san=tuple(
            San(
                name=san.name,
                interface=san.interface,
                shelves=tuple(sorted((claim.shelf, claim.shelf) for claim in claimed if claim.san == san.name)),
            )
            for san in node.spec.sans
        ),
        pool=tuple(
            Pool(
                name=pool.name,
                volume_group=pool.volume_group,
                thin_pool=pool.thin_pool or "",
                overprovision=pool.overprovision_percent / 100,
                spare_bytes=parse_quantity(pool.spare),
                thin_data_limit_percent=pool.thin_data_limit_percent,
                thin_metadata_limit_percent=pool.thin_metadata_limit_percent,
            )
            for pool in node.spec.pools
        ),
        exports=Exports(exporter=node.spec.exporter, buffers=node.spec.buffers, rest_s=node.spec.rest_seconds),
    )


def claim_shelf(store: Store, node: AoENode, san: SanSpec, system_id: str = "") -> AoEShelf:
    """Claim one more shelf of a SAN: the first of the ranges that nobody has. Raises: NoSpace, Unreachable."""
    taken = {claim.spec.shelf for claim in store.list(AoEShelf) if claim.spec.san == san.name}
    for shelf in (shelf for one in san.shelves for shelf in range(one.first, one.last + 1)):
        if shelf in taken or shelf == 4095:
            continue
        spec = AoEShelfSpec(san=san.name, shelf=shelf, node=node.metadata.name, system_id=system_id)
        try:
            return store.create(AoEShelf(metadata=ObjectMeta(name=shelf_name(san.name, shelf)), spec=spec))
        except Conflict:
            continue  # Somebody was faster.
    raise NoSpace(
        f"every shelf that AoENode {node.metadata.name} may claim on SAN {san.name} is claimed; widen its ranges"
    )


def ensure_claims(store: Store, node: AoENode) -> tuple[AoEShelf, ...]:
    """Return the node's claims, after seeing to one on each SAN. Raises: NoSpace, Unreachable."""
    claims = [claim for claim in store.list(AoEShelf) if claim.spec.node == node.metadata.name]
    for san in node.spec.sans:
        if not any(claim.spec.san == san.name for claim in claims):
            claims.append(claim_shelf(store, node, san))
    return tuple(claims)


def report(
    store: Store,
    to: Events,
    node: AoENode,
    engine: Engine,
    *,
    claims: Iterable[AoEShelf],
    boot: str,
    card: Callable[[str], SanStatus],
    findings: tuple[Finding, ...],
    unclaimed: tuple[Orphan, ...],
    now_s: int,
) -> AoENode:
    """Write what the node has, and lacks, into its status. Raises: Busy, Unreachable."""
    status = replace(
        node.status,
        observed_generation=node.metadata.generation,
        boot=boot,
        sans=tuple(
            replace(
                card(san.interface),
                name=san.name,
                shelves=tuple(sorted(claim.spec.shelf for claim in claims if claim.spec.san == san.name)),
            )
            for san in node.spec.sans
        ),
        findings=findings,
    )
    try:
        lacking = [one for one in findings if one.severity == "error"]
        if lacking:
            raise Unreachable("; ".join(f"{one.check}: {one.fact}; {one.remedy}" for one in lacking))
        status = _with_contents(status, node, engine, unclaimed)
    except AoECsiError as error:
        said = conditions.put_error(status.conditions, "Ready", error, generation=node.metadata.generation, now_s=now_s)
    else:
        said = conditions.put(
            status.conditions, "Ready", holds=True, reason="Done", message="volumes can be placed here",
            generation=node.metadata.generation, now_s=now_s,
        )  # fmt: skip
    status = replace(status, conditions=said)
    metrics.show_node(status)
    if status == node.status:
        return node
    written = store.update_status(replace(node, status=status))
    events.post_change(to, node, said)
    for event in _of_new_orphans(node.status, status):
        to.post(node, event)
    return written


def _of_new_orphans(before: AoENodeStatus, now: AoENodeStatus) -> tuple[Event, ...]:
    known = {(one.kind, one.name) for one in before.orphans}
    return tuple(
        Event(reason="Orphan", message=f"{one.kind} {one.name}: {one.fact}", is_warning=True)
        for one in now.orphans
        if (one.kind, one.name) not in known
    )


def _with_contents(
    status: AoENodeStatus, node: AoENode, engine: Engine, unclaimed: tuple[Orphan, ...]
) -> AoENodeStatus:
    inspection = engine.inspect()
    metrics.show_inspection(inspection)
    capacities = {pool.name: engine.capacity(PoolName(pool.name), None) for pool in node.spec.pools}
    return replace(
        status,
        pools=tuple(
            PoolStatus(
                name=pool.name,
                available=quantity(capacities[pool.name].available_bytes),
                largest_volume=quantity(capacities[pool.name].maximum_volume_bytes),
                snapshots=pool.thin_pool is not None,
            )
            for pool in node.spec.pools
        ),
        free=quantity(sum(capacity.available_bytes for capacity in capacities.values())),
        volumes=len(inspection.volumes),
        exports=sum(unit.serving for unit in inspection.units.values()),
        orphans=(
            *(Orphan(kind=one.kind, name=one.name, fact=one.fact) for one in inspection.orphans),
            *unclaimed,
        )[:MAX_ORPHANS],
    )
