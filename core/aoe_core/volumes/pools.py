"""Pools: what the configuration names, seen in LVM's report. Pure."""

from dataclasses import dataclass, replace

from aoe_core import settings
from aoe_core.errors import NoSpace, Unreachable
from aoe_core.host.contracts import LogicalVolume, LvKind, LvmReport, VolumeGroup
from aoe_core.model import NO_CAPACITY, Capacity, PoolName
from aoe_core.units import format_bytes, round_up


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """One pool as LVM shows it now, proven usable."""

    pool: settings.Pool
    group: VolumeGroup
    thin: LogicalVolume | None
    """The thin pool LV, or None for a thick pool."""
    members: tuple[LogicalVolume, ...]
    """Every LV in the pool, ours or not."""
    names: frozenset[str]
    """The names of all LVs of the volume group, in whatever pool."""

    @property
    def name(self) -> PoolName:
        """The pool's name."""
        return PoolName(self.pool.name)

    @property
    def vg(self) -> str:
        """The volume group's name."""
        return self.group.name

    def device_bytes(self, size_bytes: int) -> int:
        """Return the LV size that holds `size_bytes`: whole extents."""
        return round_up(max(size_bytes, 1), self.group.extent_bytes)

    def is_taken(self, lv_name: str) -> bool:
        """Say whether the volume group has an LV of a name."""
        return lv_name in self.names


def find_problem(pool: settings.Pool, report: LvmReport) -> str | None:
    """Say in one sentence why a pool cannot be used, with the remedy; None when it can."""
    group = next((one for one in report.groups if one.name == pool.volume_group), None)
    vg = pool.volume_group
    if group is None:
        return f"volume group {vg} does not exist here; create it with vgcreate, or attach its disks"
    if group.exported:
        return f"volume group {vg} is exported; run vgimport {vg}"
    if group.foreign:
        return f"volume group {vg} belongs to host {group.system_id!r}; see lvmsystemid(7) to move it"
    if not group.system_id:
        return f"volume group {vg} has no system ID, so another host could write to it; run aoe-csi prepare-host"
    if group.partial:
        return f"volume group {vg} misses a physical volume; bring the disk back or repair it with vgreduce"
    if not group.writable:
        return f"volume group {vg} is read-only (vgs -o vg_permissions); make it writable first"
    if pool.thin_pool:
        thin = _thin_pool(pool, report)
        if thin is None:
            return f"thin pool {vg}/{pool.thin_pool} does not exist; create it with lvcreate --type thin-pool"
        if thin.kind is not LvKind.THIN_POOL:
            return f"{vg}/{pool.thin_pool} is no thin pool; name one in the configuration"
        if not thin.zeroing:
            return (
                f"thin pool {vg}/{pool.thin_pool} does not zero new blocks; run lvchange --zero y {vg}/{pool.thin_pool}"
            )
    return None


def is_in_sight(pool: settings.Pool, report: LvmReport) -> bool:
    """Say whether LVM shows what the pool holds; a pool that cannot be used may still be in sight."""
    group = next((one for one in report.groups if one.name == pool.volume_group), None)
    if group is None or group.foreign:
        return False
    return not pool.thin_pool or _thin_pool(pool, report) is not None


def view(pool: settings.Pool, report: LvmReport) -> PoolView:
    """Return a pool that can be used. Raises: Unreachable saying why it cannot."""
    problem = find_problem(pool, report)
    if problem is not None:
        raise Unreachable(f"pool {pool.name!r} cannot be used: {problem}")
    group = next(one for one in report.groups if one.name == pool.volume_group)
    thin = _thin_pool(pool, report) if pool.thin_pool else None
    in_group = [lv for lv in report.volumes if lv.vg == group.name]
    members = tuple(
        lv
        for lv in in_group
        if (lv.kind is LvKind.THIN and lv.thin_pool == pool.thin_pool if thin else lv.kind is LvKind.THICK)
    )
    names = frozenset(lv.name for lv in in_group)
    return PoolView(pool=pool, group=group, thin=thin, members=members, names=names)


def capacity(pool: PoolView) -> Capacity:
    """Return what a pool can still give out; of a thin pool, what it may still promise."""
    if pool.thin is None:
        free_bytes = pool.group.free_bytes - pool.pool.spare_bytes
    elif thin_limit_reached(pool):
        free_bytes = 0
    else:
        promised_bytes = sum(lv.size_bytes for lv in pool.members)
        free_bytes = int(pool.thin.size_bytes * pool.pool.overprovision) - promised_bytes - pool.pool.spare_bytes
    free_bytes = max(0, free_bytes) // pool.group.extent_bytes * pool.group.extent_bytes
    return Capacity(available_bytes=free_bytes, maximum_volume_bytes=free_bytes)


def capacity_of(pool: settings.Pool, report: LvmReport, *, limit_bytes: int) -> Capacity:
    """Return the same of a configured pool, which may be one that cannot be used: that gives nothing."""
    try:
        free = capacity(view(pool, report))
    except Unreachable:
        return NO_CAPACITY
    return replace(free, maximum_volume_bytes=min(free.maximum_volume_bytes, limit_bytes))


def thin_limit_reached(pool: PoolView) -> str | None:
    """Say which threshold a thin pool has passed, None when none."""
    if pool.thin is None:
        return None
    if pool.thin.data_percent > pool.pool.thin_data_limit_percent:
        return f"{pool.thin.data_percent:.0f} % of its data space is used"
    if pool.thin.metadata_percent > pool.pool.thin_metadata_limit_percent:
        return f"{pool.thin.metadata_percent:.0f} % of its metadata space is used"
    return None


def require_room(pool: PoolView, needed_bytes: int, what: str) -> None:
    """Check that a pool can still give `needed_bytes`. Raises: NoSpace with the figures."""
    passed = thin_limit_reached(pool)
    if passed:
        raise NoSpace(f"pool {pool.name!r} has no room for {what}: {passed}; extend {pool.vg}/{pool.pool.thin_pool}")
    available_bytes = capacity(pool).available_bytes
    if needed_bytes > available_bytes:
        raise NoSpace(
            f"pool {pool.name!r} has no room for {what}: {format_bytes(needed_bytes)} needed, "
            f"{format_bytes(available_bytes)} available; delete volumes or extend {pool.vg}"
        )


def _thin_pool(pool: settings.Pool, report: LvmReport) -> LogicalVolume | None:
    return next((lv for lv in report.volumes if lv.vg == pool.volume_group and lv.name == pool.thin_pool), None)
