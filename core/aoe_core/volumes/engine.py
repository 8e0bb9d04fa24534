"""The storage node's engine: observe, plan, apply, for volumes, snapshots and grants of this machine.

Implements the CSI controller's `Provisioner`. It keeps no state of its own: LVM and the export files are read anew for
every call, so that any process may be killed at any time and the next one carries on. Calls for one volume are
serialised by the caller (the CSI servicer's locks, the operator's per-object queue); calls for different volumes run
side by side and meet only in the allocation of addresses.
"""

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from aoe_core.errors import (
    AoECsiError,
    Busy,
    CommandFailed,
    Conflict,
    InUse,
    Invalid,
    NoSpace,
    NotFound,
    Unfinished,
    Unreachable,
)
from aoe_core.host.blocks import HostBlockDevices
from aoe_core.host.contracts import LogicalVolume, LvmReport
from aoe_core.host.exports import UNSTARTED_BYTES, ExportFile, ExportFiles, ExportState, Former, HostExportUnits
from aoe_core.host.files import DurableFiles
from aoe_core.host.ingress import NftIngressRules
from aoe_core.host.links import card_mac
from aoe_core.host.lvm import HostLvm
from aoe_core.host.runner import HostRunner
from aoe_core.host.wire import RawSegments
from aoe_core.model import (
    MAX_MASK_MACS,
    NO_CAPACITY,
    AccessMode,
    Address,
    Attachment,
    Capacity,
    FromSnapshot,
    FromVolume,
    Grant,
    Mac,
    NodeIdentity,
    NodeName,
    PoolName,
    SanName,
    Snapshot,
    SnapshotId,
    Volume,
    VolumeId,
    VolumeSpec,
    VolumeState,
    VolumeStatus,
    serial_of,
)
from aoe_core.settings import Pool, San, Settings
from aoe_core.volumes import addresses, grants, plan, pools, tags
from aoe_core.volumes.actions import (
    Action,
    ActivateLv,
    CopyRange,
    DropExport,
    PutExport,
    RenameLv,
    RetagLv,
    StartExport,
    StopExport,
)
from aoe_core.volumes.apply import apply
from aoe_core.volumes.host import StorageHost
from aoe_core.volumes.inspection import Inspection, inspect, ready_with_grants
from aoe_core.volumes.jobs import JobBoard, Work

log = logging.getLogger(__name__)

FILESYSTEMS = frozenset({"ext4", "xfs"})

_TEND_S = 30.0
"""Between two looks at the ingress rules, and at wipes that have failed."""
_WIPES_S = 300.0
"""Between two looks at LVM for wipes that nobody goes on with, as after a volume group was away."""

_SHELF_PROBE_S = 1.0
"""How long the segment is listened to before a shelf's first use; a target answers within milliseconds."""

COPY = "copy/"
"""Begins the key of a copy's `Work`, before the volume that is made."""
_COPY_WAIT_S = 20.0
"""How long a CreateVolume call waits for its copy before it answers "still copying"."""


class Engine:
    """Volumes, snapshots and grants of one storage node."""

    def __init__(self, settings: Settings, host: StorageHost, *, jobs: JobBoard | None = None) -> None:
        self._settings = settings
        self._host = host
        self._jobs = jobs or JobBoard()
        self._stop = threading.Event()
        self._allocation = threading.Lock()
        self._free_shelves: set[tuple[SanName, int]] = set()
        """Shelves that were asked for on the wire, and nobody else answered."""
        self._copied: dict[VolumeId, VolumeSpec] = {}
        """What a job of this process copies from a thick volume just now; guarded by the allocation lock, as new grants
        are."""
        self._deleting: set[VolumeId] = set()
        """Volumes that a call is deleting; guarded by the allocation lock."""
        self._wipes_due_s = 0.0
        """By the monotonic clock; at once after one has failed."""
        self.has_changed = threading.Event()
        """Set by every change that is made here, for whoever goes by an older look; he clears it."""

    # --- what there is ------------------------------------------------------------------------------------------

    def pools(self) -> tuple[PoolName, ...]:
        """Return the configured pools."""
        return tuple(PoolName(pool.name) for pool in self._settings.pool)

    def sans(self) -> tuple[SanName, ...]:
        """Return the configured SANs."""
        return tuple(SanName(san.name) for san in self._settings.san)

    def has_snapshots(self) -> bool:
        """Say whether any pool is thin."""
        return any(pool.thin_pool for pool in self._settings.pool)

    def capacity(self, pool: PoolName | None, sans: Collection[SanName] | None) -> Capacity:
        """Return what one pool or all can still give out; a pool that cannot be used gives nothing."""
        if sans is not None and not any(self._settings.san_named(san) for san in sans):
            return NO_CAPACITY
        report = self._host.lvm.report()
        parts = [
            pools.capacity_of(one, report, limit_bytes=self._settings.max_volume_bytes)
            for one in self._settings.pool
            if pool in (None, one.name)
        ]
        return Capacity(
            available_bytes=sum(part.available_bytes for part in parts),
            maximum_volume_bytes=max((part.maximum_volume_bytes for part in parts), default=0),
        )

    def get_volume(self, volume_id: VolumeId) -> VolumeStatus:
        """Return a ready volume and its grants."""
        report = self._host.lvm.report()
        found = self._find_volume(report, volume_id)
        if found is None:
            self._require_absent(report, tags.volume_lv_name(volume_id), f"volume {volume_id}")
        volume = plan.require_found(found[0] if found else None, volume_id)
        return VolumeStatus(volume=volume, grants=self.list_grants(volume_id))

    def list_grants(self, volume_id: VolumeId) -> tuple[Grant, ...]:
        """Return a volume's grants in force or half revoked, whatever LVM may say of the volume: no LVM call."""
        return tuple(file.grant for file in self._held(volume_id))

    def list_volumes(self) -> tuple[VolumeStatus, ...]:
        """Return every ready volume with its grants, ordered by id; one LVM call."""
        report = self._host.lvm.report()
        volumes = (volume for volume, _ in self._volumes(report))
        return ready_with_grants(volumes, self._host.export_files.all())

    def get_snapshot(self, snapshot_id: SnapshotId) -> Snapshot:
        """Return a snapshot."""
        report = self._host.lvm.report()
        found = self._find_snapshot(report, snapshot_id)
        if found is None:
            self._require_absent(report, tags.snapshot_lv_name(snapshot_id), f"snapshot {snapshot_id}")
            raise NotFound(f"snapshot {snapshot_id} does not exist on this machine")
        return found[0]

    def list_snapshots(self) -> tuple[Snapshot, ...]:
        """Return every snapshot, ordered by id; one LVM call."""
        snapshots = (snapshot for snapshot, _ in self._snapshots(self._host.lvm.report()))
        return tuple(sorted(snapshots, key=lambda snapshot: snapshot.snapshot_id))

    def work(self) -> tuple[Work, ...]:
        """Return the copies and wipes under way."""
        return self._jobs.progress()

    def inspect(self) -> Inspection:
        """Return everything of ours on this machine, with what nobody wants any more; one LVM call."""
        return inspect(
            self._settings,
            self._host.lvm.report(),
            self._host.export_files.all(),
            self._host.export_units.states(),
            coming={VolumeId(one.key.removeprefix(COPY)) for one in self.work() if one.key.startswith(COPY)},
        )

    # --- volumes ------------------------------------------------------------------------------------------------

    def create_volume(self, spec: VolumeSpec) -> Volume:
        """Make a volume, or return it if it is there and the same."""
        pool_settings = self._require_pool(spec.pool)
        if spec.size_bytes > self._settings.max_volume_bytes:
            raise plan.too_large(spec.volume_id, spec.size_bytes, self._settings.max_volume_bytes)
        report = self._host.lvm.report()
        found = self._find_volume(report, spec.volume_id)
        if found is not None and found[0].state is VolumeState.READY:
            plan.require_same(found[0], spec)
            # A command that made it whole may have been cut short before it activated it.
            self._ensure_active(found[1])
            return found[0]
        if found is None:
            if held := self._held(spec.volume_id):
                raise InUse(_lost_and_published(spec.volume_id, held))
            self._require_in_no_other_place(report, tags.volume_lv_name(spec.volume_id), f"volume {spec.volume_id}")
        pool = pools.view(pool_settings, report)
        self._require_no_other_copy(spec)
        if found is not None and not self._is_same_attempt(found, spec):
            # Nobody was given it: what a crash left of another attempt, or of a deletion.
            self._discard(found, report)
            found, report = None, self._host.lvm.report()
            pool = pools.view(pool_settings, report)
        source, source_lv = self._source(report, spec)
        actions = plan.plan_create(spec, pool, source, source_lv, left=found[1] if found else None)
        if any(isinstance(action, CopyRange) for action in actions):
            self._copy(spec, actions)
        else:
            self._apply(actions)
        return Volume(
            volume_id=spec.volume_id,
            pool=spec.pool,
            size_bytes=spec.size_bytes,
            device_bytes=pool.device_bytes(spec.size_bytes),
            state=VolumeState.READY,
            durability=spec.durability,
            wipe=spec.wipe,
            san=spec.san,
            source=spec.source,
            filesystem=source.filesystem if source else None,
        )

    def has_another(self, spec: VolumeSpec) -> bool:
        """Say whether a volume of this name is there, and otherwise than a request has it: then it was not made for
        that."""
        found = self._find_volume(self._host.lvm.report(), spec.volume_id)
        if found is None or found[0].state is not VolumeState.READY:
            return False
        try:
            plan.require_same(found[0], spec)
        except Conflict:
            return True
        return False

    def delete_volume(self, volume_id: VolumeId) -> None:
        """Free a volume's name; a thick one's space is wiped in the background."""
        with self._deletion(volume_id):
            report = self._host.lvm.report()
            found = self._find_volume(report, volume_id)
            held = self._held(volume_id)
            if found is None:
                if held:
                    raise InUse(_lost_and_published(volume_id, held))
                self._require_absent(report, tags.volume_lv_name(volume_id), f"volume {volume_id}")
                return
            volume, lv = found
            actions = plan.plan_delete(volume, lv, held, [one.name for one in report.volumes])
            if lv.active and self._host.blocks.open_count(lv.path) > 0:
                raise InUse(f"volume {volume_id} is open on this machine; stop what uses {lv.path} first")
            self._apply(actions)
        for action in actions:
            if isinstance(action, RenameLv):
                self._wipe(replace(volume, state=VolumeState.DELETING), replace(lv, name=action.new_name))

    @contextlib.contextmanager
    def _deletion(self, volume_id: VolumeId) -> Iterator[None]:
        """Keep copies from a volume from beginning while it is deleted. Raises: Busy when one is under way."""
        with self._allocation:
            for copy in self._copied.values():
                if volume_id in (copy.volume_id, _source_of(copy)):
                    raise Busy(
                        f"volume {_source_of(copy)} is being copied to {copy.volume_id}; ask again when that has ended"
                    )
            self._deleting.add(volume_id)
        try:
            yield
        finally:
            with self._allocation:
                self._deleting.discard(volume_id)

    def wipe_deleted(self) -> None:
        """Start to wipe every deleted volume that is not being wiped yet."""
        # Before anything is seen: what fails meanwhile is looked at again at once.
        self._wipes_due_s = time.monotonic() + _WIPES_S
        try:
            report = self._host.lvm.report()
        except AoECsiError:
            self._wipes_due_s = 0.0
            raise
        for volume, lv in self._volumes(report, lambda lv: lv.name.startswith("d-")):
            if volume.state is VolumeState.DELETING:
                self._wipe(volume, lv)

    def _wipe(self, volume: Volume, lv: LogicalVolume) -> None:
        actions = plan.plan_wipe(volume, lv)
        wipe = self._work(actions)

        def work(report: Callable[[int], None]) -> None:
            try:
                wipe(report)
            except BaseException:
                self._wipes_due_s = 0.0
                raise

        with contextlib.suppress(Unfinished):  # It runs; nobody waits for it.
            self._jobs.run(
                f"wipe/{lv.vg}/{lv.name}",
                f"wiping deleted volume {volume.volume_id}",
                len(actions),
                work,
                wait_s=0,
            )

    def expand_volume(self, volume_id: VolumeId, size_bytes: int, limit_bytes: int = 0) -> Volume:
        """Grow a volume and restart its exports."""
        if size_bytes > self._settings.max_volume_bytes:
            raise plan.too_large(volume_id, size_bytes, self._settings.max_volume_bytes)
        report = self._host.lvm.report()
        volume, lv = self._require_volume(report, volume_id)
        pool = pools.view(self._require_pool(volume.pool), report)
        self._apply(
            plan.plan_expand(
                volume, lv, pool, size_bytes=size_bytes, limit_bytes=limit_bytes, exports=self._held(volume_id)
            )
        )
        return replace(
            volume,
            size_bytes=max(volume.size_bytes, size_bytes),
            device_bytes=max(volume.device_bytes, pool.device_bytes(size_bytes)),
        )

    # --- snapshots ----------------------------------------------------------------------------------------------

    def create_snapshot(self, snapshot_id: SnapshotId, source: VolumeId) -> Snapshot:
        """Take a thin snapshot, or return it if it is there."""
        report = self._host.lvm.report()
        found = self._find_snapshot(report, snapshot_id)
        if found is not None:
            if found[0].source != source:
                raise Conflict(
                    f"snapshot {snapshot_id} exists of volume {found[0].source}, not of {source}; choose another name"
                )
            return found[0]
        self._require_in_no_other_place(report, tags.snapshot_lv_name(snapshot_id), f"snapshot {snapshot_id}")
        volume, lv = self._require_volume(report, source)
        pool = pools.view(self._require_pool(volume.pool), report)
        # Planned twice: a refusal must come before the device is read.
        plan.plan_snapshot(snapshot_id, volume, lv, pool, None)
        filesystem = self._note_filesystem(volume, lv)
        self._apply(plan.plan_snapshot(snapshot_id, volume, lv, pool, filesystem))
        return self.get_snapshot(snapshot_id)

    def delete_snapshot(self, snapshot_id: SnapshotId) -> None:
        """Remove a snapshot."""
        report = self._host.lvm.report()
        found = self._find_snapshot(report, snapshot_id)
        if found is None:
            self._require_absent(report, tags.snapshot_lv_name(snapshot_id), f"snapshot {snapshot_id}")
            return
        self._apply(plan.plan_delete_snapshot(found[1]))

    # --- grants -------------------------------------------------------------------------------------------------

    def publish(
        self, volume_id: VolumeId, node: NodeIdentity, mode: AccessMode, *, read_only: bool, block: bool
    ) -> Attachment:
        """Grant a node a volume; its export serves once this returns."""
        node_id = str(node)
        node = self._require_node(node)
        report = self._host.lvm.report()
        volume, lv = self._require_volume(report, volume_id)
        writable = mode.writes and not read_only
        if mode is AccessMode.MULTI_NODE_MULTI_WRITER and not block:
            raise Invalid(f"volume {volume_id}: two nodes may write raw block only, not a file system")
        self._ensure_active(lv)
        if not self._held(volume_id):
            self._apply(plan.plan_end_growth(volume, lv))
        filesystem = self._note_filesystem(volume, lv)
        with self._allocation:
            if writable and volume_id in map(_source_of, self._copied.values()):
                raise Busy(f"volume {volume_id} is being copied; it can be written to afterwards")
            file, start = self._allocate(volume, lv, node, mode, node_id=node_id, writable=writable, block=block)
        try:
            self._apply(start)
        except CommandFailed as error:
            # The file stands, and systemd goes on trying: the grant may yet come into force.
            raise Unfinished(
                f"volume {volume_id} is granted to node {node.name} but not served yet: {error}"
            ) from error
        return Attachment(
            volume_id=volume_id,
            transport=file.grant.transport,
            serial=file.serial,
            size_bytes=volume.size_bytes,
            filesystem=filesystem or "",
            writable=writable,
            address=file.address,
            san=file.san,
            target_mac=self._host.interface_mac(file.interface) if file.interface else None,
            device=lv.path if file.address is None else "",
        )

    def unpublish(self, volume_id: VolumeId, node: NodeName | None) -> None:
        """Revoke one node's grant, or all; proven revoked once this returns."""
        held = [file for file in self._held(volume_id) if node in (None, file.node)]
        for file in held:
            if file.address is None:
                self._revoke_local(file)
            else:
                self._apply(plan.plan_revoke(file, self._host.now_s()))
        if held:
            self._note_filesystem_if_possible(volume_id)

    def recover(self) -> None:
        """Finish what a crash cut short: half revoked exports, units without a grant, exports that do not run."""
        for file in self._host.export_files.all():
            if file.state is ExportState.REVOKING:
                self._try(plan.plan_revoke(file, self._host.now_s()))
        # Calls are served meanwhile. A file is written before its unit starts: read the other way round, a grant made
        # in between would look like a unit without one.
        states = self._host.export_units.states()
        live = {file.address for file in self._host.export_files.all() if file.state is ExportState.LIVE}
        for address, unit in states.items():
            if unit.active and address not in live:
                log.warning("export without a grant is stopped", extra={"address": str(address)})
                self._try((StopExport(address=address),))
        for wanted in live:
            if wanted is not None and (wanted not in states or not states[wanted].active):
                self._try((StartExport(address=wanted),))
        self._try_wipes()

    def tend(self) -> None:
        """Put back ingress rules that somebody flushed, and go on with wipes that have failed or were stopped.

        Raises: whatever stopped it; the next round tries again.
        """
        if self._host.ingress is not None:
            self._host.ingress.ensure([san.interface for san in self._settings.san])
        if time.monotonic() >= self._wipes_due_s:
            self.wipe_deleted()

    def start_background(self) -> None:
        """Recover, without holding up whoever starts the server, and tend from then on."""
        threading.Thread(target=self._tend_for_ever, name="engine", daemon=True).start()

    def stop_background(self) -> None:
        """Stop tending. Jobs may be cut at any time and are found again at the next start."""
        self._stop.set()

    # --- parts --------------------------------------------------------------------------------------------------

    def _tend_for_ever(self) -> None:
        for work in itertools.chain([self.recover], itertools.repeat(self.tend)):
            try:
                work()
            except AoECsiError as error:
                log.error("background work failed", extra={"error": str(error)})
            except Exception:
                log.exception("background work failed")
            if self._stop.wait(_TEND_S):
                return

    def _apply(self, actions: Iterable[Action], progress: Callable[[Action], None] | None = None) -> None:
        try:
            apply(self._host, actions, progress)
        finally:
            self.has_changed.set()

    def _ensure_active(self, lv: LogicalVolume) -> None:
        if not lv.active:
            self._apply((ActivateLv(vg=lv.vg, name=lv.name),))

    def _try(self, actions: tuple[Action, ...]) -> None:
        try:
            self._apply(actions)
        except AoECsiError as error:
            log.error("recovery step failed", extra={"error": str(error)})

    def _try_wipes(self) -> None:
        try:
            self.wipe_deleted()
        except AoECsiError as error:
            log.error("wiping could not start", extra={"error": str(error)})

    def _work(self, actions: tuple[Action, ...]) -> Callable[[Callable[[int], None]], None]:
        def work(report: Callable[[int], None]) -> None:
            done = 0

            def count(_: Action) -> None:
                nonlocal done
                done += 1
                report(done)

            self._apply(actions, count)

        return work

    def _copy(self, spec: VolumeSpec, actions: tuple[Action, ...]) -> None:
        """Copy a thick volume in the background.

        Meanwhile nobody is granted it for writing, and neither it nor the copy can be deleted. What a process leaves
        unfinished holds up nobody: whoever goes on copies from the beginning.
        """
        copy = self._work(actions)

        def work(report: Callable[[int], None]) -> None:
            with self._copying(spec):
                # What was planned with may be of before it was guarded: a deletion can have come to its end since, and
                # so can another job of this copy, which somebody may be writing to by now.
                now = self._host.lvm.report()
                made = self._find_volume(now, spec.volume_id)
                if made is not None and made[0].state is VolumeState.READY:
                    return
                self._require_volume(now, _source_of(spec))
                copy(report)

        self._jobs.run(
            f"{COPY}{spec.volume_id}",
            f"copying {_source_of(spec)} to volume {spec.volume_id}",
            len(actions),
            work,
            wait_s=_COPY_WAIT_S,
        )

    @contextlib.contextmanager
    def _copying(self, copy: VolumeSpec) -> Iterator[None]:
        """Keep a volume as it is while it is read. Raises: InUse naming its writers, Busy while it is deleted."""
        source = _source_of(copy)
        with self._allocation:
            if source in self._deleting:
                raise Busy(f"volume {source} is being deleted; choose another source")
            writers = [file.node for file in self._held(source) if file.writable]
            if writers:
                raise InUse(
                    f"volume {source} is published read-write to {', '.join(writers)}; a thick volume can be copied "
                    "only while nobody writes to it: unpublish it first"
                )
            self._copied[copy.volume_id] = copy
        try:
            yield
        finally:
            with self._allocation:
                del self._copied[copy.volume_id]

    def _require_no_other_copy(self, spec: VolumeSpec) -> None:
        """Raises: Busy when a job still makes a copy of this name that is to be another."""
        with self._allocation:
            copied = self._copied.get(spec.volume_id, spec)
        if copied != spec:
            raise Busy(
                f"volume {spec.volume_id} is being made as a copy of {_source_of(copied)}, otherwise than is asked for "
                "now; ask again when that has ended"
            )

    def _discard(self, found: tuple[Volume, LogicalVolume], report: LvmReport) -> None:
        volume, lv = found
        self._apply(plan.plan_delete(volume, lv, (), [one.name for one in report.volumes]))
        self._try_wipes()

    def _is_same_attempt(self, found: tuple[Volume, LogicalVolume], spec: VolumeSpec) -> bool:
        volume, _ = found
        if volume.state is not VolumeState.NEW:
            return False
        wanted = (spec.size_bytes, spec.pool, spec.durability, spec.wipe, spec.san, spec.source)
        return (volume.size_bytes, volume.pool, volume.durability, volume.wipe, volume.san, volume.source) == wanted

    def _source(self, report: LvmReport, spec: VolumeSpec) -> tuple[Volume | Snapshot | None, LogicalVolume | None]:
        if spec.source is None:
            return None, None
        source: Volume | Snapshot
        if isinstance(spec.source, FromSnapshot):
            snapshot = self._find_snapshot(report, spec.source.snapshot_id)
            if snapshot is None:
                lv_name = tags.snapshot_lv_name(spec.source.snapshot_id)
                self._require_absent(report, lv_name, plan.source_words(spec.source))
                raise NotFound(f"{plan.source_words(spec.source)}, source of {spec.volume_id}, does not exist")
            source, lv = snapshot
        else:
            volume, lv = self._require_volume(report, spec.source.volume_id)
            source = replace(volume, filesystem=self._note_filesystem(volume, lv))
        if source.pool != spec.pool:
            raise Invalid(
                f"{plan.source_words(spec.source)} lies in pool {source.pool!r}, {spec.volume_id} is asked for in "
                f"{spec.pool!r}; copies stay in their source's pool, ask for {source.pool!r}"
            )
        return source, lv

    def _allocate(
        self,
        volume: Volume,
        lv: LogicalVolume,
        node: NodeIdentity,
        mode: AccessMode,
        *,
        node_id: str,
        writable: bool,
        block: bool,
    ) -> tuple[ExportFile, tuple[Action, ...]]:
        """Choose and write the export file, and return it with what is left to do. Holds: the allocation lock."""
        files = self._host.export_files.all()
        held = [file for file in files if file.volume_id == volume.volume_id and file.state is not ExportState.RESTING]
        revoking = [file for file in held if file.state is ExportState.REVOKING and file.node == node.name]
        if revoking:
            raise Busy(f"volume {volume.volume_id} is being taken from node {node.name}; unpublish it to the end first")
        own = grants.find_same([file.grant for file in held], node, mode, writable=writable, block=block)
        if own is not None:
            return self._refresh(next(file for file in held if file.grant == own), node, node_id, lv)
        grants.require_admissible(volume.volume_id, [file.grant for file in held], mode, writable=writable, block=block)
        address: Address | None = None
        san: San | None = None
        former: tuple[Former, ...] = ()
        macs: tuple[Mac, ...] = ()
        if node.name != self._settings.node:
            san = self._shared_san(node, volume.san)
            macs = node.macs_on(SanName(san.name))
            noted = addresses.note_boot(files, node)
            self._apply([PutExport(file=file) for file in noted])
            files = (*noted, *(file for file in files if file.address not in {one.address for one in noted}))
            address, former = self._fresh_address(san, files, node)
        file = ExportFile(
            address=address,
            state=ExportState.LIVE,
            volume_id=volume.volume_id,
            device=lv.path,
            serial=serial_of(volume.volume_id),
            node=node.name,
            node_id=node_id,
            boot=node.boot,
            mode=mode,
            writable=writable,
            block=block,
            san=SanName(san.name) if san else None,
            interface=san.interface if san else "",
            macs=macs,
            durability=volume.durability,
            buffers=self._settings.exports.buffers,
            exporter=self._settings.exports.exporter,
            granted_s=self._host.now_s(),
            size_bytes=lv.size_bytes,
            former=former,
        )
        reserve, *start = plan.plan_publish(file)
        self._apply((reserve,))
        return file, tuple(start)

    def _fresh_address(
        self, san: San, files: Sequence[ExportFile], node: NodeIdentity
    ) -> tuple[Address, tuple[Former, ...]]:
        """Choose an address, on a shelf that nobody else on the segment answers for. Holds: the allocation lock."""
        name = SanName(san.name)
        ours = {file.address.shelf for file in files if file.address is not None and file.san == name}
        shelves = [shelf for first, last in san.shelves for shelf in range(first, last + 1)]
        taken: dict[int, tuple[Mac, ...]] = {}
        while True:
            free = [(shelf, shelf) for shelf in shelves if shelf not in taken]
            if taken and not free:
                told = "; ".join(f"shelf {shelf}: {', '.join(macs)}" for shelf, macs in sorted(taken.items()))
                raise NoSpace(
                    f"every shelf of SAN {san.name} that is still free here is answered for by another machine "
                    f"({told}); give this machine `shelves` of its own"
                )
            address, former = addresses.choose(
                free, files, node, san=name, now_s=self._host.now_s(), rest_s=self._settings.exports.rest_s
            )
            # A shelf with files was asked for when its first one was written.
            if address.shelf in ours or (name, address.shelf) in self._free_shelves:
                return address, former
            users = self._host.segments.shelf_users(san.interface, address.shelf, timeout_s=_SHELF_PROBE_S)
            if not users:
                self._free_shelves.add((name, address.shelf))
                return address, former
            log.error("shelf is used by another machine", extra={"shelf": address.shelf, "macs": list(users)})
            taken[address.shelf] = users

    def _refresh(
        self, file: ExportFile, node: NodeIdentity, node_id: str, lv: LogicalVolume
    ) -> tuple[ExportFile, tuple[Action, ...]]:
        """Bring a standing grant up to date with its node's network cards and boot."""
        if file.address is None or file.san is None:
            fresh = replace(file, boot=node.boot, node_id=node_id)
            if fresh != file:
                self._apply((PutExport(file=fresh),))
            return fresh, ()
        macs = node.macs_on(file.san)
        if not macs:
            raise Unreachable(
                f"node {node.name} is no longer on SAN {file.san}; its volume {file.volume_id} is served there"
            )
        fresh = replace(file, macs=macs, boot=node.boot, node_id=node_id)
        if macs == file.macs and file.size_bytes != UNSTARTED_BYTES:
            keep = () if fresh == file else (PutExport(file=fresh),)
            self._apply(keep)
            return fresh, (StartExport(address=file.address),)
        fresh = replace(fresh, size_bytes=lv.size_bytes)
        reserve, *restart = plan.plan_refresh(fresh)
        self._apply((reserve,))
        return fresh, tuple(restart)

    def _shared_san(self, node: NodeIdentity, wanted: SanName | None) -> San:
        ours = [san for san in self._settings.san if san.shelves and wanted in (None, san.name)]
        for san in ours:
            macs = node.macs_on(SanName(san.name))
            if len(macs) > MAX_MASK_MACS:
                raise NoSpace(
                    f"node {node.name} has {len(macs)} network cards on SAN {san.name}, an export admits "
                    f"{MAX_MASK_MACS}; list fewer in the node's configuration"
                )
            if macs:
                return san
        raise Unreachable(
            f"node {node.name} (SANs: {', '.join(san for san, _ in node.macs) or 'none'}) shares no SAN with this "
            f"storage machine ({', '.join(san.name for san in ours) or 'none'}); check both configurations"
        )

    def _require_node(self, node: NodeIdentity) -> NodeIdentity:
        """Return the node with the cards it may use."""
        if node.name == self._settings.node:
            return node
        configured = self._settings.known_macs(node.name)
        if configured is None:
            raise NotFound(f"node {node.name} is not known here; add it to `known_node` in the configuration")
        if not configured:
            return node
        return replace(node, macs=tuple(configured.items()))

    def _revoke_local(self, file: ExportFile) -> None:
        if self._host.is_staged(file.volume_id):
            raise InUse(f"volume {file.volume_id} is still staged on {file.node}; unstage it there first")
        report = self._host.lvm.report()
        found = self._find_volume(report, file.volume_id)
        if found is not None and found[1].active:
            units = self._host.export_units.states()
            ours = sum(
                1
                for other in self._held(file.volume_id)
                if other.address is not None and other.address in units and units[other.address].locked
            )
            openers = self._host.blocks.open_count(found[1].path) - ours
            if openers > 0:
                raise InUse(
                    f"volume {file.volume_id} is still open on {file.node} ({openers} openers of {file.device}); "
                    "unstage it there first"
                )
        self._apply((DropExport(file=file),))

    def _note_filesystem(self, volume: Volume, lv: LogicalVolume) -> str | None:
        """Look what file system a volume carries, and remember the first one seen in its tags."""
        if volume.filesystem is not None:
            return volume.filesystem
        if not lv.active:
            return None
        found = self._host.blocks.signature(lv.path)
        if found not in FILESYSTEMS:
            return None
        self._apply((RetagLv(vg=lv.vg, name=lv.name, add=frozenset({tags.filesystem_tag(found)}), remove=frozenset()),))
        return found

    def _note_filesystem_if_possible(self, volume_id: VolumeId) -> None:
        # Publish looks again before it grants, so a failure here loses nothing.
        try:
            found = self._find_volume(self._host.lvm.report(), volume_id)
            if found is not None and found[0].state is VolumeState.READY:
                self._note_filesystem(*found)
        except AoECsiError as error:
            log.warning("file system not looked at", extra={"volume": volume_id, "error": str(error)})

    def _require_pool(self, name: PoolName) -> Pool:
        pool = self._settings.pool_named(name)
        if pool is None:
            known = ", ".join(self.pools()) or "none"
            raise Invalid(f"pool {name!r} does not exist on this machine; its pools are: {known}")
        return pool

    def _require_volume(self, report: LvmReport, volume_id: VolumeId) -> tuple[Volume, LogicalVolume]:
        found = self._find_volume(report, volume_id)
        if found is None:
            for file in self._held(volume_id):
                raise NotFound(
                    f"volume {volume_id} is lost: published to {file.node}, but {file.device} is not there; "
                    "bring its disks back, it will not be made anew"
                )
            self._require_absent(report, tags.volume_lv_name(volume_id), f"volume {volume_id}")
        plan.require_found(found[0] if found else None, volume_id)
        assert found is not None
        return found

    def _require_absent(self, report: LvmReport, lv_name: str, what: str) -> None:
        """Check that what was not found is absent and not merely out of sight, as behind a pool that LVM does not show.

        Raises: Unreachable naming the pool or the logical volume.
        """
        for pool in self._settings.pool:
            if not pools.is_in_sight(pool, report):
                raise Unreachable(
                    f"{what} is not in sight, and neither is pool {pool.name!r}, which may hold it: "
                    f"{pools.find_problem(pool, report)}"
                )
        self._require_in_no_other_place(report, lv_name, what)
        if any(lv.name == lv_name and tags.is_ours(lv) for lv in report.volumes):
            raise Unreachable(
                f"{what} cannot be read: its logical volume {lv_name} lacks tags: lvchange --addtag puts them back; "
                "or, when nobody wants its data any more, lvremove it"
            )

    def _require_in_no_other_place(self, report: LvmReport, lv_name: str, what: str) -> None:
        """Check that no logical volume of ours outside the pools has the name of something not found: it may have been
        in one, and be so again, when the configuration names another volume group now.

        Raises: Unreachable naming it.
        """
        inside = {(lv.vg, lv.name) for lv, _ in self._members(report)}
        for lv in report.volumes:
            if lv.name == lv_name and tags.is_ours(lv) and (lv.vg, lv.name) not in inside:
                raise Unreachable(
                    f"{what} is logical volume {lv.vg}/{lv.name}, outside the pools of the configuration: name "
                    f"{lv.vg}{'/' if lv.thin_pool else ''}{lv.thin_pool} as one again, or, when nobody wants its data "
                    "any more, remove it with lvremove"
                )

    def _find_volume(self, report: LvmReport, volume_id: VolumeId) -> tuple[Volume, LogicalVolume] | None:
        name = tags.volume_lv_name(volume_id)
        return next(iter(self._volumes(report, lambda lv: lv.name == name)), None)

    def _find_snapshot(self, report: LvmReport, snapshot_id: SnapshotId) -> tuple[Snapshot, LogicalVolume] | None:
        name = tags.snapshot_lv_name(snapshot_id)
        return next(iter(self._snapshots(report, lambda lv: lv.name == name)), None)

    def _volumes(
        self, report: LvmReport, which: Callable[[LogicalVolume], bool] = lambda _: True
    ) -> list[tuple[Volume, LogicalVolume]]:
        pairs = ((tags.read_volume(lv, pool), lv) for lv, pool in self._members(report) if which(lv))
        return [(volume, lv) for volume, lv in pairs if volume is not None]

    def _snapshots(
        self, report: LvmReport, which: Callable[[LogicalVolume], bool] = lambda _: True
    ) -> list[tuple[Snapshot, LogicalVolume]]:
        pairs = ((tags.read_snapshot(lv, pool), lv) for lv, pool in self._members(report) if which(lv))
        return [(snapshot, lv) for snapshot, lv in pairs if snapshot is not None]

    def _members(self, report: LvmReport) -> Iterator[tuple[LogicalVolume, PoolName]]:
        by_place = {(pool.volume_group, pool.thin_pool): PoolName(pool.name) for pool in self._settings.pool}
        for lv in report.volumes:
            pool = by_place.get((lv.vg, lv.thin_pool))
            if pool is not None:
                yield lv, pool

    def _held(self, volume_id: VolumeId) -> list[ExportFile]:
        files = self._host.export_files.all()
        return [file for file in files if file.volume_id == volume_id and file.state is not ExportState.RESTING]


def _source_of(copy: VolumeSpec) -> VolumeId:
    assert isinstance(copy.source, FromVolume)
    return copy.source.volume_id


def _lost_and_published(volume_id: VolumeId, held: Sequence[ExportFile]) -> str:
    return (
        f"volume {volume_id} is lost (no logical volume) and still published to "
        f"{', '.join(sorted({file.node for file in held}))}; bring its disks back, or unpublish it first"
    )


def open_engine(
    settings: Settings,
    *,
    is_staged: Callable[[VolumeId], bool],
    waits_for_others: bool = True,
    enter_host: bool = False,
) -> Engine:
    """Return the engine of this machine. `is_staged`: see StorageHost.

    `waits_for_others`: see HostLvm; False for one that is only looked at. `enter_host`: see HostRunner.
    """
    runner = HostRunner(enter_host=enter_host)
    host = StorageHost(
        lvm=HostLvm(runner, waits_for_others=waits_for_others),
        blocks=HostBlockDevices(runner),
        export_files=ExportFiles(DurableFiles(Path(settings.state_directory) / "exports")),
        export_units=HostExportUnits(runner),
        segments=RawSegments(),
        ingress=NftIngressRules(runner),
        interface_mac=card_mac,
        is_staged=is_staged,
        now_s=lambda: int(time.time()),
    )
    return Engine(settings, host)
