"""A Provisioner and an Attacher that keep everything in memory, honest to the protocols' words.

They know no host; the real ones are tested on the verified fakes. `changes` counts what they changed, so that a test
can say "nothing happened". `trouble` maps a method's name to something to do when it is called: raise, or wait.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from aoe_core.errors import Conflict, InUse, NoSpace, NotFound, OutOfRange
from aoe_core.host.contracts import Usage
from aoe_core.model import (
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
    Transport,
    Volume,
    VolumeId,
    VolumeSpec,
    VolumeState,
    VolumeStatus,
    serial_of,
)
from aoe_core.units import GIB, MIB, round_up
from aoe_csi.attacher import BlockUse, Use

SAN = SanName("main")
NODE = NodeIdentity(
    name=NodeName("compute1"), boot="0badcafe", macs=((SAN, (Mac("52:54:00:00:01:15"), Mac("52:54:00:00:01:16"))),)
)
SPACE_BYTES = 100 * GIB
LARGEST_BYTES = 1024 * GIB

Trouble = dict[str, Callable[[], None]]


@dataclass
class MemoryProvisioner:
    pool_names: tuple[PoolName, ...] = (PoolName("fast"),)
    san_names: tuple[SanName, ...] = (SAN,)
    known_nodes: frozenset[NodeName] = frozenset({NODE.name, NodeName("compute2")})
    guest_nodes: frozenset[NodeName] = frozenset()
    thin: bool = True
    changes: int = 0
    trouble: Trouble = field(default_factory=dict)
    volumes: dict[VolumeId, Volume] = field(default_factory=dict)
    snapshots: dict[SnapshotId, Snapshot] = field(default_factory=dict)
    grants: dict[tuple[VolumeId, NodeName], Grant] = field(default_factory=dict)

    def _enter(self, method: str) -> None:
        if method in self.trouble:
            self.trouble[method]()

    def pools(self) -> tuple[PoolName, ...]:
        return self.pool_names

    def sans(self) -> tuple[SanName, ...]:
        return self.san_names

    def has_snapshots(self) -> bool:
        return self.thin

    def create_volume(self, spec: VolumeSpec) -> Volume:
        self._enter("create_volume")
        if spec.size_bytes > LARGEST_BYTES:
            raise OutOfRange(f"volume {spec.volume_id} of {spec.size_bytes} bytes is too large; ask for less")
        found = self.volumes.get(spec.volume_id)
        if found is not None:
            fits = found.size_bytes >= spec.size_bytes and (
                not spec.limit_bytes or found.size_bytes <= spec.limit_bytes
            )
            if (found.pool, found.durability, found.wipe, found.source, fits) != (
                spec.pool,
                spec.durability,
                spec.wipe,
                spec.source,
                True,
            ):
                raise Conflict(f"volume {spec.volume_id} exists otherwise; choose another name")
            return found
        least = 0
        match spec.source:
            case FromSnapshot(snapshot_id=snapshot_id):
                least = self.get_snapshot(snapshot_id).size_bytes
            case FromVolume(volume_id=volume_id):
                least = self.get_volume(volume_id).volume.size_bytes
        if spec.size_bytes < least:
            raise OutOfRange(f"volume {spec.volume_id} is smaller than its source; ask for {least} bytes")
        if spec.size_bytes > self.capacity(spec.pool, None).maximum_volume_bytes:
            raise NoSpace(f"pool {spec.pool} has no room for volume {spec.volume_id}; delete something")
        self.changes += 1
        self.volumes[spec.volume_id] = volume = Volume(
            volume_id=spec.volume_id,
            pool=spec.pool,
            size_bytes=spec.size_bytes,
            device_bytes=round_up(spec.size_bytes, 4 * MIB),
            state=VolumeState.READY,
            durability=spec.durability,
            reach=spec.reach,
            wipe=spec.wipe,
            source=spec.source,
        )
        return volume

    def delete_volume(self, volume_id: VolumeId) -> None:
        self._enter("delete_volume")
        if any(held == volume_id for held, _ in self.grants):
            raise InUse(f"volume {volume_id} is published; unpublish it first")
        if self.volumes.pop(volume_id, None):
            self.changes += 1

    def get_volume(self, volume_id: VolumeId) -> VolumeStatus:
        if volume_id not in self.volumes:
            raise NotFound(f"volume {volume_id} does not exist; create it")
        grants = tuple(grant for (held, _), grant in sorted(self.grants.items()) if held == volume_id)
        return VolumeStatus(volume=self.volumes[volume_id], grants=grants, guest_nodes=self.guest_nodes)

    def list_volumes(self) -> tuple[VolumeStatus, ...]:
        return tuple(self.get_volume(volume_id) for volume_id in sorted(self.volumes))

    def expand_volume(self, volume_id: VolumeId, size_bytes: int, limit_bytes: int = 0) -> Volume:
        self._enter("expand_volume")
        volume = self.get_volume(volume_id).volume
        new_bytes = max(size_bytes, volume.size_bytes)
        if new_bytes > LARGEST_BYTES or (limit_bytes and new_bytes > limit_bytes):
            raise OutOfRange(f"volume {volume_id} cannot have {new_bytes} bytes; ask for another size")
        if new_bytes - volume.size_bytes > self.capacity(None, None).available_bytes:
            raise NoSpace(f"volume {volume_id} cannot grow; delete something")
        if new_bytes != volume.size_bytes:
            self.changes += 1
        self.volumes[volume_id] = volume = replace(volume, size_bytes=new_bytes)
        return volume

    def publish(
        self, volume_id: VolumeId, node: NodeIdentity, mode: AccessMode, *, read_only: bool, block: bool
    ) -> Attachment:
        self._enter("publish")
        volume = self.get_volume(volume_id).volume
        if node.name not in self.known_nodes:
            raise NotFound(f"node {node.name} is not known; register it")
        grant = Grant(
            volume_id=volume_id,
            node=node.name,
            node_id=str(node),
            boot=node.boot,
            mode=mode,
            writable=not read_only,
            block=block,
            transport=Transport.AOE,
            san=self.san_names[0],
            macs=node.macs_on(self.san_names[0]),
            address=Address(10, len(self.grants)),
            granted_s=1,
        )
        held = self.grants.get((volume_id, node.name))
        if held is not None and (held.mode, held.writable, held.block) != (mode, not read_only, block):
            raise Conflict(f"volume {volume_id} is published on {node.name} otherwise; unpublish it first")
        others = [
            one for (one, _), one_grant in self.grants.items() if one == volume_id and one_grant.node != node.name
        ]
        if others and not mode.many_nodes:
            raise InUse(f"volume {volume_id} is published elsewhere; unpublish it there")
        if held is None:
            self.changes += 1
            self.grants[volume_id, node.name] = held = grant
        return Attachment(
            volume_id=volume_id,
            transport=Transport.AOE,
            serial=serial_of(volume_id),
            size_bytes=volume.size_bytes,
            filesystem=volume.filesystem or "",
            writable=held.writable,
            address=held.address,
            san=held.san,
        )

    def unpublish(self, volume_id: VolumeId, node: NodeName | None) -> None:
        self._enter("unpublish")
        for key in [key for key in self.grants if key[0] == volume_id and node in (None, key[1])]:
            self.changes += 1
            del self.grants[key]

    def create_snapshot(self, snapshot_id: SnapshotId, source: VolumeId) -> Snapshot:
        volume = self.get_volume(source).volume
        found = self.snapshots.get(snapshot_id)
        if found is None:
            self.changes += 1
            self.snapshots[snapshot_id] = found = Snapshot(
                snapshot_id=snapshot_id,
                source=source,
                pool=volume.pool,
                size_bytes=volume.size_bytes,
                created_s=int(time.time()),
            )
        if found.source != source:
            raise Conflict(f"snapshot {snapshot_id} is of {found.source}; choose another name")
        return found

    def delete_snapshot(self, snapshot_id: SnapshotId) -> None:
        if self.snapshots.pop(snapshot_id, None):
            self.changes += 1

    def get_snapshot(self, snapshot_id: SnapshotId) -> Snapshot:
        if snapshot_id not in self.snapshots:
            raise NotFound(f"snapshot {snapshot_id} does not exist; take it")
        return self.snapshots[snapshot_id]

    def list_snapshots(self) -> tuple[Snapshot, ...]:
        return tuple(self.snapshots[one] for one in sorted(self.snapshots))

    def capacity(self, pool: PoolName | None, sans: Collection[SanName] | None) -> Capacity:
        if pool not in (None, *self.pool_names) or (sans is not None and not set(sans) & set(self.san_names)):
            return Capacity(available_bytes=0, maximum_volume_bytes=0)
        used = sum(volume.size_bytes for volume in self.volumes.values())
        left = max(0, LARGEST_BYTES - used)
        return Capacity(available_bytes=left, maximum_volume_bytes=left)


@dataclass
class Staged:
    attachment: Attachment
    staging_path: str
    use: Use
    targets: dict[str, bool] = field(default_factory=dict)


@dataclass
class MemoryAttacher:
    """`root`, if there is one, is where target paths are really made, as a node would."""

    root: Path | None = None
    node: NodeIdentity = NODE
    changes: int = 0
    trouble: Trouble = field(default_factory=dict)
    staged: dict[VolumeId, Staged] = field(default_factory=dict)
    published_through: Attachment | None = None
    """The grant that the last publish was told of."""

    def _enter(self, method: str) -> None:
        if method in self.trouble:
            self.trouble[method]()

    def identity(self) -> NodeIdentity:
        self._enter("identity")
        return self.node

    def sans(self) -> tuple[SanName, ...]:
        return (SAN,)

    def max_volumes(self) -> int:
        return 128

    def stage(self, attachment: Attachment, staging_path: str, use: Use) -> None:
        self._enter("stage")
        found = self.staged.get(attachment.volume_id)
        if found is None:
            self.changes += 1
            self.staged[attachment.volume_id] = Staged(attachment, staging_path, use)
        elif (found.attachment, found.staging_path, found.use) != (attachment, staging_path, use):
            raise Conflict(f"volume {attachment.volume_id} is staged otherwise; unstage it first")

    def unstage(self, volume_id: VolumeId, staging_path: str) -> None:
        self._enter("unstage")
        found = self.staged.get(volume_id)
        if found is None or found.staging_path != staging_path:
            return
        if found.targets:
            raise InUse(f"volume {volume_id} is published; unpublish it first")
        self.changes += 1
        del self.staged[volume_id]

    def publish(
        self,
        volume_id: VolumeId,
        staging_path: str,
        target_path: str,
        use: Use,
        *,
        read_only: bool,
        attachment: Attachment | None = None,
    ) -> None:
        self._enter("publish")
        self.published_through = attachment
        found = self.staged.get(volume_id)
        if found is None or found.staging_path != staging_path:
            raise InUse(f"volume {volume_id} is not staged at {staging_path!r}; stage it first")
        if found.use != use or found.targets.get(target_path, read_only) != read_only:
            raise Conflict(f"volume {volume_id} is published otherwise; unpublish it first")
        if set(found.targets) - {target_path} and not use.mode.many_targets:
            raise InUse(f"volume {volume_id} is published at another path; unpublish it there")
        if target_path not in found.targets:
            self.changes += 1
        found.targets[target_path] = read_only
        if self._is_real(target_path):
            Path(target_path).mkdir(parents=True, exist_ok=True)

    def unpublish(self, volume_id: VolumeId, target_path: str) -> None:
        self._enter("unpublish")
        found = self.staged.get(volume_id)
        if found is not None and found.targets.pop(target_path, None) is not None:
            self.changes += 1
        if self._is_real(target_path) and Path(target_path).is_dir():
            Path(target_path).rmdir()

    def expand(self, volume_id: VolumeId, path: str, required_bytes: int) -> int:
        self._enter("expand")
        found = self._at(volume_id, path)
        return max(found.attachment.size_bytes, required_bytes)

    def usage(self, volume_id: VolumeId, path: str) -> Usage | int:
        self._enter("usage")
        found = self._at(volume_id, path)
        if isinstance(found.use, BlockUse):
            return found.attachment.size_bytes
        return Usage(
            total_bytes=1000,
            used_bytes=400,
            available_bytes=600,
            total_inodes=100,
            used_inodes=11,
            available_inodes=89,
        )

    def _at(self, volume_id: VolumeId, path: str) -> Staged:
        found = self.staged.get(volume_id)
        if found is None or path not in (found.staging_path, *found.targets):
            raise NotFound(f"volume {volume_id} is not at {path!r}; give a path it is published at")
        return found

    def _is_real(self, path: str) -> bool:
        return self.root is not None and Path(path).is_relative_to(self.root)
