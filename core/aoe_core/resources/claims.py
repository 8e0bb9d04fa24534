"""PersistentVolumeClaims and PersistentVolumes, as far as a guest's disk needs them.

Field names and their meanings: k8s.io/api/core/v1, PersistentVolumeClaim and PersistentVolume. How access modes become
CSI's is kubernetes-csi/external-attacher's rule, so that a volume has one mode whoever asks for it.
"""

from dataclasses import dataclass
from typing import Protocol

from aoe_core.errors import Conflict, Invalid, Unsupported
from aoe_core.model import AccessMode, VolumeId, is_derived_id
from aoe_core.resources.fields import GROUP

SELECTED_NODE = "volume.kubernetes.io/selected-node"
"""The annotation by which the scheduler says for which node a claim is to be provisioned (pkg/scheduler/framework/
plugins/volumebinding)."""
_NOBODY = "kubernetes.io/no-provisioner"
"""The provisioner of a class whose volumes are made by hand."""
_MODES = {
    "ReadWriteOnce": AccessMode.SINGLE_NODE_MULTI_WRITER,
    "ReadWriteOncePod": AccessMode.SINGLE_NODE_SINGLE_WRITER,
    "ReadWriteMany": AccessMode.MULTI_NODE_MULTI_WRITER,
    "ReadOnlyMany": AccessMode.MULTI_NODE_READER_ONLY,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A PersistentVolumeClaim as it was read."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    bound: bool
    volume_name: str
    """The PersistentVolume it is bound to, or wants to be."""
    block: bool
    """volumeMode: Block."""
    storage_class: str = ""
    selected_node: str = ""
    """The node for which a claim that waits for its first consumer is to be bound."""
    finalizers: tuple[str, ...] = ()
    deleting: bool = False

    def __str__(self) -> str:
        return f"claim {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PersistentVolume:
    """A PersistentVolume as it was read."""

    name: str
    driver: str
    """The CSI driver; empty for any other kind."""
    volume_handle: str
    claim_uid: str
    """The claim that has it."""
    access_modes: tuple[str, ...]
    read_only: bool = False
    """spec.csi.readOnly, which whoever publishes it has to heed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageClass:
    """A StorageClass as it was read."""

    name: str
    provisioner: str
    """The driver that makes volumes for its claims."""
    waits_for_consumer: bool
    """volumeBindingMode: WaitForFirstConsumer."""


class ClaimStore(Protocol):
    """Where claims are kept. Every method raises Unreachable; every change raises Busy when somebody else has changed
    the claim since it was read, and NotFound when it is gone."""

    def find_claim(self, namespace: str, name: str) -> Claim | None:
        """Return a claim, None when it is not there."""

    def find_volume(self, name: str) -> PersistentVolume | None:
        """Return a PersistentVolume, None when it is not there."""

    def find_class(self, name: str) -> StorageClass | None:
        """Return a StorageClass, None when it is not there."""

    def select_node(self, claim: Claim, node: str) -> None:
        """Have a claim that waits for its first consumer bound for a node."""

    def put_claim_finalizers(self, claim: Claim, finalizers: tuple[str, ...]) -> None:
        """Replace a claim's finalizers."""


def require_block(claim: Claim) -> None:
    """Check that a claim is a raw block device. Raises: Invalid."""
    if not claim.block:
        raise Invalid(
            f"{claim} has a file system of the cluster's (volumeMode: Filesystem), and a guest makes its own; use a "
            "claim with volumeMode: Block"
        )


def volume_of(claim: Claim, volume: PersistentVolume) -> VolumeId:
    """Return the volume of ours behind a bound claim. Raises: Invalid, Conflict."""
    if volume.claim_uid != claim.uid:
        raise Conflict(
            f"PersistentVolume {volume.name} belongs to another claim than {claim}; look at kubectl describe pv "
            f"{volume.name}"
        )
    volume_id = volume.volume_handle
    if volume.driver != GROUP or not is_derived_id(volume_id):
        raise _foreign(claim, volume.driver or "no CSI driver")
    return VolumeId(volume_id)


def require_class(claim: Claim, storage_class: StorageClass) -> None:
    """Check that nobody else makes a volume for a claim that is not bound yet. Which one it gets, if it names one or
    its class makes none, is judged when it has it. Raises: Invalid."""
    if not claim.volume_name and storage_class.provisioner not in (GROUP, _NOBODY):
        raise _foreign(claim, storage_class.provisioner or "no CSI driver")


def _foreign(claim: Claim, driver: str) -> Invalid:
    return Invalid(f"{claim} is a volume of {driver}, not of {GROUP}; use a claim of one of its StorageClasses")


def mode_of(claim: Claim, volume: PersistentVolume, *, read_only: bool) -> AccessMode:
    """Return the mode in which a volume is published for a claim. Raises: Invalid, Unsupported."""
    modes = set(volume.access_modes)
    if "ReadWriteMany" in modes:
        return _MODES["ReadWriteMany"]
    if "ReadOnlyMany" in modes:
        if modes != {"ReadOnlyMany"}:
            raise Unsupported(
                f"{claim} has access modes {' and '.join(sorted(modes))}, which CSI cannot tell apart; give it one"
            )
        if not read_only:
            raise Invalid(f"{claim} is ReadOnlyMany; say readOnly: true, or use a claim that can be written")
    known = [mode for mode in sorted(modes) if mode in _MODES]
    if not known:
        raise Unsupported(f"{claim} has access modes {sorted(modes) or 'none'}, none of which is known; give it one")
    # ReadWriteOncePod is never beside another one (Kubernetes' validation).
    return _MODES[known[0]]
