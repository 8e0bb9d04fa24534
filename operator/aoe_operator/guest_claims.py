"""The claim of a guest's disk: whether the disk may have it, having it bound, holding it, and letting it go."""

from dataclasses import dataclass

from msgspec.structs import replace

from aoe_core.errors import Conflict, InUse, NotFound, Unfinished
from aoe_core.model import AccessMode, VolumeId, serial_of
from aoe_core.resources import claims
from aoe_core.resources.claims import SELECTED_NODE, Claim, ClaimStore
from aoe_core.resources.fields import GROUP
from aoe_core.resources.guest_disk import AoEGuestDisk, AoEGuestDiskStatus, GuestDiskStore

_CLAIM_FINALIZER = f"guest-disk.{GROUP}/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """What a disk may have, and how its hosts are granted it."""

    claim: Claim
    volume_id: VolumeId
    mode: AccessMode
    """The ticket's."""
    read_only: bool

    @property
    def use(self) -> AccessMode:
        """How a guest uses it, who may only read where its ticket does not let it write."""
        if not self.read_only:
            return self.mode
        return AccessMode.MULTI_NODE_READER_ONLY if self.mode.many_nodes else AccessMode.SINGLE_NODE_READER_ONLY

    def noted_in(self, status: AoEGuestDiskStatus, guest: str) -> AoEGuestDiskStatus:
        """Return a status that tells which volume it is, and whose: what there may be to take back is in it alone."""
        return replace(status, guest=guest, volume=self.volume_id, serial=serial_of(self.volume_id), mode=self.use)


class GuestClaims:
    """The claims that guests' disks name."""

    def __init__(self, disks: GuestDiskStore, store: ClaimStore) -> None:
        self._disks = disks
        self._store = store

    def admit(self, disk: AoEGuestDisk, *, node: str, has_it: bool) -> Admitted:
        """Return what a disk may have. `node`: where its guest is, for which a claim that waits is bound; empty when it
        is nowhere. `has_it`: whether the guest may have the volume already, so that a claim that is to go is still its.
        Raises: NotFound, Invalid, InUse, Conflict, Unsupported, Unfinished, Unreachable."""
        namespace = disk.metadata.namespace
        claim = self._store.find_claim(namespace, disk.spec.claim)
        if claim is None:
            raise NotFound(f"claim {namespace}/{disk.spec.claim} does not exist; create it, or name another one")
        if claim.deleting and not has_it:
            raise InUse(f"{claim} is being deleted; delete this too, or name another claim")
        claims.require_block(claim)
        if not claim.bound:
            self._have_bound(claim, node)
            raise Unfinished(f"{claim} is not bound yet; kubectl describe pvc -n {namespace} {claim.name} says why")
        volume = self._store.find_volume(claim.volume_name)
        if volume is None:
            raise Unfinished(f"{claim} is bound to PersistentVolume {claim.volume_name}, which is not there yet")
        volume_id, read_only = claims.volume_of(claim, volume), disk.spec.read_only or volume.read_only
        if disk.status.volume not in ("", volume_id):
            raise Conflict(
                f"{claim} is another volume now, {volume_id}, and this disk is of volume {disk.status.volume}; delete "
                "this and make another"
            )
        mode = claims.mode_of(claim, volume, read_only=read_only)
        return Admitted(claim=claim, volume_id=volume_id, mode=mode, read_only=read_only)

    def _have_bound(self, claim: Claim, node: str) -> None:
        """Be the first consumer of a claim that waits for one."""
        storage_class = self._store.find_class(claim.storage_class) if claim.storage_class else None
        if storage_class is None:
            return  # It is bound by hand, or when there is such a class.
        claims.require_class(claim, storage_class)
        if not storage_class.waits_for_consumer or (node and claim.selected_node == node):
            return
        if not node:
            raise Unfinished(
                f"{claim} is bound for the node of its first consumer, and the guest runs nowhere; start it, or use a "
                "class with volumeBindingMode: Immediate"
            )
        if claim.selected_node:
            raise InUse(
                f"{claim} is being bound for node {claim.selected_node}, for a pod there; remove that pod, or wait and "
                "see whether the volume can be reached from here too. If there is none: kubectl annotate pvc -n "
                f"{claim.namespace} {claim.name} {SELECTED_NODE}-"
            )
        self._store.select_node(claim, node)

    def hold(self, disk: AoEGuestDisk, claim: Claim) -> None:
        """Keep a claim, unless another disk has it and one of the two writes. The claim is written over what was read,
        so of two that come at once one is refused. Raises: InUse, Busy, NotFound, Unreachable."""
        ours = _finalizer_of(disk)
        others = {one for one in claim.finalizers if one.startswith(_CLAIM_FINALIZER)} - {ours}
        for other in self._disks.list() if others else ():
            if _finalizer_of(other) in others and not (_reads(other) and _reads(disk)):
                raise InUse(
                    f"{claim} is AoEGuestDisk {other.metadata.name}'s, of guest {other.status.guest}; delete that "
                    "first: two guests have one volume only when both read it"
                )
        if ours not in claim.finalizers:
            self._store.put_claim_finalizers(claim, (*claim.finalizers, ours))

    def let_go(self, disk: AoEGuestDisk) -> None:
        """Keep a disk's claim no longer. Raises: Busy, NotFound, Unreachable."""
        claim, ours = self._store.find_claim(disk.metadata.namespace, disk.spec.claim), _finalizer_of(disk)
        if claim is not None and ours in claim.finalizers:
            self._store.put_claim_finalizers(claim, tuple(one for one in claim.finalizers if one != ours))


def _reads(disk: AoEGuestDisk) -> bool:
    """Say whether a disk can do no more than read."""
    return disk.status.mode is not None and not disk.status.mode.writes


def _finalizer_of(disk: AoEGuestDisk) -> str:
    """Return the finalizer by which one guest's disk holds its claim. One each: two that shared one would have to
    agree on who takes it off."""
    return f"{_CLAIM_FINALIZER}{disk.metadata.uid}"
