"""What is on this storage node, said for a person: every volume of ours, every export file, and what nobody wants.

Orphans are reported and never removed unasked: an unfinished volume may be some caller's next retry, and a logical
volume with our tag may hold the only copy of somebody's data. Pure: reports in, rows out.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from aoe_core.host.contracts import ExportUnit, LvmReport
from aoe_core.host.exports import ExportFile, ExportState
from aoe_core.model import Address, Capacity, PoolName, Snapshot, Volume, VolumeId, VolumeState, VolumeStatus
from aoe_core.settings import Settings
from aoe_core.volumes import pools, tags


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """Something of ours that nothing wants any more, with what to do about it."""

    kind: str
    name: str
    fact: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """One storage node at one moment."""

    volumes: tuple[Volume, ...]
    """Ready or not, with what is being deleted."""
    snapshots: tuple[Snapshot, ...]
    capacities: Mapping[PoolName, Capacity]
    """What each configured pool can still give out; one that cannot be used gives nothing."""
    exports: tuple[ExportFile, ...]
    units: Mapping[Address, ExportUnit]
    orphans: tuple[Orphan, ...]

    def ready(self) -> tuple[VolumeStatus, ...]:
        """Return every ready volume with its grants, ordered by id."""
        return ready_with_grants(self.volumes, self.exports)


def ready_with_grants(volumes: Iterable[Volume], exports: Iterable[ExportFile]) -> tuple[VolumeStatus, ...]:
    """Return the ready ones among volumes, each with its grants in force or half revoked, ordered by id."""
    by_volume: dict[VolumeId, list[ExportFile]] = {}
    for file in exports:
        if file.state is not ExportState.RESTING:
            by_volume.setdefault(file.volume_id, []).append(file)
    return tuple(
        VolumeStatus(volume=volume, grants=tuple(file.grant for file in by_volume.get(volume.volume_id, ())))
        for volume in sorted(volumes, key=lambda one: one.volume_id)
        if volume.state is VolumeState.READY
    )


def inspect(
    settings: Settings,
    report: LvmReport,
    exports: tuple[ExportFile, ...],
    units: Mapping[Address, ExportUnit],
    *,
    coming: Collection[VolumeId] = (),
) -> Inspection:
    """Return everything of ours on this machine. `coming`: the volumes that are being copied, which are not left over
    though they are not made yet."""
    by_place = {(pool.volume_group, pool.thin_pool): PoolName(pool.name) for pool in settings.pool}
    volumes: list[Volume] = []
    snapshots: list[Snapshot] = []
    orphans: list[Orphan] = []
    for lv in report.volumes:
        if not tags.is_ours(lv):
            continue
        pool = by_place.get((lv.vg, lv.thin_pool))
        volume = tags.read_volume(lv, pool) if pool else None
        snapshot = tags.read_snapshot(lv, pool) if pool and volume is None else None
        where = f"{lv.vg}/{lv.name}"
        if volume is not None:
            volumes.append(volume)
            if volume.state is VolumeState.NEW and volume.volume_id not in coming:
                orphans.append(Orphan(kind="volume", name=where, fact=_UNFINISHED))
        elif snapshot is not None:
            snapshots.append(snapshot)
        else:
            orphans.append(Orphan(kind="logical volume", name=where, fact=_UNREADABLE))
    orphans.extend(_export_orphans(volumes, exports, units))
    return Inspection(
        volumes=tuple(volumes),
        snapshots=tuple(snapshots),
        capacities={
            PoolName(pool.name): pools.capacity_of(pool, report, limit_bytes=settings.max_volume_bytes)
            for pool in settings.pool
        },
        exports=exports,
        units=units,
        orphans=tuple(orphans),
    )


_UNFINISHED = "its creation did not end; create it again by its name, or remove it with lvremove"
_UNREADABLE = "has our tag but belongs to no configured pool or lacks its other tags; see docs/runbooks.md"


def _export_orphans(
    volumes: Iterable[Volume], exports: Iterable[ExportFile], units: Mapping[Address, ExportUnit]
) -> Iterable[Orphan]:
    ready = {volume.volume_id for volume in volumes if volume.state is VolumeState.READY}
    live = set()
    for file in exports:
        if file.state is ExportState.RESTING:
            continue
        live.add(file.address)
        name = str(file.address) if file.address else file.name
        if file.volume_id not in ready:
            fact = f"volume {file.volume_id} is lost: granted to {file.node}, but not in LVM; bring its disks back"
            yield Orphan(kind="export", name=name, fact=fact)
        if file.state is ExportState.REVOKING:
            fact = f"volume {file.volume_id} is half revoked from {file.node}; unpublish it again"
            yield Orphan(kind="export", name=name, fact=fact)
    for address, unit in sorted(units.items()):
        if address not in live and (unit.active or unit.locked):
            yield Orphan(kind="export", name=str(address), fact="runs without a grant; restart the aoe-csi service")
