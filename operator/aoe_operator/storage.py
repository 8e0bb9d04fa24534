"""The storage role: makes one storage node's LVM and exports what the resources placed on it say.

Level-triggered: `reconcile` looks at one resource and at the host, and does what is missing, whatever came before.
Owns: the finalizer of its resources, and their status. Refuses: volumes of other nodes; to make anew what was once
Ready; to delete what is held.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from msgspec.structs import replace

from aoe_core.errors import AoECsiError, Busy, Conflict, InUse, Invalid, NotFound, Unfinished, Unreachable
from aoe_core.host.blocking import BlockingCalls
from aoe_core.locks import Locks
from aoe_core.model import (
    Grant,
    NodeIdentity,
    NodeName,
    Snapshot,
    SnapshotId,
    Volume,
    VolumeId,
    VolumeStatus,
    serial_of,
)
from aoe_core.recent import RecentLook
from aoe_core.resources import conditions, conversion, events
from aoe_core.resources.conditions import time_of
from aoe_core.resources.events import Events
from aoe_core.resources.fields import GROUP, Condition, Progress, quantity
from aoe_core.resources.node import Orphan
from aoe_core.resources.snapshot import AoESnapshot, AoESnapshotStatus
from aoe_core.resources.store import Store
from aoe_core.resources.volume import MAX_HOLDERS, AoEVolume, AoEVolumeStatus, GrantStatus, Refusal, Ticket
from aoe_core.volumes.engine import COPY, Engine
from aoe_core.volumes.inspection import Inspection
from aoe_operator import finalizer, metrics
from aoe_operator.finalizer import FINALIZER
from aoe_operator.seen import Seen

log = logging.getLogger(__name__)

POOL_IS_GONE = f"{GROUP}/pool-is-gone"
"""Annotation of an AoEVolume or AoESnapshot: the pool of which a person says that it, and what was in it, is lost."""

Held = TypeVar("Held", AoEVolume, AoESnapshot)
_Key = tuple[str, str, str, str]
"""A grant's node, node id, address and mode: by these a status and a host are compared."""
_SOON_S = 1.0
_UNFINISHED_S = 5.0
"""A copy under way, a disk or SAN that is away, an exporter that the kernel holds: each look at that takes a minute."""
_LATER_S = 30.0
_FIRST_LOOK_S = 30.0
"""How old a look at LVM may be by which a volume is taken for settled."""
_FIRST_LOOK_LIMIT_S = 10.0
"""What LVM takes for ten thousand volumes, with room to spare. All that is listed waits for it, also what must be
revoked at once."""


@dataclass(slots=True)
class _Round:
    """What one look at a volume comes to: its next status, and when to look again (None: when it changes)."""

    status: AoEVolumeStatus
    again_s: float | None = None

    def postpone(self, error: AoECsiError) -> None:
        """Look again: soon at what may be over in a moment, later at what a person must mend."""
        after_s = _again_s(error)
        self.again_s = after_s if self.again_s is None else min(self.again_s, after_s)


def _holds(status: AoEVolumeStatus, type_: str) -> bool:
    """Whether a condition holds, or nothing was ever said of it."""
    said = conditions.find(status.conditions, type_)
    return said is None or said.status == "True"


def _is_size_settled(status: AoEVolumeStatus, made: Volume) -> bool:
    """Whether the last growth came to its end: LVM has a size before its exporters have."""
    return _holds(status, "Expanded") and status.size in (None, quantity(made.size_bytes))


def _again_s(error: AoECsiError) -> float:
    if isinstance(error, (Unfinished, Unreachable)):
        return _UNFINISHED_S
    return _SOON_S if isinstance(error, Busy) else _LATER_S


def _answers(grant: Grant, ticket: Ticket) -> bool:
    """Whether a grant gives its node what a ticket asks for; if not, it was for another ticket of the node. One that
    is half revoked gives nothing, also when a ticket came since that it would answer."""
    if grant.half_revoked:
        return False
    asked = (ticket.mode, ticket.writable and ticket.mode.writes, ticket.block)
    return grant.node == ticket.node and (grant.mode, grant.writable, grant.block) == asked


def _refusal(ticket: Ticket, error: AoECsiError) -> Refusal:
    return Refusal(node=ticket.node, node_id=ticket.node_id, reason=type(error).__name__, message=str(error)[:1024])


def _keys(grants: Iterable[Grant]) -> frozenset[_Key]:
    return frozenset((str(one.node), one.node_id, str(one.address or ""), one.mode.value) for one in grants)


def _told_keys(grants: Iterable[GrantStatus]) -> frozenset[_Key]:
    return frozenset((one.node, one.node_id, one.address, one.mode.value) for one in grants)


@dataclass(frozen=True, slots=True)
class _Host:
    """What a first look comes to."""

    volumes: Mapping[VolumeId, VolumeStatus]
    """The ready ones."""
    snapshots: frozenset[SnapshotId]


def _is_at_rest(resource: AoEVolume | AoESnapshot, node: str) -> bool:
    """Whether this node has followed what a resource says, found nothing amiss, and is to keep it."""
    metadata, status = resource.metadata, resource.status
    return (
        resource.spec.node == node
        and status.observed_generation == metadata.generation
        and metadata.deletion_timestamp is None
        and FINALIZER in metadata.finalizers
        and all(condition.status == "True" for condition in status.conditions)
    )


def _claims_to_be_settled(volume: AoEVolume, node: str) -> bool:
    status = volume.status
    return _is_at_rest(volume, node) and status.node == node and status.phase == "Ready" and not status.refusals


class StorageRole:
    """The storage role of one node."""

    def __init__(
        self, node: str, engine: Engine, store: Store, events: Events, *, seen: Seen, now_s: Callable[[], int]
    ) -> None:
        self._node = node
        self._engine = engine
        self._store = store
        self._events = events
        self._seen = seen
        self._now_s = now_s
        self._locks = Locks()
        self._calls = BlockingCalls()
        self._first_look = RecentLook(self._look, age_s=_FIRST_LOOK_S)
        self._refusals = metrics.Refusals()
        self._met: set[str] = set()
        self._met_snapshots: set[str] = set()
        """Those whose resources were seen."""
        self._settled: dict[str, frozenset[_Key]] = {}
        """Volume → its grants when it was last as wanted: a hint for `find_drifted`, never an answer. It stays until
        the volume is as wanted again: what was found and could not be mended is found again."""

    def find_unclaimed(self, there: Inspection) -> tuple[Orphan, ...]:
        """Return the volumes and snapshots in LVM that no resource speaks of: reported, and never touched.

        One question to the API server for each that reconciliation has not met. Raises: Busy, Unreachable.
        """
        volumes = {str(one.volume.volume_id) for one in there.ready()}
        snapshots = {str(one.snapshot_id) for one in there.snapshots}
        return tuple(
            Orphan(kind=kind, name=name, fact=f"it is in LVM, and no {resource.__name__} of this node has its name")
            for kind, names, resource in (
                ("volume", volumes - self._met, AoEVolume),
                ("snapshot", snapshots - self._met_snapshots, AoESnapshot),
            )
            for name in sorted(names)
            if not self._is_claimed(kind, name)
        )

    def _is_claimed(self, kind: str, name: str) -> bool:
        try:
            if kind == "volume":
                return self._store.get(AoEVolume, name).spec.node == self._node
            return self._store.get(AoESnapshot, name).spec.node == self._node
        except NotFound:
            return False

    def let_go(self) -> None:
        """Give up resources that go with their definition, and nothing else: see `_end_volume`.

        kopf serves no kind whose definition is going, since the API server offers no patch of it any more, and the
        finalizers would stay for ever. Two questions while no definition is going. Raises: Unreachable, Busy.
        """
        self._let_go_of(AoEVolume, self._forget)
        self._let_go_of(AoESnapshot, self._forget_snapshot)

    def _let_go_of(self, kind: type[Held], forget: Callable[[str], None]) -> None:
        if not self._store.is_definition_going(kind):
            return
        with suppress(NotFound):  # The definition is gone meanwhile.
            for resource in self._store.list(kind):
                if resource.spec.node == self._node and resource.metadata.deletion_timestamp is not None:
                    finalizer.take_off(self._store, resource)
                    forget(resource.metadata.name)

    def _forget(self, name: str) -> None:
        """What no resource speaks of any more is an orphan from now on."""
        self._settled.pop(name, None)
        self._met.discard(name)
        self._refusals.show("AoEVolume", name)

    def _forget_snapshot(self, name: str) -> None:
        self._met_snapshots.discard(name)
        self._refusals.show("AoESnapshot", name)

    def find_drifted(self, there: Inspection) -> tuple[str, ...]:
        """Return the volumes that were as wanted and that this host shows otherwise now; nobody is asked for it.

        What became as wanted after the look is among them: looked at once more, it is.
        """
        # After a start it is of no use any more, and large.
        self._first_look.forget()
        shown = {status.volume.volume_id: _keys(status.grants) for status in there.ready()}
        return tuple(
            sorted(name for name, grants in tuple(self._settled.items()) if shown.get(VolumeId(name)) != grants)
        )

    # --- volumes ------------------------------------------------------------------------------------------------

    def is_as_told(self, volume: AoEVolume) -> bool:
        """Say whether a listed volume is on this host as it should be, so that nobody need look at it.

        A start costs one look at LVM by this, and no question to the API server for each of ten thousand volumes. A
        wrong yes is found by the next sweep, from what is noted here. Raises: CommandFailed; Busy, also when LVM takes
        long.
        """
        name, status = volume.metadata.name, volume.status
        told, tickets = _told_keys(status.grants), volume.spec.tickets
        # First, and without LVM: an export that nobody wants any more must not wait for it.
        if (
            not _claims_to_be_settled(volume, self._node)
            or {key[:2] for key in told} != {(one.node, one.node_id) for one in tickets}
            or status.sans != self._sans(volume)
        ):
            return False
        if name in self._met:
            # Listed once more, after the watch broke: it may have been looked at since it was listed.
            return self._settled.get(name) == told and self._seen.is_noted(volume)
        there = self._first_look.take().volumes.get(VolumeId(name))
        if there is None or conversion.request_of(volume).size_bytes > there.volume.size_bytes:
            return False
        if told != _keys(there.grants) or not all(
            any(_answers(grant, ticket) for ticket in tickets) for grant in there.grants
        ):
            return False
        try:
            self._seen.require_current(volume)
        except AoECsiError:
            return False
        self._met.add(name)
        self._settled[name] = told
        return True

    def is_taken_as_told(self, snapshot: AoESnapshot) -> bool:
        """Say the same of a listed snapshot. Raises: as `is_as_told`."""
        name = snapshot.metadata.name
        if not (snapshot.status.ready and _is_at_rest(snapshot, self._node)):
            return False
        if name not in self._met_snapshots and SnapshotId(name) not in self._first_look.take().snapshots:
            return False
        self._met_snapshots.add(name)
        return True

    def _look(self) -> _Host:
        try:
            there = self._calls.run("LVM", self._engine.inspect, timeout_s=_FIRST_LOOK_LIMIT_S)
        except Unfinished as error:
            raise Busy(f"LVM has not answered within {_FIRST_LOOK_LIMIT_S:g} s") from error
        return _Host(
            volumes={one.volume.volume_id: one for one in there.ready()},
            snapshots=frozenset(one.snapshot_id for one in there.snapshots),
        )

    def reconcile_volume(self, name: str) -> float | None:
        """Bring one volume a step nearer to what is wanted.

        Returns: after how many seconds to look again, None when it is as wanted. Raises: Busy when somebody changed
        the resource meanwhile, or when it is being looked at already; Unreachable when the API server does not answer.
        """
        # Before anything is read: who waited with what he had read would act on the past.
        with self._locks.hold(f"volume {name}"):
            return self._reconcile_volume(name)

    def _reconcile_volume(self, name: str) -> float | None:
        volume = self._store.find(AoEVolume, name)
        if volume is None:
            self._forget(name)
            return None
        self._met.add(name)
        if volume.spec.node != self._node or volume.status.node not in (None, self._node):
            self._settled.pop(name, None)
            self._refusals.show("AoEVolume", name)
            return None
        ending = volume.metadata.deletion_timestamp is not None
        if ending and FINALIZER not in volume.metadata.finalizers:
            # Ended here already, and forgotten: to note it again would hold back a later one of its uid.
            return None
        if (again_s := self._await_present(volume)) is not None:
            return again_s
        if ending:
            # kopf goes on with it until it is gone.
            self._settled.pop(name, None)
            return self._end_volume(volume)
        if volume.status.node is None:
            volume = self._accept(volume)
        work = _Round(replace(volume.status, observed_generation=volume.metadata.generation, progress=None))
        # First, and whatever became of the volume: to take an export back needs no LVM.
        self._revoke_unwanted(volume, work)
        made = self._ensure(volume, work)
        if made is not None:
            made = self._ensure_size(volume, made, work)
            self._ensure_grants(volume, work)
            if _holds(work.status, "Expanded"):
                # LVM has a size before its exporters have.
                work.status = replace(
                    work.status, size=quantity(made.size_bytes), device_size=quantity(made.device_bytes)
                )
            work.status = replace(
                work.status,
                filesystem=made.filesystem or "",
                sans=self._sans(volume),
            )
        self._write_status(volume, work.status)
        if work.again_s is None:
            self._settled[name] = _told_keys(work.status.grants)
        return work.again_s

    def _await_present(self, volume: AoEVolume) -> float | None:
        """Say that a volume's spec is of the past, if it is. Returns: when to look again, None to go on."""
        was_told = conditions.find(volume.status.conditions, "Current") is not None
        try:
            self._seen.require_current(volume)
        except AoECsiError as error:
            work = _Round(volume.status)
            self._say(volume, work, "Current", error, reason="Restored" if isinstance(error, Conflict) else "")
            self._write_status(volume, work.status)
            return _LATER_S
        if was_told:
            kept = tuple(one for one in volume.status.conditions if one.type != "Current")
            # What else it says is of the past until it was looked at: nobody may take it for an answer.
            status = replace(volume.status, conditions=kept, observed_generation=0)
            self._store.update_status(replace(volume, status=status))
            return _SOON_S
        return None

    def _sans(self, volume: AoEVolume) -> tuple[str, ...]:
        return tuple(san for san in self._engine.sans() if volume.spec.san in (None, san))

    def _accept(self, volume: AoEVolume) -> AoEVolume:
        """Take a volume on: first the finalizer, so that it cannot vanish, then the word that binds it here."""
        volume = finalizer.put(self._store, volume)
        status = replace(
            volume.status,
            node=self._node,
            phase="Creating",
            serial=serial_of(VolumeId(volume.metadata.name)),
            conditions=conditions.put(
                volume.status.conditions,
                "Placed",
                holds=True,
                reason="Done",
                message=f"storage node {self._node} has taken it on",
                generation=volume.metadata.generation,
                now_s=self._now_s(),
            ),
        )
        return self._write_status(volume, status)

    def _write_status(self, volume: AoEVolume, status: AoEVolumeStatus) -> AoEVolume:
        self._refusals.show("AoEVolume", volume.metadata.name, status.conditions)
        if status == volume.status:
            return volume
        written = self._store.update_status(replace(volume, status=status))
        events.post_change(self._events, volume, status.conditions)
        return written

    def _ensure(self, volume: AoEVolume, work: _Round) -> Volume | None:
        """Make the volume if it never was; what once was Ready and is gone is lost, and never made empty again."""
        volume_id = VolumeId(volume.metadata.name)
        was_ready = volume.status.phase in ("Ready", "Lost")
        try:
            if was_ready:
                made = self._ready_volume(volume)
            else:
                made = self._engine.create_volume(conversion.request_of(volume))
        except NotFound as error:
            if not was_ready:
                self._say(volume, work, "Ready", error)
                work.postpone(error)
                return None
            lost = NotFound(
                f"volume {volume_id} was ready and is not in LVM any more: bring its disks back; it is never made anew"
            )
            work.status = replace(work.status, phase="Lost")
            self._say(volume, work, "Ready", lost, reason="Lost")
            work.postpone(lost)
            return None
        except AoECsiError as error:
            work.status = replace(work.status, progress=self._copy_of(volume_id))
            self._say(volume, work, "Ready", error)
            work.postpone(error)
            return None
        work.status = replace(work.status, phase="Ready")
        self._say(volume, work, "Ready", None, message="the volume is in LVM and can be published")
        return made

    def _copy_of(self, volume_id: VolumeId) -> Progress | None:
        found = (one for one in self._engine.work() if one.key == f"{COPY}{volume_id}")
        return next((Progress(work=one.what[:256], percent=one.percent) for one in found), None)

    def _ensure_size(self, volume: AoEVolume, made: Volume, work: _Round) -> Volume:
        asked = conversion.request_of(volume)
        if asked.size_bytes <= made.size_bytes and _is_size_settled(volume.status, made):
            return made
        wanted_bytes = max(asked.size_bytes, made.size_bytes)
        limit_bytes = asked.limit_bytes if asked.size_bytes > made.size_bytes else 0
        try:
            grown = self._engine.expand_volume(asked.volume_id, wanted_bytes, limit_bytes)
        except AoECsiError as error:
            self._say(volume, work, "Expanded", error)
            work.postpone(error)
            return made
        self._say(volume, work, "Expanded", None, message=f"the volume has {quantity(grown.size_bytes)}")
        return grown

    def _ready_volume(self, volume: AoEVolume) -> Volume:
        """Return a volume that was made once. Raises: NotFound, Invalid when it is out of sight, and not gone."""
        try:
            return self._engine.get_volume(VolumeId(volume.metadata.name)).volume
        except NotFound:
            self._require_pool(volume, volume.spec.pool)
            raise

    def _has_another(self, snapshot: AoESnapshot) -> bool:
        """Say whether a snapshot of this name is there, of another volume."""
        try:
            there = self._engine.get_snapshot(SnapshotId(snapshot.metadata.name))
        except NotFound:
            return False
        return there.source != snapshot.spec.volume

    def _taken_snapshot(self, snapshot: AoESnapshot) -> Snapshot:
        """Return a snapshot that was taken once. Raises: as `_ready_volume`."""
        try:
            return self._engine.get_snapshot(SnapshotId(snapshot.metadata.name))
        except NotFound:
            self._require_pool(snapshot, snapshot.status.pool)
            raise

    def _require_pool(self, resource: AoEVolume | AoESnapshot, pool: str) -> None:
        """Check that somebody looked where it was made. Raises: Invalid."""
        name, metadata = resource.metadata.name, resource.metadata
        if pool in self._engine.pools() or metadata.annotations.get(POOL_IS_GONE) == pool:
            return
        kind = type(resource).__name__
        raise Invalid(
            f"{kind} {name} was made in pool {pool}, which AoENode {self._node} does not name any more: put the pool"
            " back; or, if its disks are gone for good, say"
            f" kubectl annotate {kind.lower()} {name} {POOL_IS_GONE}={pool}"
        )

    def _revoke_unwanted(self, volume: AoEVolume, work: _Round) -> AoECsiError | None:
        """Revoke what no ticket asks for, and count no grant as in force that is not. Returns: what keeps one in
        force."""
        volume_id, tickets = VolumeId(volume.metadata.name), volume.spec.tickets
        in_force = self._engine.list_grants(volume_id)
        unwanted = [grant for grant in in_force if not any(_answers(grant, ticket) for ticket in tickets)]
        failed = self._revoke(volume, work, {grant.node: grant for grant in unwanted})
        left = {grant.node: grant for grant in self._engine.list_grants(volume_id)} if in_force else {}
        told = [one for one in volume.status.grants if one.node in left]
        known = {one.node for one in told}
        # A grant that could not be revoked is still in force, and the table must say so, also of one that it never told
        # of: its export was begun, and nobody heard what became of it.
        untold = [grant for grant in unwanted if grant.node in left and grant.node not in known]
        size = volume.status.size or volume.spec.size
        self._tell_grants(work, [*told, *(conversion.held_of(grant, size) for grant in untold)])
        # Whether LVM answers or not: who waits for one of these must not take what is still told of for his.
        refusals = [
            _refusal(ticket, Busy(f"the former grant of node {ticket.node} is still being revoked"))
            for ticket in tickets
            if (grant := left.get(NodeName(ticket.node))) is not None and grant.half_revoked
        ]
        work.status = replace(work.status, refusals=tuple(refusals))
        return failed

    @staticmethod
    def _tell_grants(work: _Round, grants: Sequence[GrantStatus]) -> None:
        holders = ", ".join(f"{one.node} ({one.address or one.transport.value})" for one in grants)
        work.status = replace(work.status, grants=tuple(grants), holders=holders[:MAX_HOLDERS])

    def _ensure_grants(self, volume: AoEVolume, work: _Round) -> None:
        """Grant what tickets ask for."""
        volume_id = VolumeId(volume.metadata.name)
        in_force = {grant.node: grant for grant in self._engine.list_grants(volume_id)}
        wanted = {ticket.node: ticket for ticket in volume.spec.tickets}
        grants = [one for one in work.status.grants if one.node not in wanted]
        refusals: list[Refusal] = []
        refused: AoECsiError | None = None
        for ticket in wanted.values():
            told = next((one for one in volume.status.grants if one.node == ticket.node), None)
            grant = in_force.get(NodeName(ticket.node))
            # Not by the node alone: after a restored etcd the status may tell of a former grant of the same node.
            stands = grant is not None and grant.node_id == ticket.node_id and _answers(grant, ticket)
            if told is not None and grant is not None and stands and _told_keys((told,)) == _keys((grant,)):
                grants.append(told)
                continue
            try:
                grants.append(self._grant(volume_id, ticket))
            except AoECsiError as error:
                standing = next((one for one in work.status.grants if one.node == ticket.node), None)
                if standing is not None and grant is not None and _told_keys((standing,)) == _keys((grant,)):
                    # It is in force as it was before, whatever the ticket asks for now.
                    grants.append(standing)
                work.postpone(error)
                refused = error
                refusals.append(_refusal(ticket, error))
        self._tell_grants(work, grants)
        work.status = replace(work.status, refusals=tuple(refusals))
        if refused is not None:
            self._say(volume, work, "Granted", refused)
        elif conditions.find(work.status.conditions, "Granted") is not None:
            self._say(volume, work, "Granted", None, message="every ticket is granted")

    def _revoke(self, volume: AoEVolume, work: _Round, unwanted: dict[NodeName, Grant]) -> AoECsiError | None:
        volume_id, failed = VolumeId(volume.metadata.name), None
        for node in sorted(unwanted):
            try:
                self._engine.unpublish(volume_id, node)
            except AoECsiError as error:
                failed = error
                work.postpone(error)
        if failed is not None:
            self._say(volume, work, "Revoked", failed)
        elif conditions.find(work.status.conditions, "Revoked") is not None:
            self._say(volume, work, "Revoked", None, message="what was taken back is revoked")
        return failed

    def _grant(self, volume_id: VolumeId, ticket: Ticket) -> GrantStatus:
        identity = NodeIdentity.parse(ticket.node_id)
        if identity.name != ticket.node:
            raise NotFound(f"the ticket of node {ticket.node} has the id of {identity.name}; let its node ask again")
        attachment = self._engine.publish(
            volume_id, identity, ticket.mode, read_only=not ticket.writable, block=ticket.block
        )
        grant = next((one for one in self._engine.list_grants(volume_id) if one.node == identity.name), None)
        if grant is None:
            raise Busy(f"volume {volume_id} was taken from node {ticket.node} while it was granted; ask again")
        return conversion.granted_of(grant, attachment)

    def _end_volume(self, volume: AoEVolume) -> float | None:
        """Delete what is to go; the finalizer goes only when LVM has let go of the name."""
        if self._store.is_definition_going(AoEVolume):
            # Nobody has asked for this volume's end: its definition is being removed, and every resource with it.
            finalizer.take_off(self._store, volume)
            self._forget(volume.metadata.name)
            return None
        volume_id = VolumeId(volume.metadata.name)
        work = _Round(replace(volume.status, observed_generation=volume.metadata.generation, phase="Deleting"))
        try:
            # First, and told of whatever else is refused: whoever took his ticket back waits for it.
            if (failed := self._revoke_unwanted(volume, work)) is not None:
                raise failed
            if volume.spec.tickets:
                nodes = ", ".join(ticket.node for ticket in volume.spec.tickets)
                raise InUse(f"volume {volume_id} is held by {nodes}; take it back there first, then it is deleted")
            if volume.status.size is not None and volume.spec.pool not in self._engine.pools():
                with suppress(NotFound):
                    self._ready_volume(volume)
            if volume.status.size is None and self._engine.has_another(conversion.request_of(volume)):
                # It was refused for that, perhaps while somebody tried to adopt it: nobody asked for that one's end.
                log.warning("left in LVM: it was not made for this volume", extra={"volume": volume_id})
            else:
                self._engine.delete_volume(volume_id)
        except AoECsiError as error:
            work.postpone(error)
            self._say(volume, work, "Deleted", error)
            self._write_status(volume, work.status)
            return work.again_s
        self._seen.forget(volume.metadata.name)
        finalizer.take_off(self._store, volume)
        self._refusals.show("AoEVolume", volume.metadata.name)
        return None

    def _say(
        self,
        volume: AoEVolume,
        work: _Round,
        type_: str,
        error: AoECsiError | None,
        *,
        message: str = "",
        reason: str = "",
    ) -> None:
        if error is not None:
            log.warning("volume waits", extra={"volume": volume.metadata.name, "what": type_, "error": str(error)})
        work.status = replace(
            work.status,
            conditions=conditions.put(
                work.status.conditions,
                type_,
                holds=error is None,
                reason=reason or (type(error).__name__ if error is not None else "Done"),
                message=str(error) if error is not None else message,
                generation=volume.metadata.generation,
                now_s=self._now_s(),
            ),
        )

    # --- snapshots ----------------------------------------------------------------------------------------------

    def reconcile_snapshot(self, name: str) -> float | None:
        """Take or remove one snapshot. Returns and raises as `reconcile_volume` does."""
        snapshot = self._store.find(AoESnapshot, name)
        if snapshot is None:
            self._forget_snapshot(name)
            return None
        self._met_snapshots.add(name)
        if snapshot.spec.node != self._node:
            return None
        snapshot_id = SnapshotId(name)
        if snapshot.metadata.deletion_timestamp is not None:
            return self._end_snapshot(snapshot)
        snapshot = finalizer.put(self._store, snapshot)
        once_taken = snapshot.status.taken_at is not None
        again_s: float | None = None
        try:
            if once_taken:
                taken = self._taken_snapshot(snapshot)
            else:
                taken = self._engine.create_snapshot(snapshot_id, VolumeId(snapshot.spec.volume))
        except AoECsiError as error:
            # One that was taken and is gone is lost: taken again, it would hold another moment's content.
            lost = once_taken and isinstance(error, NotFound)
            status = replace(
                snapshot.status,
                ready=snapshot.status.ready and not lost,
                conditions=self._ready(snapshot, error, reason="Lost" if lost else ""),
            )
            again_s = _again_s(error)
        else:
            status = AoESnapshotStatus(
                observed_generation=snapshot.metadata.generation,
                ready=True,
                pool=taken.pool,
                size=quantity(taken.size_bytes),
                filesystem=taken.filesystem or "",
                taken_at=time_of(taken.created_s),
                conditions=self._ready(snapshot, None),
            )
        self._refusals.show("AoESnapshot", name, status.conditions)
        if status != snapshot.status:
            self._store.update_status(replace(snapshot, status=status))
            events.post_change(self._events, snapshot, status.conditions)
        return again_s

    def _ready(self, snapshot: AoESnapshot, error: AoECsiError | None, *, reason: str = "") -> tuple[Condition, ...]:
        return conditions.put(
            snapshot.status.conditions,
            "Ready",
            holds=error is None,
            reason=reason or (type(error).__name__ if error is not None else "Done"),
            message=str(error) if error is not None else "the snapshot is taken",
            generation=snapshot.metadata.generation,
            now_s=self._now_s(),
        )

    def _end_snapshot(self, snapshot: AoESnapshot) -> float | None:
        if FINALIZER not in snapshot.metadata.finalizers:
            return None
        if self._store.is_definition_going(AoESnapshot):
            finalizer.take_off(self._store, snapshot)
            self._forget_snapshot(snapshot.metadata.name)
            return None
        try:
            if snapshot.status.taken_at is not None and snapshot.status.pool not in self._engine.pools():
                with suppress(NotFound):
                    self._taken_snapshot(snapshot)
            if snapshot.status.taken_at is None and self._has_another(snapshot):
                log.warning("left in LVM: it was not taken for this", extra={"snapshot": snapshot.metadata.name})
            else:
                self._engine.delete_snapshot(SnapshotId(snapshot.metadata.name))
        except AoECsiError as error:
            log.warning("snapshot waits", extra={"snapshot": snapshot.metadata.name, "error": str(error)})
            said = conditions.put_error(
                snapshot.status.conditions,
                "Deleted",
                error,
                generation=snapshot.metadata.generation,
                now_s=self._now_s(),
            )
            self._refusals.show("AoESnapshot", snapshot.metadata.name, said)
            if said != snapshot.status.conditions:
                self._store.update_status(replace(snapshot, status=replace(snapshot.status, conditions=said)))
                events.post_change(self._events, snapshot, said)
            return _again_s(error)
        finalizer.take_off(self._store, snapshot)
        return None
