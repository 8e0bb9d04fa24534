"""A cluster as a Provisioner: writes what is wanted as resources, and waits until their storage node has done it.

Owns: the wording of wishes, a first choice of the node, and the patience. Refuses: to decide about storage; that is
the storage node's, and its answers come back as conditions. What is not done in time goes on, and the same call again
finds it.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Collection
from typing import TypeVar

import msgspec

from aoe_core.errors import AoECsiError, Busy, Conflict, InUse, Invalid, NoSpace, NotFound, Unfinished, Unreachable
from aoe_core.model import (
    AccessMode,
    Attachment,
    Capacity,
    NodeIdentity,
    NodeName,
    PoolName,
    SanName,
    Snapshot,
    SnapshotId,
    Volume,
    VolumeId,
    VolumeSpec,
    VolumeStatus,
)
from aoe_core.recent import RecentLook
from aoe_core.resources import conditions, conversion, placement
from aoe_core.resources.fields import ObjectMeta, parse_quantity, quantity
from aoe_core.resources.node import AoENode
from aoe_core.resources.snapshot import AoESnapshot, AoESnapshotSpec
from aoe_core.resources.store import Answer, Store
from aoe_core.resources.volume import AoEVolume, AoEVolumeSpec, Refusal, Ticket

NODES_AGE_S = 5.0
"""How old the look at the storage nodes may be by which `pools`, `sans` and `capacity` answer, and a node is chosen.
Each new volume asks several times, and the external-provisioner for each StorageClass after each volume; what storage
nodes say of themselves is older."""

Seen = TypeVar("Seen", AoEVolume, AoESnapshot)

_PASSING = (Busy, Unfinished, Unreachable)
"""What is worth waiting for."""
_DECIDED = ("pool", "san", "durability", "wipe", "source")


class ClusterProvisioner:
    """Volumes, snapshots and grants of a whole cluster."""

    def __init__(self, store: Store, *, patience_s: float, nodes_age_s: float = NODES_AGE_S) -> None:
        """`patience_s`: how long a call waits for the storage node."""
        self._store = store
        self._patience_s = patience_s
        self._nodes_lately = RecentLook(self._look_at_nodes, age_s=nodes_age_s)
        self._guard = threading.Lock()
        self._promised: dict[str, AoEVolume] = {}
        """Volumes that calls of this process wait for, on the nodes that were chosen for them."""

    # --- what there is ------------------------------------------------------------------------------------------

    def pools(self) -> tuple[PoolName, ...]:
        """Return the pools that any storage node offers, as somebody saw it lately."""
        return tuple(sorted({PoolName(pool.name) for node in self._nodes_lately.take() for pool in node.spec.pools}))

    def sans(self) -> tuple[SanName, ...]:
        """Return the SANs that any storage node is on, as somebody saw it lately."""
        return tuple(sorted({SanName(san.name) for node in self._nodes_lately.take() for san in node.spec.sans}))

    def has_snapshots(self) -> bool:
        """Say yes: a sidecar asks once, when it starts, and a thin pool may come any day. A thick pool's volume says
        no when it is asked."""
        return True

    def capacity(self, pool: PoolName | None, sans: Collection[SanName] | None) -> Capacity:
        """Return what the ready storage nodes on these SANs can still give out, as somebody saw it lately."""
        parts = [
            status
            for node in self._nodes_lately.take()
            if placement.is_ready(node) and not node.spec.unschedulable and (sans is None or _is_on(node, sans))
            for status in node.status.pools
            if pool in (None, status.name)
        ]
        return Capacity(
            available_bytes=sum(parse_quantity(part.available) for part in parts),
            maximum_volume_bytes=max((parse_quantity(part.largest_volume) for part in parts), default=0),
        )

    def get_volume(self, volume_id: VolumeId) -> VolumeStatus:
        """Return a ready volume and who holds it. Raises: NotFound."""
        return conversion.status_of(self._ready_volume(volume_id))

    def list_volumes(self) -> tuple[VolumeStatus, ...]:
        """Return every ready volume, ordered by id."""
        return tuple(conversion.status_of(one) for one in self._store.list(AoEVolume) if _is_given_out(one))

    def get_snapshot(self, snapshot_id: SnapshotId) -> Snapshot:
        """Return a ready snapshot. Raises: NotFound."""
        snapshot = self._store.get(AoESnapshot, snapshot_id)
        if not snapshot.status.ready:
            raise NotFound(f"snapshot {snapshot_id} is not taken yet; wait until it is ready")
        return conversion.snapshot_of(snapshot)

    def list_snapshots(self) -> tuple[Snapshot, ...]:
        """Return every ready snapshot, ordered by id."""
        return tuple(conversion.snapshot_of(one) for one in self._store.list(AoESnapshot) if one.status.ready)

    # --- volumes ------------------------------------------------------------------------------------------------

    def create_volume(self, spec: VolumeSpec) -> Volume:
        """Ask for a volume and wait until it is ready; a refusal takes the wish back."""
        uids: set[str] = set()

        def wish() -> AoEVolume:
            wanted = conversion.wanted_of(spec)
            fresh = AoEVolume(metadata=ObjectMeta(name=spec.volume_id), spec=wanted)
            try:
                volume = self._store.create(self._place(fresh))
            except Conflict:
                self._forget_promise(spec.volume_id)
                volume = self._store.get(AoEVolume, spec.volume_id)
                _require_not_going(volume)
                _require_same(volume, wanted)
            uids.add(volume.metadata.uid)
            return volume

        def made(seen: AoEVolume | None) -> Volume | None:
            if seen is None or seen.metadata.uid not in uids:
                raise Busy(f"volume {spec.volume_id} was deleted while it was being made; ask again")
            if _is_given_out(seen):
                return conversion.volume_of(seen)
            self._raise_refusal(seen, "Placed", "Ready", since=seen.metadata.generation, take_back=True)
            return None

        try:
            return self._await(AoEVolume, spec.volume_id, made, _how_far, first=wish)
        finally:
            self._forget_promise(spec.volume_id)

    def _place(self, volume: AoEVolume) -> AoEVolume:
        """Choose the storage node along with the wish, where what was seen lately is enough for it.

        It saves the cluster role a step for each volume. Where there is no choice, it looks anew and says why; and it
        chooses again when the node that was chosen here falls silent before it has taken the volume on.
        """
        if volume.spec.source is not None:
            # It goes where its source is.
            return volume
        nodes = self._nodes_lately.take()
        with self._guard:
            others, live = self._promised.values(), placement.live_names(nodes)
            try:
                node = placement.choose(volume, nodes, others, live=live, source_node=None)
            except AoECsiError:
                return volume
            placed = self._promised[volume.metadata.name] = placement.placed_on(volume, node)
        return placed

    def _forget_promise(self, name: str) -> None:
        with self._guard:
            self._promised.pop(name, None)

    def delete_volume(self, volume_id: VolumeId) -> None:
        """Ask for a volume's end and wait until its name is free."""
        volume = self._store.find(AoEVolume, volume_id)
        if volume is None:
            return
        if volume.spec.tickets:
            raise _in_use(volume)
        self._store.delete(AoEVolume, volume_id)
        uid = volume.metadata.uid

        def gone(seen: AoEVolume | None) -> bool | None:
            if seen is None or seen.metadata.uid != uid:
                return True
            self._raise_refusal(seen, "Deleted")
            return None

        self._await(AoEVolume, volume_id, gone, _unless_held_back("deleted"))

    def expand_volume(self, volume_id: VolumeId, size_bytes: int, limit_bytes: int = 0) -> Volume:
        """Ask for more and wait until the volume has it."""
        volume = self._ready_volume(volume_id)
        has_bytes = parse_quantity(volume.status.size or volume.spec.size)
        if limit_bytes and has_bytes > max(limit_bytes, size_bytes):
            raise Conflict(
                f"volume {volume_id} has {volume.status.size} already, over the limit; ask for at least that"
            )
        wanted_bytes = max(size_bytes, has_bytes)
        # Also back from a size that was asked for and could not be had.
        generation = self._ask_for_size(volume_id, wanted_bytes, limit_bytes).metadata.generation

        def grown(seen: AoEVolume | None) -> Volume | None:
            if seen is None:
                raise NotFound(f"volume {volume_id} does not exist")
            if seen.status.size and parse_quantity(seen.status.size) >= wanted_bytes:
                return conversion.volume_of(seen)
            try:
                self._raise_refusal(seen, "Expanded", since=generation)
            except AoECsiError:
                # Else it would grow unasked once there is room, and could never be asked for less.
                with contextlib.suppress(AoECsiError):
                    self._ask_for_size(volume_id, has_bytes)
                raise
            return None

        return self._await(AoEVolume, volume_id, grown, _unless_held_back("expanded"))

    def _ask_for_size(self, volume_id: VolumeId, size_bytes: int, limit_bytes: int = 0) -> AoEVolume:
        deadline = time.monotonic() + self._patience_s
        limit = quantity(limit_bytes) if limit_bytes else None
        while True:
            volume = self._ready_volume(volume_id)
            if parse_quantity(volume.spec.size) == size_bytes:
                return volume
            spec = msgspec.structs.replace(volume.spec, size=quantity(size_bytes), max_size=limit)
            try:
                return self._store.update(msgspec.structs.replace(volume, spec=spec))
            except Busy:
                # Somebody else changed it between our look and our word.
                if time.monotonic() > deadline:
                    raise

    # --- grants -------------------------------------------------------------------------------------------------

    def publish(
        self,
        volume_id: VolumeId,
        node: NodeIdentity,
        mode: AccessMode,
        *,
        read_only: bool,
        block: bool,
        guest: str | None = None,
    ) -> Attachment:
        """Apply a node's ticket and wait until its grant is in force. `guest`: the guest's disk it is for; a guest and
        pods do not share a node's grant."""
        volume = self._ready_volume(volume_id)
        ticket = Ticket(
            node=node.name,
            node_id=str(node),
            mode=mode,
            writable=mode.writes and not read_only,
            block=block,
            guest=guest,
        )
        own = next((one for one in volume.spec.tickets if one.node == node.name), None)
        if own is not None and own.guest != guest:
            raise _in_use(volume, guest=guest)
        if own is not None and (own.mode, own.writable, own.block) != (ticket.mode, ticket.writable, ticket.block):
            raise Conflict(
                f"volume {volume_id} is published to node {node.name} already as {own.mode.value}; unpublish it first"
            )
        if own != ticket:
            try:
                volume = self._store.apply(
                    AoEVolume, volume_id, {"spec": {"tickets": [msgspec.to_builtins(ticket)]}},
                    holder=f"ticket-{node.name}"[:128],
                )  # fmt: skip
            except Invalid as refusal:
                volume = self._ready_volume(volume_id)
                others = [one for one in volume.spec.tickets if (one.node, one.guest) != (node.name, guest)]
                if not others:
                    raise
                raise _in_use(volume, guest=guest) from refusal

        generation = volume.metadata.generation

        def find_refusal(seen: AoEVolume) -> Refusal | None:
            asked = (node.name, str(node))
            return next((one for one in seen.status.refusals if (one.node, one.node_id) == asked), None)

        def how_far(seen: AoEVolume) -> str:
            refused = find_refusal(seen)
            return refused.message if refused is not None else f"volume {volume_id} is being exported"

        def granted(seen: AoEVolume | None) -> Attachment | None:
            if seen is None or not any((one.node, one.guest) == (node.name, guest) for one in seen.spec.tickets):
                raise Busy(f"volume {volume_id} was taken from node {node.name} meanwhile; ask again")
            if (why := _held_back(seen)) is not None:
                # What a restored status tells of may be revoked since, and only a person can end this.
                raise Unfinished(why)
            if seen.status.observed_generation < generation:
                # What is told there may be the end of a former grant of this node.
                return None
            if (refused := find_refusal(seen)) is not None:
                error = conditions.error_of(refused.reason, refused.message)
                if error is not None and not isinstance(error, _PASSING):
                    raise error
                return None
            for grant in seen.status.grants:
                given = (grant.node, grant.node_id, grant.mode, grant.writable, grant.block)
                if given == (ticket.node, ticket.node_id, ticket.mode, ticket.writable, ticket.block):
                    # The volume may have grown since it was granted.
                    size = seen.status.device_size or grant.size
                    return conversion.attachment_of(volume_id, msgspec.structs.replace(grant, size=size))
            return None

        return self._await(AoEVolume, volume_id, granted, how_far)

    def unpublish(self, volume_id: VolumeId, node: NodeName | None, *, guest: str | None = None) -> None:
        """Take back tickets and wait until their grants are revoked. `guest`: the guest's disk they were for; what
        pods have is not a guest's to give back, nor the other way round."""
        volume = self._take_back(volume_id, node, guest)
        if volume is None:
            return
        generation = volume.metadata.generation

        def revoked(seen: AoEVolume | None) -> bool | None:
            if seen is None:
                return True
            others = {one.node for one in seen.spec.tickets if one.guest != guest}
            held = any(node in (None, grant.node) and grant.node not in others for grant in seen.status.grants)
            if not held and _has_followed(seen, generation):
                return True
            self._raise_refusal(seen, "Revoked", since=generation)
            return None

        self._await(AoEVolume, volume_id, revoked, _unless_held_back("taken back"))

    def device_bytes(self, volume_id: VolumeId) -> int:
        """Return how large a volume's device is now. Raises: NotFound."""
        return conversion.volume_of(self._ready_volume(volume_id)).device_bytes

    def _take_back(self, volume_id: VolumeId, node: NodeName | None, guest: str | None) -> AoEVolume | None:
        deadline = time.monotonic() + self._patience_s
        while True:
            volume = self._store.find(AoEVolume, volume_id)
            if volume is None or (_is_free(volume) and _has_been_heard(volume)):
                return None
            kept = tuple(one for one in volume.spec.tickets if one.guest != guest or node not in (None, one.node))
            if kept == volume.spec.tickets:
                return volume
            fresh = msgspec.structs.replace(volume, spec=msgspec.structs.replace(volume.spec, tickets=kept))
            try:
                return self._store.update(fresh)
            except NotFound:
                return None
            except Busy:
                # Somebody else changed it between our look and our word.
                if time.monotonic() > deadline:
                    raise

    # --- snapshots ----------------------------------------------------------------------------------------------

    def create_snapshot(self, snapshot_id: SnapshotId, source: VolumeId) -> Snapshot:
        """Ask a volume's storage node for a snapshot and wait until it is taken."""
        snapshot = self._store.find(AoESnapshot, snapshot_id)
        if snapshot is None:
            volume = self._ready_volume(source)
            assert volume.status.node is not None
            spec = AoESnapshotSpec(volume=source, node=volume.status.node)
            try:
                snapshot = self._store.create(AoESnapshot(metadata=ObjectMeta(name=snapshot_id), spec=spec))
            except Conflict:
                snapshot = self._store.get(AoESnapshot, snapshot_id)
        if snapshot.spec.volume != source:
            raise Conflict(f"snapshot {snapshot_id} exists, of volume {snapshot.spec.volume}; choose another name")

        def taken(seen: AoESnapshot | None) -> Snapshot | None:
            if seen is None:
                raise Busy(f"snapshot {snapshot_id} was deleted while it was being taken; ask again")
            if seen.status.ready:
                return conversion.snapshot_of(seen)
            self._raise_refusal(seen, "Ready", take_back=True)
            return None

        return self._await(AoESnapshot, snapshot_id, taken, lambda _: f"snapshot {snapshot_id} is being taken")

    def delete_snapshot(self, snapshot_id: SnapshotId) -> None:
        """Ask for a snapshot's end and wait for it."""
        if self._store.find(AoESnapshot, snapshot_id) is None:
            return
        self._store.delete(AoESnapshot, snapshot_id)

        def gone(seen: AoESnapshot | None) -> bool | None:
            if seen is None:
                return True
            self._raise_refusal(seen, "Deleted")
            return None

        self._await(AoESnapshot, snapshot_id, gone, lambda _: f"snapshot {snapshot_id} is being removed")

    # --- what several of them need ------------------------------------------------------------------------------

    def _look_at_nodes(self) -> tuple[AoENode, ...]:
        return tuple(node for node in self._store.list(AoENode) if not node.spec.decommissioned)

    def _ready_volume(self, volume_id: VolumeId) -> AoEVolume:
        volume = self._store.get(AoEVolume, volume_id)
        _require_not_going(volume)
        if volume.status.phase == "Lost":
            refused = conditions.find(volume.status.conditions, "Ready")
            raise NoSpace(refused.message if refused else f"volume {volume_id} is lost; see its conditions")
        if not _is_given_out(volume):
            raise NotFound(f"volume {volume_id} is not made yet; wait until it is Ready")
        return volume

    def _raise_refusal(self, seen: Seen, *types: str, since: int = 0, take_back: bool = False) -> None:
        """Raise what a condition refuses, unless it was said before generation `since`, or may pass."""
        for type_ in types:
            condition = conditions.find(seen.status.conditions, type_)
            if condition is None or condition.status != "False" or condition.observed_generation < since:
                continue
            error = conditions.error_of(condition.reason, condition.message)
            if error is None or isinstance(error, _PASSING):
                continue
            if take_back:
                # Else the wish would stand, and be granted once there is room, with nobody left who knows of it.
                try:
                    self._store.delete_as_seen(seen)
                except Busy:
                    # It has changed since it said so: there may be room, and somebody who uses it. The next look tells.
                    continue
            raise error

    def _await(
        self,
        kind: type[Seen],
        name: str,
        answer: Callable[[Seen | None], Answer | None],
        how_far: Callable[[Seen], str],
        first: Callable[[], Seen | None] | None = None,
    ) -> Answer:
        last: list[Seen] = []

        def looked(seen: Seen | None) -> Answer | None:
            if seen is not None:
                last[:] = [seen]
            return answer(seen)

        answered = self._store.await_(kind, name, looked, timeout_s=self._patience_s, first=first)
        if answered is None:
            where = how_far(last[0]) if last else f"{kind.__name__} {name} is not there yet"
            raise Unfinished(f"{where}; ask again, and look at kubectl describe {kind.__name__.lower()} {name}")
        return answered


def _is_on(node: AoENode, sans: Collection[SanName]) -> bool:
    return any(one.name in sans for one in node.spec.sans)


def _is_given_out(volume: AoEVolume) -> bool:
    return volume.status.phase == "Ready" and volume.metadata.deletion_timestamp is None


def _is_free(volume: AoEVolume) -> bool:
    return not (volume.spec.tickets or volume.status.grants)


def _has_been_heard(volume: AoEVolume) -> bool:
    """Whether the storage node has followed the last wish: it may have begun an export that it never told of."""
    return volume.status.node is None or _has_followed(volume, volume.metadata.generation)


def _has_followed(volume: AoEVolume, generation: int) -> bool:
    return volume.status.observed_generation >= generation and _held_back(volume) is None


def _held_back(volume: AoEVolume) -> str | None:
    """Return why the storage node follows no wish until a person has decided; None when it does."""
    said = conditions.find(volume.status.conditions, "Current")
    return said.message if said is not None and said.status == "False" else None


def _unless_held_back(done: str) -> Callable[[AoEVolume], str]:
    """Return what says how far a volume is that is being `done` something to."""
    return lambda seen: _held_back(seen) or f"volume {seen.metadata.name} is being {done}"


def _require_not_going(volume: AoEVolume) -> None:
    if volume.metadata.deletion_timestamp is not None:
        raise Busy(f"volume {volume.metadata.name} is being deleted; ask again when it is gone")


def _require_same(volume: AoEVolume, wanted: AoEVolumeSpec) -> None:
    differing = [field for field in _DECIDED if getattr(volume.spec, field) != getattr(wanted, field)]
    if wanted.reach and volume.status.sans and not set(wanted.reach) & set(volume.status.sans):
        differing.append("reach")
    have_bytes = parse_quantity(volume.status.size or volume.spec.size)
    if have_bytes < parse_quantity(wanted.size) or (wanted.max_size and have_bytes > parse_quantity(wanted.max_size)):
        differing.append("size")
    if differing:
        raise Conflict(
            f"volume {volume.metadata.name} exists with another {' and '.join(differing)}; choose another name"
        )


def _in_use(volume: AoEVolume, *, guest: str | None = None) -> InUse:
    """Say who holds a volume. `guest`: the guest's disk that asks."""
    tickets = volume.spec.tickets
    holders = ", ".join(f"{one.node} ({one.mode.value}{_for_guest(one)})" for one in tickets)
    remedies = {
        "remove the pods that use it there": guest is not None and any(one.guest is None for one in tickets),
        "delete that AoEGuestDisk": any(one.guest is not None for one in tickets),
    }
    remedy = " and ".join(words for words, fits in remedies.items() if fits) or "unpublish it there"
    return InUse(f"volume {volume.metadata.name} is published to {holders}; {remedy} first")


def _for_guest(ticket: Ticket) -> str:
    return "" if ticket.guest is None else f", AoEGuestDisk {ticket.guest.rpartition('/')[0]}"


def _how_far(volume: AoEVolume) -> str:
    name, progress = volume.metadata.name, volume.status.progress
    if progress is not None:
        return f"volume {name}: {progress.work}, {progress.percent} % done"
    for type_ in ("Placed", "Ready"):
        said = conditions.find(volume.status.conditions, type_)
        # What was said of a former spec is over: a node may have been chosen since.
        if said is not None and said.status == "False" and said.observed_generation >= volume.metadata.generation:
            return said.message
    where = f"storage node {volume.spec.node}" if volume.spec.node else "no storage node yet"
    return f"volume {name} is being made on {where}"
