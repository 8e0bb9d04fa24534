"""A storage node's own resource: its settings out of the spec and its claims, and its status out of the engine."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from aoe_core.errors import AoECsiError, Unreachable
from aoe_core.model import NO_CAPACITY, Capacity, PoolName
from aoe_core.resources import conditions, events
from aoe_core.resources.events import Event, Events
from aoe_core.resources.fields import Progress, parse_quantity, quantity
from aoe_core.resources.node import (
    MAX_ORPHANS,
    MAX_WORK,
    AoENode,
    AoENodeStatus,
    Finding,
    Orphan,
    PoolStatus,
    SanStatus,
)
from aoe_core.resources.shelf import AoEShelf
from aoe_core.resources.store import Store
from aoe_core.settings import Exports, Pool, San, Settings
from aoe_core.volumes.inspection import Inspection
from aoe_core.volumes.jobs import Work
from aoe_operator import metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a look at the host comes to in the status of its AoENode; very many volumes make a large Inspection."""

    capacities: Mapping[PoolName, Capacity]
    volumes: int
    exports: int
    orphans: tuple[Orphan, ...]


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


def report(
    store: Store,
    to: Events,
    node: AoENode,
    *,
    contents: Callable[[], Contents],
    work: Iterable[Work],
    claims: Iterable[AoEShelf],
    boot: str,
    card: Callable[[str], SanStatus],
    findings: tuple[Finding, ...],
    unclaimed: tuple[Orphan, ...],
    now_s: int,
) -> AoENode:
    """Write what the node has, and lacks, into its status. `contents`: may raise what keeps volumes away from it.

    Raises: Busy, Unreachable.
    """
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
        status = _with_contents(status, node, contents(), work, unclaimed)
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


def contents_of(there: Inspection) -> Contents:
    """Return what a look at the host comes to."""
    return Contents(
        capacities=there.capacities,
        volumes=len(there.volumes),
        exports=sum(unit.serving for unit in there.units.values()),
        orphans=tuple(Orphan(kind=one.kind, name=one.name, fact=one.fact) for one in there.orphans[:MAX_ORPHANS]),
    )


def _with_contents(
    status: AoENodeStatus, node: AoENode, contents: Contents, work: Iterable[Work], unclaimed: tuple[Orphan, ...]
) -> AoENodeStatus:
    # A pool that the resource has only just named is unknown to this process, which ends for it.
    capacities = {pool.name: contents.capacities.get(PoolName(pool.name), NO_CAPACITY) for pool in node.spec.pools}
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
        volumes=contents.volumes,
        work=tuple(
            Progress(work=one.what[:256], percent=one.percent)
            for one in sorted(work, key=lambda one: one.key)[:MAX_WORK]
        ),
        exports=contents.exports,
        orphans=(*contents.orphans, *unclaimed)[:MAX_ORPHANS],
    )
