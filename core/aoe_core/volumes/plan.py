"""What to do, from what is asked and what is found. Pure: values in, actions out, errors of the one tree.

The order of actions is the crash safety: a volume is tagged `new` when it is made and `ready` last; a deletion commits
by tag and rename before anything is wiped; an export file is written before its unit starts, and says `revoking`
before it stops.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from aoe_core.errors import Busy, Conflict, InUse, NotFound, OutOfRange, Unsupported
from aoe_core.host.contracts import LogicalVolume, LvKind
from aoe_core.host.exports import UNKNOWN_BOOT, ExportFile, ExportState, Former
from aoe_core.model import (
    FromSnapshot,
    FromVolume,
    Snapshot,
    SnapshotId,
    Volume,
    VolumeId,
    VolumeSpec,
    VolumeState,
    Wipe,
)
from aoe_core.units import MIB, format_bytes
from aoe_core.volumes import tags
from aoe_core.volumes.actions import (
    Action,
    ActivateLv,
    CopyRange,
    CreateLv,
    ExtendLv,
    PutExport,
    RemoveLv,
    RenameLv,
    RestartExport,
    RetagLv,
    SnapshotLv,
    StartExport,
    StopExport,
    ZeroRange,
)
from aoe_core.volumes.pools import PoolView, require_room

ENDS_BYTES = MIB
"""How much of each end of a new volume is zeroed: where every file system, LVM and RAID keeps its signatures."""

STEP_BYTES = 64 * MIB
"""How much is copied or wiped between two looks at the clock; also the grain of progress."""

# --- volumes ----------------------------------------------------------------------------------------------------


def require_same(volume: Volume, spec: VolumeSpec) -> None:
    """Check that an existing volume is what a repeated request asks for. Raises: Conflict naming what differs."""
    differences = [
        f"{name} is {have}, not {want}"
        for name, have, want in (
            ("its pool", volume.pool, spec.pool),
            ("its durability", volume.durability.value, spec.durability.value),
            ("its wipe", volume.wipe.value, spec.wipe.value),
            ("its SAN", volume.san or "any", spec.san or "any"),
            ("its source", source_words(volume.source), source_words(spec.source)),
        )
        if have != want
    ]
    if volume.size_bytes < spec.size_bytes:
        differences.append(f"its size is {format_bytes(volume.size_bytes)}, less than {format_bytes(spec.size_bytes)}")
    if spec.limit_bytes and volume.size_bytes > spec.limit_bytes:
        differences.append(f"its size is {format_bytes(volume.size_bytes)}, over {format_bytes(spec.limit_bytes)}")
    if differences:
        raise Conflict(f"volume {spec.volume_id} exists and {' and '.join(differences)}; choose another name")


def plan_create(
    spec: VolumeSpec, pool: PoolView, source: Volume | Snapshot | None, source_lv: LogicalVolume | None
) -> tuple[Action, ...]:
    """Return what makes a volume that is not ready yet: from nothing, or from a `new` one left by a crash.

    Raises: OutOfRange, NoSpace, Unsupported.
    """
    name = tags.volume_lv_name(spec.volume_id)
    size_bytes = pool.device_bytes(spec.size_bytes)
    if source is not None and spec.size_bytes < source.size_bytes:
        raise OutOfRange(
            f"volume {spec.volume_id} asks for {format_bytes(spec.size_bytes)}, less than its source's "
            f"{format_bytes(source.size_bytes)}; ask for at least that"
        )
    filesystem = source.filesystem if source is not None else None
    new = tags.of_volume(spec, spec.size_bytes, VolumeState.NEW, filesystem)
    path = f"/dev/{pool.vg}/{name}"
    left = pool.find(name)
    thin_copy = pool.thin is not None and source_lv is not None
    actions: list[Action] = []
    if left is None:
        require_room(pool, size_bytes, f"volume {spec.volume_id}")
        if thin_copy and source_lv is not None:
            actions.append(SnapshotLv(vg=pool.vg, origin=source_lv.name, name=name, tags=new, writable=True))
        else:
            thin_pool = pool.pool.thin_pool
            actions.append(CreateLv(vg=pool.vg, name=name, size_bytes=size_bytes, tags=new, thin_pool=thin_pool))
    elif not left.active:
        actions.append(ActivateLv(vg=pool.vg, name=name))
    present_bytes = left.size_bytes if left else (source_lv.size_bytes if thin_copy and source_lv else size_bytes)
    if present_bytes < size_bytes:
        actions.append(ExtendLv(vg=pool.vg, name=name, size_bytes=size_bytes))
    if pool.thin is None:
        copied_bytes = 0
        if source_lv is not None:
            copied_bytes = min(source_lv.size_bytes, size_bytes)
            actions.extend(_copy(source_lv.path, path, copied_bytes))
        # What lies beyond a copy, or a blank volume's ends, must not show what a former owner left there.
        actions.extend(_zero_ends(path, copied_bytes, size_bytes))
    actions.append(
        RetagLv(
            vg=pool.vg,
            name=name,
            add=frozenset({tags.state_tag(VolumeState.READY)}),
            remove=frozenset({tags.state_tag(VolumeState.NEW)}),
        )
    )
    return tuple(actions)


def plan_delete(
    volume: Volume,
    lv: LogicalVolume,
    exports: Sequence[ExportFile],
    copies: Sequence[Volume],
    names: Iterable[str],
) -> tuple[Action, ...]:
    """Return what frees a volume's name: a thin LV is removed in one step, a thick one tagged, then renamed.

    `exports`: the volume's live or revoking exports; `copies`: volumes being copied from it; `names`: all LV names.
    Raises: InUse naming the holders, Busy.
    """
    if exports:
        nodes = ", ".join(sorted({file.node for file in exports}))
        raise InUse(f"volume {volume.volume_id} is published to {nodes}; unpublish it there first")
    if copies:
        raise Busy(f"volume {volume.volume_id} is being copied to {copies[0].volume_id}; wait for that to end")
    if lv.kind is LvKind.THIN:
        return (RemoveLv(vg=lv.vg, name=lv.name),)
    actions: list[Action] = []
    if volume.state is not VolumeState.DELETING:
        actions.append(
            RetagLv(
                vg=lv.vg,
                name=lv.name,
                add=frozenset({tags.state_tag(VolumeState.DELETING)}),
                remove=frozenset({tags.state_tag(volume.state)}),
            )
        )
    if not lv.name.startswith("d-"):
        actions.append(RenameLv(vg=lv.vg, name=lv.name, new_name=_deleted_name(volume.volume_id, set(names))))
    return tuple(actions)


def plan_wipe(volume: Volume, lv: LogicalVolume) -> tuple[Action, ...]:
    """Return what makes a deleted thick volume unreadable and then frees its space."""
    actions: list[Action] = [] if lv.active else [ActivateLv(vg=lv.vg, name=lv.name)]
    discard = volume.wipe is Wipe.DISCARD_AND_ZERO
    actions.extend(
        ZeroRange(path=lv.path, offset_bytes=at, length_bytes=min(STEP_BYTES, lv.size_bytes - at), discard=discard)
        for at in range(0, lv.size_bytes, STEP_BYTES)
    )
    actions.append(RemoveLv(vg=lv.vg, name=lv.name))
    return tuple(actions)


def plan_expand(
    volume: Volume,
    lv: LogicalVolume,
    pool: PoolView,
    *,
    size_bytes: int,
    limit_bytes: int,
    exports: Sequence[ExportFile],
) -> tuple[Action, ...]:
    """Return what grows a volume to at least `size_bytes` and lets its exports see it. An enough large volume only
    gets the exports restarted that started smaller (a crash may have come between).

    Raises: OutOfRange, NoSpace.
    """
    if limit_bytes and volume.size_bytes > limit_bytes:
        raise OutOfRange(
            f"volume {volume.volume_id} has {format_bytes(volume.size_bytes)}, over the limit of "
            f"{format_bytes(limit_bytes)}; volumes cannot shrink"
        )
    device_bytes = max(lv.size_bytes, pool.device_bytes(size_bytes))
    actions: list[Action] = []
    if device_bytes > lv.size_bytes:
        require_room(pool, device_bytes - lv.size_bytes, f"volume {volume.volume_id}")
        actions.append(ExtendLv(vg=lv.vg, name=lv.name, size_bytes=device_bytes))
    if size_bytes > volume.size_bytes:
        if pool.thin is None:
            # The new end may show what a former owner of the extents left there. The size's tag, written next, says
            # that this is done; until then nobody was promised the new part.
            start_bytes = max(pool.device_bytes(volume.size_bytes), device_bytes - ENDS_BYTES)
            if start_bytes < device_bytes:
                length_bytes = device_bytes - start_bytes
                actions.append(ZeroRange(path=lv.path, offset_bytes=start_bytes, length_bytes=length_bytes))
        actions.append(
            RetagLv(
                vg=lv.vg,
                name=lv.name,
                add=frozenset({tags.size_tag(size_bytes)}),
                remove=frozenset({tags.size_tag(volume.size_bytes)}),
            )
        )
    for file in exports:
        if file.state is ExportState.LIVE and file.address is not None and file.size_bytes != device_bytes:
            # The file's size is written last: it says what the running exporter knows.
            actions.append(RestartExport(address=file.address))
            actions.append(PutExport(file=replace(file, size_bytes=device_bytes)))
    return tuple(actions)


# --- snapshots --------------------------------------------------------------------------------------------------


def plan_snapshot(
    snapshot_id: SnapshotId, source: Volume, lv: LogicalVolume, pool: PoolView, filesystem: str | None
) -> tuple[Action, ...]:
    """Return what takes a snapshot. Raises: Unsupported (thick pool), NoSpace."""
    if lv.kind is not LvKind.THIN:
        raise Unsupported(
            f"volume {source.volume_id} lies in thick pool {source.pool!r}, which has no snapshots; use a thin pool"
        )
    require_room(pool, lv.size_bytes, f"snapshot {snapshot_id}")
    return (
        SnapshotLv(
            vg=lv.vg,
            origin=lv.name,
            name=tags.snapshot_lv_name(snapshot_id),
            tags=tags.of_snapshot(snapshot_id, source.volume_id, source.size_bytes, filesystem),
            writable=False,
        ),
    )


def plan_delete_snapshot(lv: LogicalVolume) -> tuple[Action, ...]:
    """Return what removes a snapshot: thin, so one step, and nothing of it is left to read."""
    return (RemoveLv(vg=lv.vg, name=lv.name),)


# --- grants -----------------------------------------------------------------------------------------------------


def plan_publish(file: ExportFile, *, restart: bool) -> tuple[Action, ...]:
    """Return what puts a grant in force: the file first, then the unit (none for same-host use)."""
    actions: list[Action] = [PutExport(file=file)]
    if file.address is not None:
        actions.append(RestartExport(address=file.address) if restart else StartExport(address=file.address))
    return tuple(actions)


def plan_revoke(file: ExportFile, now_s: int) -> tuple[Action, ...]:
    """Return what revokes an exported grant; needs nothing from the node that held it."""
    if file.address is None:
        raise InUse(f"volume {file.volume_id} is used on this machine itself; that grant has no export to revoke")
    former = (*file.former, Former(node=file.node, boot=UNKNOWN_BOOT, revoked_s=now_s))
    actions: list[Action] = []
    if file.state is ExportState.LIVE:
        actions.append(PutExport(file=replace(file, state=ExportState.REVOKING)))
    actions.append(StopExport(address=file.address))
    actions.append(PutExport(file=replace(file, state=ExportState.RESTING, former=former)))
    return tuple(actions)


# --- parts ------------------------------------------------------------------------------------------------------


def source_words(source: FromSnapshot | FromVolume | None) -> str:
    """Return a source as a sentence names it."""
    match source:
        case FromSnapshot(snapshot_id=snapshot_id):
            return f"snapshot {snapshot_id}"
        case FromVolume(volume_id=volume_id):
            return f"volume {volume_id}"
        case None:
            return "none"


def too_large(volume_id: VolumeId, size_bytes: int, limit_bytes: int) -> OutOfRange:
    """Return the refusal of a size over the configured limit."""
    return OutOfRange(
        f"volume {volume_id} asks for {format_bytes(size_bytes)}, over this machine's limit of "
        f"{format_bytes(limit_bytes)}; ask for less, or raise max_volume_bytes"
    )


def _copy(source: str, target: str, length_bytes: int) -> Iterable[Action]:
    for at in range(0, length_bytes, STEP_BYTES):
        yield CopyRange(source=source, target=target, offset_bytes=at, length_bytes=min(STEP_BYTES, length_bytes - at))


def _zero_ends(path: str, start_bytes: int, size_bytes: int) -> Iterable[Action]:
    """Zero the first and last MiB of [start, size); all of it after a copy, whose tail a file system will grow into."""
    rest_bytes = size_bytes - start_bytes
    if rest_bytes <= 0:
        return
    if start_bytes or rest_bytes <= 2 * ENDS_BYTES:
        for at in range(start_bytes, size_bytes, STEP_BYTES):
            yield ZeroRange(path=path, offset_bytes=at, length_bytes=min(STEP_BYTES, size_bytes - at))
        return
    yield ZeroRange(path=path, offset_bytes=0, length_bytes=ENDS_BYTES)
    yield ZeroRange(path=path, offset_bytes=size_bytes - ENDS_BYTES, length_bytes=ENDS_BYTES)


def _deleted_name(volume_id: VolumeId, names: set[str]) -> str:
    number = 0
    while f"d-{number}-{volume_id}" in names:
        number += 1
    return f"d-{number}-{volume_id}"


def require_found(volume: Volume | None, volume_id: VolumeId) -> Volume:
    """Return a ready volume. Raises: NotFound."""
    if volume is None or volume.state is not VolumeState.READY:
        raise NotFound(f"volume {volume_id} does not exist on this machine")
    return volume
