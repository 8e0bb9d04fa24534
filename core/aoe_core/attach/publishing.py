"""Publishing: a staged volume appears at a target path, as a bind of its mount or of its device node.

A target is recorded before it is mounted, so that unstage knows of it whatever happens between. Paths that are links,
of the wrong kind, or hold somebody else's mount are refused and left as they are.
"""

from dataclasses import dataclass

import msgspec

from aoe_core.attach import options
from aoe_core.attach.host import ComputeHost
from aoe_core.attach.records import BlockUse, FilesystemUse, StageRecord, StageRecords, Use
from aoe_core.attach.staged import StagedVolumes, device_path, is_read_only
from aoe_core.errors import Conflict, InUse, Invalid, NotFound
from aoe_core.model import VolumeId


@dataclass(frozen=True, slots=True, kw_only=True)
class Publishing:
    """Publishes and unpublishes. The caller holds the volume's lock."""

    host: ComputeHost
    records: StageRecords
    staged: StagedVolumes

    def publish(self, volume_id: VolumeId, staging_path: str, target_path: str, use: Use, *, read_only: bool) -> None:
        """Bind the staged volume to a target path."""
        target = self.staged.resolved(target_path)
        record = self._staged_record(volume_id, self.staged.resolved(staging_path), use)
        read_only = read_only or is_read_only(record)
        self._admit_path(target, record)
        if self._is_published(record, target, read_only=read_only):
            return
        others = self._live_targets(record, besides=target)
        self._admit_target(record, target, others, read_only=read_only)
        read_only_targets = {one for one in record.read_only_targets if one in others} | (
            {target} if read_only else set()
        )
        record = msgspec.structs.replace(
            record,
            targets=(*others, target),
            read_only_targets=tuple(sorted(read_only_targets)),
        )
        self.records.put(record)
        self._bind(record, target, read_only=read_only)

    def unpublish(self, volume_id: VolumeId, target_path: str) -> None:
        """Undo publish and remove the target path."""
        target = self.staged.resolved(target_path)
        record = self.staged.find(volume_id)
        # Before its kind is asked for: that asks the file system that is mounted there, and a dead one may not answer.
        for mount in reversed(self.staged.mounts_at(target)):
            if record is None or not self.staged.is_own(mount, record):
                raise InUse(
                    f"target path {target} has {mount.source} mounted, which is not volume {volume_id} as this node "
                    "has it on record; unmount it by hand"
                )
            self.host.mounts.unmount(target)
        kind = self.host.mounts.kind(target)
        if kind not in ("absent", "directory", "file", "block"):
            raise Invalid(f"target path {target} is a {kind} and was left alone; remove it by hand")
        self.host.mounts.remove_path(target)
        # Of one that is not staged to its end the targets are whom it is staged for: what goes on from its record.
        if record is not None and record.staged and target in record.targets:
            self._drop_target(record, target)

    # --- parts --------------------------------------------------------------------------------------------------

    def _staged_record(self, volume_id: VolumeId, staging_path: str, use: Use) -> StageRecord:
        record = self.staged.find(volume_id)
        if record is None:
            raise NotFound(f"volume {volume_id} is not staged on this node; stage it first")
        if not record.staged or record.staging_path != staging_path:
            raise InUse(
                f"volume {volume_id} is not staged at {staging_path} "
                f"({'staged at' if record.staged else 'half-staged at'} {record.staging_path}); stage it there first"
            )
        if isinstance(use, BlockUse) != isinstance(record.use, BlockUse):
            staged_as = "a block device" if isinstance(record.use, BlockUse) else "a mount"
            raise Conflict(
                f"volume {volume_id} is staged as {staged_as} and was to be published otherwise; unstage it first"
            )
        mounts = self.staged.mounts_at(record.staging_path)
        if isinstance(record.use, FilesystemUse) and not (mounts and self.staged.is_own(mounts[-1], record)):
            raise InUse(f"volume {volume_id} is no longer mounted at {record.staging_path}; stage it again")
        return record

    def _admit_path(self, target: str, record: StageRecord) -> None:
        kind = self.host.mounts.kind(target)
        fitting = ("absent", "file", "block") if isinstance(record.use, BlockUse) else ("absent", "directory")
        if kind not in fitting:
            raise Invalid(
                f"target path {target} is a {kind} and was left alone; give one that is {fitting[1]} or absent"
            )
        for mount in self.staged.mounts_at(target):
            if not self.staged.is_own(mount, record):
                raise Conflict(
                    f"target path {target} already has {mount.source} mounted; unmount it, or publish volume "
                    f"{record.attachment.volume_id} elsewhere"
                )
        if kind == "block" and not self.staged.mounts_at(target):
            raise Invalid(f"target path {target} is a device node and was left alone; give a file or an absent path")

    def _is_published(self, record: StageRecord, target: str, *, read_only: bool) -> bool:
        """Say whether an earlier call came to its end; undo a bind that was cut before it became read-only."""
        mounts = self.staged.mounts_at(target)
        if not mounts:
            return False
        if target in record.targets and (target in record.read_only_targets) != read_only:
            raise Conflict(
                f"volume {record.attachment.volume_id} is published at {target} "
                f"{'writable' if read_only else 'read-only'}; unpublish it first"
            )
        if target in record.targets and ("ro" in mounts[-1].options) == (read_only or _is_mounted_ro(record)):
            return True
        for _ in mounts:
            self.host.mounts.unmount(target)
        return False

    def _live_targets(self, record: StageRecord, *, besides: str) -> tuple[str, ...]:
        mounted = {mount.target for mount in self.host.mounts.table()}
        return tuple(one for one in record.targets if one != besides and one in mounted)

    def _admit_target(self, record: StageRecord, target: str, others: tuple[str, ...], *, read_only: bool) -> None:
        volume_id = record.attachment.volume_id
        if others and not record.use.mode.many_targets:
            raise InUse(
                f"volume {volume_id} is published at {', '.join(others)} and its mode {record.use.mode.value} allows "
                f"one path on a node; unpublish it there before {target}"
            )
        # A device has one read-only flag: a node of it cannot be writable at one path and not at another.
        if isinstance(record.use, BlockUse) and any((one in record.read_only_targets) != read_only for one in others):
            raise InUse(
                f"block volume {volume_id} is published {'writable' if read_only else 'read-only'} at "
                f"{', '.join(others)}, and a device is either; unpublish it there before {target}"
            )

    def _bind(self, record: StageRecord, target: str, *, read_only: bool) -> None:
        device = device_path(record.attachment)
        if isinstance(record.use, BlockUse):
            self.host.mounts.make_file(target)
            self.host.filesystems.set_read_only(device, read_only=read_only)
            self.host.mounts.bind(device, target, read_only=read_only)
            return
        self.host.mounts.make_directory(target)
        flags = options.bind_options(record.use) if read_only else ()
        self.host.mounts.bind(record.staging_path, target, read_only=read_only, options=flags)

    def _drop_target(self, record: StageRecord, target: str) -> None:
        left = tuple(one for one in record.targets if one != target)
        # With the last read-only target of a writable block volume its device becomes writable again; at the next
        # publish, or when it is unstaged, for neither needs the target to answer now.
        read_only_left = tuple(one for one in record.read_only_targets if one != target)
        self.records.put(msgspec.structs.replace(record, targets=left, read_only_targets=read_only_left))


def _is_mounted_ro(record: StageRecord) -> bool:
    return isinstance(record.use, FilesystemUse) and (is_read_only(record) or options.is_read_only(record.use))
