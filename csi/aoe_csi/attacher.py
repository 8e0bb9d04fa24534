"""What the CSI node server needs of the compute side of a machine: implemented by `aoe_core.attach.Attacher`."""

from typing import Protocol

from aoe_core.attach.records import BlockUse, FilesystemUse, Use
from aoe_core.host.contracts import Usage
from aoe_core.model import Attachment, NodeIdentity, SanName, VolumeId

__all__ = ["Attacher", "BlockUse", "FilesystemUse", "Use"]


class Attacher(Protocol):
    """Stages, publishes and cleans up volumes on this machine. Idempotent throughout; errors of `aoe_core.errors`."""

    def identity(self) -> NodeIdentity:
        """Return this node's name, boot and SAN MACs. Raises: Unreachable when a SAN interface is missing or down."""

    def sans(self) -> tuple[SanName, ...]:
        """Return the SANs this node is on."""

    def max_volumes(self) -> int:
        """Return how many volumes this node takes at once."""

    def stage(self, attachment: Attachment, staging_path: str, use: Use) -> None:
        """Bring the device up, prove it, and for a file system make or check it and mount it at `staging_path`.

        Raises: IdentityMismatch, Conflict (staged otherwise), Unreachable (target silent), Invalid (path), Busy.
        """

    def unstage(self, volume_id: VolumeId, staging_path: str) -> None:
        """Unmount, prove the device closed, drop record and pins. Needs no target. Raises: InUse, Unfinished."""

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
        """Bind the staged volume to a target path. `attachment`: the grant it is to be used through, if the caller
        knows it; through a former one it is not published, but staged anew. Raises: NotFound and InUse (not staged;
        held elsewhere on this node in a one-target mode), Conflict (published otherwise), Invalid (path), what stage
        raises."""

    def unpublish(self, volume_id: VolumeId, target_path: str) -> None:
        """Undo publish and remove the target path; an absent one is undone. Raises: InUse, Unfinished."""

    def expand(self, volume_id: VolumeId, path: str, required_bytes: int) -> int:
        """Let the device and its file system take the volume's new size; return the size in bytes.
        Raises: NotFound, Unreachable."""

    def usage(self, volume_id: VolumeId, path: str) -> Usage | int:
        """Return a file system's usage, or a block device's size in bytes. Raises: NotFound (also for a path that is
        not this volume's)."""
