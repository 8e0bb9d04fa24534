"""LVM tags: how a logical volume says that it is ours, what it is and how far it got.

Tags never carry grants: every change rewrites the VG's metadata. LVs are named by the id they hold: `v-<id>` for a
volume, `s-<id>` for a snapshot (LVM reserves names that start with "snapshot"), `d-<n>-<id>` for what is being wiped.
"""

from aoe_core.host.contracts import LogicalVolume
from aoe_core.model import (
    Durability,
    FromSnapshot,
    FromVolume,
    PoolName,
    SanName,
    Snapshot,
    SnapshotId,
    Source,
    Volume,
    VolumeId,
    VolumeSpec,
    VolumeState,
    Wipe,
)

OURS = "aoe-csi"
_PREFIX = "aoe-csi."


def volume_lv_name(volume_id: VolumeId) -> str:
    """Return the LV name of a volume."""
    return f"v-{volume_id}"


def snapshot_lv_name(snapshot_id: SnapshotId) -> str:
    """Return the LV name of a snapshot."""
    return f"s-{snapshot_id}"


def is_ours(lv: LogicalVolume) -> bool:
    """Say whether an LV was made by this driver."""
    return OURS in lv.tags


def of_volume(spec: VolumeSpec, size_bytes: int, state: VolumeState, filesystem: str | None) -> frozenset[str]:
    """Return the tags of a volume."""
    tags = {
        OURS,
        _tag("id", spec.volume_id),
        _tag("size", str(size_bytes)),
        _tag("durability", spec.durability.value),
        _tag("wipe", spec.wipe.value),
        state_tag(state),
    }
    if spec.san:
        tags.add(_tag("san", spec.san))
    match spec.source:
        case FromSnapshot(snapshot_id=snapshot_id):
            tags.add(_tag("from-snapshot", snapshot_id))
        case FromVolume(volume_id=volume_id):
            tags.add(_tag("from-volume", volume_id))
        case None:
            pass
    if filesystem:
        tags.add(filesystem_tag(filesystem))
    return frozenset(tags)


def of_snapshot(snapshot_id: SnapshotId, source: VolumeId, size_bytes: int, filesystem: str | None) -> frozenset[str]:
    """Return the tags of a snapshot; it is ready in the one step that makes it."""
    tags = {
        OURS,
        _tag("id", snapshot_id),
        _tag("source", source),
        _tag("size", str(size_bytes)),
        state_tag(VolumeState.READY),
    }
    if filesystem:
        tags.add(filesystem_tag(filesystem))
    return frozenset(tags)


def state_tag(state: VolumeState) -> str:
    """Return the tag of a state."""
    return _tag("state", state.value)


def size_tag(size_bytes: int) -> str:
    """Return the tag of a requested size."""
    return _tag("size", str(size_bytes))


def growth_tag(from_bytes: int) -> str:
    """Return the tag of a growth under way: what lies behind these bytes may still show what a stranger left there."""
    return _tag("grown-from", str(from_bytes))


def filesystem_tag(filesystem: str) -> str:
    """Return the tag that says which file system was seen."""
    return _tag("fs", filesystem)


def read_volume(lv: LogicalVolume, pool: PoolName) -> Volume | None:
    """Return the volume an LV holds, or None when it is no volume of ours (or its tags are incomplete)."""
    values = _values(lv)
    try:
        if not is_ours(lv) or "source" in values:
            return None
        source: Source | None = None
        if "from-snapshot" in values:
            source = FromSnapshot(snapshot_id=SnapshotId(values["from-snapshot"]))
        elif "from-volume" in values:
            source = FromVolume(volume_id=VolumeId(values["from-volume"]))
        return Volume(
            volume_id=VolumeId(values["id"]),
            pool=pool,
            size_bytes=int(values["size"]),
            device_bytes=lv.size_bytes,
            state=VolumeState(values["state"]),
            durability=Durability(values["durability"]),
            wipe=Wipe(values["wipe"]),
            san=SanName(values["san"]) if "san" in values else None,
            source=source,
            filesystem=values.get("fs"),
            grown_from_bytes=int(values["grown-from"]) if "grown-from" in values else None,
        )
    except (KeyError, ValueError):
        return None


def read_snapshot(lv: LogicalVolume, pool: PoolName) -> Snapshot | None:
    """Return the snapshot an LV holds, or None when it is none of ours."""
    values = _values(lv)
    try:
        if not is_ours(lv) or "source" not in values:
            return None
        return Snapshot(
            snapshot_id=SnapshotId(values["id"]),
            source=VolumeId(values["source"]),
            pool=pool,
            size_bytes=int(values["size"]),
            created_s=lv.created_s,
            filesystem=values.get("fs"),
        )
    except (KeyError, ValueError):
        return None


def _tag(key: str, value: str) -> str:
    return f"{_PREFIX}{key}={value}"


def _values(lv: LogicalVolume) -> dict[str, str]:
    pairs = (tag.removeprefix(_PREFIX).partition("=") for tag in lv.tags if tag.startswith(_PREFIX))
    return {key: value for key, _, value in pairs}
