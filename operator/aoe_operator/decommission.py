"""A storage node that is gone for good, and its disks with it: what `decommissioned: true` does to what was there.

Nobody else can say that data is lost, so this is done on an administrator's word alone, and never while the node shows
signs of life. Its shelves stay claimed: compute nodes may still hold devices of its addresses.
"""

from msgspec.structs import replace

from aoe_core.errors import Busy
from aoe_core.resources import conditions, events
from aoe_core.resources.events import Events
from aoe_core.resources.leases import Liveness
from aoe_core.resources.node import AoENode
from aoe_core.resources.snapshot import AoESnapshot
from aoe_core.resources.store import Store
from aoe_core.resources.volume import AoEVolume
from aoe_operator import finalizer

_AGAIN_S = 5.0


def give_up(store: Store, to: Events, node: AoENode, liveness: Liveness, now_s: int) -> float | None:
    """Count what is on a decommissioned node as lost, and let go of what was deleted.

    Returns: when to look again, None when nothing of it is left. Raises: Busy, Unreachable.
    """
    name = node.metadata.name
    if not liveness.is_gone(name):
        _say(store, to, node, now_s, done=False, message=_why_not(name, liveness))
        return _AGAIN_S
    volumes = [one for one in store.list(AoEVolume) if _is_there(one, name)]
    snapshots = [one for one in store.list(AoESnapshot) if one.spec.node == name]
    lost = f"storage node {name} was decommissioned, and this with it: delete it, and restore from a backup"
    for volume in volumes:
        if volume.metadata.deletion_timestamp is not None:
            finalizer.take_off(store, volume)
        else:
            _lose_volume(store, to, volume, lost, now_s)
    for snapshot in snapshots:
        if snapshot.metadata.deletion_timestamp is not None:
            finalizer.take_off(store, snapshot)
        else:
            _lose_snapshot(store, to, snapshot, lost, now_s)
    left = f"{len(volumes)} volumes and {len(snapshots)} snapshots of it are left to delete"
    _say(
        store, to, node, now_s, done=True,
        message=left if volumes or snapshots else
        "nothing of it is left; delete this object, and its AoEShelves when every compute node has rebooted",
    )  # fmt: skip
    return _AGAIN_S if volumes or snapshots else None


def _is_there(volume: AoEVolume, node: str) -> bool:
    # One that was being taken on when its node died would never go.
    return volume.status.node == node or (volume.spec.node == node and finalizer.never_taken_on(volume))


def _why_not(name: str, liveness: Liveness) -> str:
    if name in liveness.live:
        return (
            f"storage node {name} renews its Lease: nothing is given up while it lives. Switch it off; if it is to"
            " stay, delete this AoENode and make it anew without decommissioned"
        )
    return f"nothing is known yet of the Lease of storage node {name}; it counts as gone 40 s after it was seen last"


def _lose_volume(store: Store, to: Events, volume: AoEVolume, message: str, now_s: int) -> None:
    # Grants end with the node that kept them: whoever takes its ticket back finds it revoked.
    status = replace(
        volume.status,
        observed_generation=volume.metadata.generation,
        phase="Lost",
        grants=(),
        refusals=(),
        holders="",
        conditions=conditions.put(
            volume.status.conditions,
            "Ready",
            holds=False,
            reason="Lost",
            message=message,
            generation=volume.metadata.generation,
            now_s=now_s,
        ),
    )
    if status != volume.status:
        store.update_status(replace(volume, status=status))
        events.post_change(to, volume, status.conditions)


def _lose_snapshot(store: Store, to: Events, snapshot: AoESnapshot, message: str, now_s: int) -> None:
    status = replace(
        snapshot.status,
        ready=False,
        conditions=conditions.put(
            snapshot.status.conditions,
            "Ready",
            holds=False,
            reason="Lost",
            message=message,
            generation=snapshot.metadata.generation,
            now_s=now_s,
        ),
    )
    if status != snapshot.status:
        store.update_status(replace(snapshot, status=status))
        events.post_change(to, snapshot, status.conditions)


def _say(store: Store, to: Events, node: AoENode, now_s: int, *, done: bool, message: str) -> None:
    said = conditions.put(
        node.status.conditions,
        "Decommissioned",
        holds=done,
        reason="Done" if done else Busy.__name__,
        message=message,
        generation=node.metadata.generation,
        now_s=now_s,
    )
    if said != node.status.conditions:
        store.update_status(replace(node, status=replace(node.status, conditions=said)))
        events.post_change(to, node, said)
