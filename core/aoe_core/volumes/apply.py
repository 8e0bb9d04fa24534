"""Doing what was planned, one action after the other. Dull on purpose: no decision is taken here.

Once one action is done, a failure of a later one is no longer final: an orchestrator that took it for final would leave
what was made behind. So it is raised as Unfinished, and the same call again carries on.
"""

from collections.abc import Callable, Iterable

from aoe_core.errors import AoECsiError, Busy, Unfinished, Unreachable
from aoe_core.volumes.actions import (
    Action,
    ActivateLv,
    CopyRange,
    CreateLv,
    DropExport,
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
from aoe_core.volumes.host import StorageHost


def apply(host: StorageHost, actions: Iterable[Action], progress: Callable[[Action], None] | None = None) -> None:
    """Do the actions in order, calling `progress` after each. Stops at the first error.

    Raises: the host's own error when nothing was changed before it; else Unfinished, Busy or Unreachable.
    """
    for done, action in enumerate(actions):
        try:
            _apply_one(host, action)
        except (Busy, Unfinished, Unreachable):
            raise
        except AoECsiError as error:
            if done == 0:
                raise
            raise Unfinished(f"stopped after {done} of its steps: {error}") from error
        if progress is not None:
            progress(action)


def _apply_one(host: StorageHost, action: Action) -> None:
    match action:
        case CreateLv():
            host.lvm.create(action.vg, action.name, action.size_bytes, action.tags, action.thin_pool)
        case SnapshotLv():
            host.lvm.snapshot(action.vg, action.origin, action.name, action.tags, writable=action.writable)
        case RetagLv():
            host.lvm.retag(action.vg, action.name, add=action.add, remove=action.remove)
        case ExtendLv():
            host.lvm.extend(action.vg, action.name, action.size_bytes)
        case RenameLv():
            host.lvm.rename(action.vg, action.name, action.new_name)
        case ActivateLv():
            host.lvm.activate(action.vg, action.name, on=True)
        case RemoveLv():
            host.lvm.remove(action.vg, action.name)
        case ZeroRange():
            host.blocks.zero(action.path, action.offset_bytes, action.length_bytes, discard=action.discard)
        case CopyRange():
            host.blocks.copy(action.source, action.target, action.offset_bytes, action.length_bytes)
        case PutExport():
            host.export_files.put(action.file)
        case DropExport():
            host.export_files.drop(action.file)
        case StartExport():
            host.export_units.start(action.address)
        case RestartExport():
            host.export_units.restart(action.address)
        case StopExport():
            host.export_units.stop(action.address)
            state = host.export_units.states().get(action.address)
            if state is not None and (state.active or state.locked):
                raise Unfinished(
                    f"export {action.address} was told to stop and still has a process, perhaps stuck in the kernel; "
                    "try again, and look at this host's disks if it stays"
                )
