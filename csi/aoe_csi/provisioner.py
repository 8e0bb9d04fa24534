"""What the CSI controller needs of whoever provides volumes: the engine on one machine, or a cluster's resources.

Every method is idempotent: the same call again finds what the first one made and returns the same. Errors are those
of `aoe_core.errors`; a method that may have changed something before it failed raises Unfinished or Busy, never
anything the external-provisioner would take for final.
"""

from collections.abc import Collection
from typing import Protocol

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


class Provisioner(Protocol):
    """Volumes, snapshots and grants."""

    def pools(self) -> tuple[PoolName, ...]:
        """Return the pools a volume may be asked of."""

    def sans(self) -> tuple[SanName, ...]:
        """Return the SANs volumes can be reached over, for topology."""

    def has_snapshots(self) -> bool:
        """Say whether any pool can take snapshots."""

    def create_volume(self, spec: VolumeSpec) -> Volume:
        """Make a volume, or return the one of this id if it is what the spec asks for.

        Raises: Conflict (exists otherwise), OutOfRange, NoSpace, NotFound (pool or source), Unsupported, Busy,
        Unfinished (a copy is under way; the message says how far it is).
        """

    def delete_volume(self, volume_id: VolumeId) -> None:
        """Free the volume's name and begin to wipe its space; an absent volume is deleted. Raises: InUse, Busy."""

    def get_volume(self, volume_id: VolumeId) -> VolumeStatus:
        """Return a ready volume and who holds it. Raises: NotFound."""

    def list_volumes(self) -> tuple[VolumeStatus, ...]:
        """Return every ready volume, ordered by id."""

    def expand_volume(self, volume_id: VolumeId, size_bytes: int, limit_bytes: int = 0) -> Volume:
        """Grow a volume to at least `size_bytes`. Raises: NotFound, OutOfRange, NoSpace, Busy."""

    def publish(
        self, volume_id: VolumeId, node: NodeIdentity, mode: AccessMode, *, read_only: bool, block: bool
    ) -> Attachment:
        """Grant a node the volume; in force once this returns.

        Raises: NotFound (volume or node), Conflict (this node holds it in another mode), InUse (another node holds
        it; the message names it), NoSpace (no address), Busy, Unfinished.
        """

    def unpublish(self, volume_id: VolumeId, node: NodeName | None) -> None:
        """Take the volume away from a node, or from every node; revoked once this returns. An absent grant, volume
        or node is revoked. Raises: InUse (same-host use), Busy, Unfinished."""

    def create_snapshot(self, snapshot_id: SnapshotId, source: VolumeId) -> Snapshot:
        """Take a snapshot. Raises: NotFound, Conflict (same id, other source), NoSpace, Unsupported, Busy."""

    def delete_snapshot(self, snapshot_id: SnapshotId) -> None:
        """Remove a snapshot; an absent one is removed. Raises: InUse, Busy."""

    def get_snapshot(self, snapshot_id: SnapshotId) -> Snapshot:
        """Return a ready snapshot. Raises: NotFound."""

    def list_snapshots(self) -> tuple[Snapshot, ...]:
        """Return every ready snapshot, ordered by id."""

    def capacity(self, pool: PoolName | None, sans: Collection[SanName] | None) -> Capacity:
        """Return what one pool, or all together, can still give out on any of these SANs (None: on all); zero for
        pools and SANs that are not there."""
