"""What to do, from what is asked and what is found. Pure: values in, actions out, errors of the one tree.

The order of actions is the crash safety: a volume that one command does not make whole is tagged `new` when it is made
and `ready` last; a deletion commits by tag and rename before anything is wiped; an export file is written before its
unit starts, and says `revoking` before it stops.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from aoe_core.errors import Conflict, InUse, NotFound, OutOfRange, Unsupported
from aoe_core.host.contracts import LogicalVolume, LvKind
from aoe_core.host.exports import UNKNOWN_BOOT, UNSTARTED_BYTES, ExportFile, ExportState, Former
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
    spec: VolumeSpec,
    pool: PoolView,
    source: Volume | Snapshot | None,
    source_lv: LogicalVolume | None,
    *,
    left: LogicalVolume | None = None,
) -> tuple[Action, ...]:
    """Return what makes a volume that is not ready yet: from nothing, or from `left`, a `new` one of the same request.

    A single action where LVM makes all of it in one command.

    Raises: OutOfRange, NoSpace, Unsupported, Conflict when a logical volume of its name is nobody's we know.
    """
    name = tags.volume_lv_name(spec.volume_id)
    size_bytes = pool.device_bytes(spec.size_bytes)
    if source is not None and spec.size_bytes < source.size_bytes:
        raise OutOfRange(
            f"volume {spec.volume_id} asks for {format_bytes(spec.size_bytes)}, less than its source's "
            f"{format_bytes(source.size_bytes)}; ask for at least that"
        )
    filesystem = source.filesystem if source is not None else None
    path = f"/dev/{pool.vg}/{name}"
    if left is None and pool.is_taken(name):
        raise Conflict(
            f"volume {spec.volume_id} cannot be made: logical volume {pool.vg}/{name} is there and is not one of this "
            "driver's; rename it or move it away"
        )
    thin_copy = pool.thin is not None and source_lv is not None
    present_bytes = left.size_bytes if left else (source_lv.size_bytes if thin_copy and source_lv else size_bytes)
    # A thin volume has nothing to zero: unless a copy of it has to grow, it is whole once LVM has it, and need not be
    # changed again. Changes of a volume group take turns, so a crowd of volumes takes half the time.
    whole = left is None and pool.thin is not None and present_bytes >= size_bytes
    state = VolumeState.READY if whole else VolumeState.NEW
    made = tags.of_volume(spec, spec.size_bytes, state, filesystem)
    actions: list[Action] = []
    if left is None:
        require_room(pool, size_bytes, f"volume {spec.volume_id}")
        if thin_copy and source_lv is not None:
            actions.append(SnapshotLv(vg=pool.vg, origin=source_lv.name, name=name, tags=made, writable=True))
        else:
            thin_pool = pool.pool.thin_pool
            actions.append(CreateLv(vg=pool.vg, name=name, size_bytes=size_bytes, tags=made, thin_pool=thin_pool))
    elif not left.active:
        actions.append(ActivateLv(vg=pool.vg, name=name))
    if whole:
        return tuple(actions)
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
    names: Iterable[str],
) -> tuple[Action, ...]:
    """Return what frees a volume's name: a thin LV is removed in one step, a thick one tagged, then renamed.

    `exports`: the volume's live or revoking exports; `names`: all LV names. Raises: InUse naming the holders.
    """
    if exports:
        nodes = ", ".join(sorted({file.node for file in exports}))
        raise InUse(f"volume {volume.volume_id} is published to {nodes}; unpublish it there first")
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
    grown_from_bytes = volume.grown_from_bytes
    actions: list[Action] = []
    if device_bytes > lv.size_bytes:
        require_room(pool, device_bytes - lv.size_bytes, f"volume {volume.volume_id}")
        if pool.thin is None and grown_from_bytes is None and not exports:
            grown_from_bytes = lv.size_bytes
            actions.append(_retag(lv, add=frozenset({tags.growth_tag(grown_from_bytes)})))
        actions.append(ExtendLv(vg=lv.vg, name=lv.name, size_bytes=device_bytes))
    if pool.thin is None:
        # While a volume is exported only what this very plan adds is zeroed: what a plan that was cut short had added
        # may have been served since, by an exporter that started anew, and be in use.
        clean_bytes = lv.size_bytes if exports or grown_from_bytes is None else grown_from_bytes
        actions.extend(_zero_growth(lv.path, clean_bytes, device_bytes))
    add, remove = set[str](), set[str]()
    if size_bytes > volume.size_bytes:
        add.add(tags.size_tag(size_bytes))
        remove.add(tags.size_tag(volume.size_bytes))
    if grown_from_bytes is not None:
        remove.add(tags.growth_tag(grown_from_bytes))
    if add or remove:
        actions.append(_retag(lv, add=frozenset(add), remove=frozenset(remove)))
    for file in exports:
        if file.state is ExportState.LIVE and file.address is not None and file.size_bytes != device_bytes:
            # The file's size is written last: it says what the running exporter knows.
            actions.append(RestartExport(address=file.address))
            actions.append(PutExport(file=replace(file, size_bytes=device_bytes)))
    return tuple(actions)


def plan_end_growth(volume: Volume, lv: LogicalVolume) -> tuple[Action, ...]:
    """Return what brings a growth to its end that was cut short while nobody had the volume: whoever is granted it next
    uses what was added."""
    if volume.grown_from_bytes is None:
        return ()
    return (
        *_zero_growth(lv.path, volume.grown_from_bytes, lv.size_bytes),
        _retag(lv, remove=frozenset({tags.growth_tag(volume.grown_from_bytes)})),
    )


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


def plan_publish(file: ExportFile) -> tuple[Action, ...]:
    """Return what puts a new grant in force: the file first, then the unit (none for same-host use)."""
    if file.address is None:
        return (PutExport(file=file),)
    return (PutExport(file=file), StartExport(address=file.address))


def plan_refresh(file: ExportFile) -> tuple[Action, ...]:
    """Return what makes a running export do as its changed file says. Its size says what the exporter last started
    with, so it is none until that has started anew: whatever cuts this short, the next call sees that it was cut."""
    assert file.address is not None
    return (
        PutExport(file=replace(file, size_bytes=UNSTARTED_BYTES)),
        RestartExport(address=file.address),
        PutExport(file=file),
    )


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
        f"{format_bytes(limit_bytes)}; ask for less, or raise max_volume_bytes where it has a configuration file"
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


def _zero_growth(path: str, from_bytes: int, size_bytes: int) -> Iterable[Action]:
    """Zero the end of what a thick volume has grown by: where signatures are looked for that a stranger left."""
    start_bytes = max(from_bytes, size_bytes - ENDS_BYTES)
    if start_bytes < size_bytes:
        yield ZeroRange(path=path, offset_bytes=start_bytes, length_bytes=size_bytes - start_bytes)


def _retag(lv: LogicalVolume, *, add: frozenset[str] = frozenset(), remove: frozenset[str] = frozenset()) -> RetagLv:
    return RetagLv(vg=lv.vg, name=lv.name, add=add, remove=remove)


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
