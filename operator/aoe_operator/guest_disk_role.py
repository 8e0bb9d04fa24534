"""What the cluster role does for guests' disks of either kind: one call at a time for a disk, what becomes of an error,
and how a disk ends.

Two of it may run: each writes only over what it has read, and takes back what it did for a disk that was gone by then.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from aoe_core.errors import AoECsiError, Busy, NotFound
from aoe_core.locks import Locks
from aoe_core.resources.claims import ClaimStore
from aoe_core.resources.guest_access import AccessRules
from aoe_core.resources.guest_disk import (
    GRANT_FINALIZER,
    AoEGuestDisk,
    GuestDiskStore,
    find_same,
    is_going,
    is_host_finalizer,
    key_of,
)
from aoe_operator.guest_claims import GuestClaims
from aoe_operator.guest_status import SOON_S, Teller

log = logging.getLogger(__name__)

_TRIES = 8


class GuestDiskRole(ABC):
    """Guests' disks of one kind."""

    def __init__(
        self,
        disks: GuestDiskStore,
        claim_store: ClaimStore,
        *,
        rules: Callable[[], AccessRules],
        now_s: Callable[[], int] = lambda: int(time.time()),
        end_again_s: float = SOON_S,
    ) -> None:
        """`rules`: reads the administrator's list as it is now. `end_again_s`: when to look again whether a guest has
        let go."""
        self._disks = disks
        self._claims = GuestClaims(disks, claim_store)
        self._rules = rules
        self._teller = Teller(disks, now_s)
        self._end_again_s = end_again_s
        self._locks = Locks()

    def reconcile(self, namespace: str, name: str) -> float | None:
        """Bring one disk to what is wanted. Returns: when to look again, None when there is nothing to do.
        Raises: Busy, NotFound, Unreachable."""
        # Before anything is read: who waited with what he had read would act on the past.
        with self._locks.hold(f"guest disk {namespace}/{name}"):
            disk = self._disks.find(namespace, name)
            if disk is None:
                return None
            if is_going(disk):
                return self._end(disk)
            if GRANT_FINALIZER not in disk.metadata.finalizers:
                disk = self._disks.put_finalizers(disk, (*disk.metadata.finalizers, GRANT_FINALIZER))
            return self._give(disk)

    @abstractmethod
    def _give(self, disk: AoEGuestDisk) -> float | None:
        """See to it that a guest has, or gets, a disk, and say how far that is. Returns: when to look again."""

    @abstractmethod
    def _release(self, disk: AoEGuestDisk) -> None:
        """Leave nothing of a disk whose end was asked for. Raises: Unfinished until its guest has let go; Busy,
        Unreachable."""

    @abstractmethod
    def _take_back(self, disk: AoEGuestDisk) -> None:
        """Leave nothing of what was made for a disk that is gone. Raises: Busy, NotFound, Unfinished, Unreachable."""

    def _failed(
        self, disk: AoEGuestDisk, error: AoECsiError, refused: Callable[[AoEGuestDisk, AoECsiError], float]
    ) -> float | None:
        """Return when to look again after an error. `refused`: says that a disk is refused, and leaves nothing of the
        try."""
        if self._has_ended(disk):
            # Another copy of this role came to the end, and did not see what came after that.
            if not self._disks.is_definition_going():
                self._take_all_back(disk)
            return None
        return SOON_S if isinstance(error, Busy) else refused(disk, error)

    def _has_ended(self, disk: AoEGuestDisk) -> bool:
        now = find_same(self._disks, disk)
        return now is None or GRANT_FINALIZER not in now.metadata.finalizers

    def _take_all_back(self, disk: AoEGuestDisk) -> None:
        """Take back at once what others write to as well: nobody is called again for a disk that is gone."""
        for _ in range(_TRIES):
            try:
                return self._take_back(disk)
            except (Busy, NotFound):
                continue
        raise Busy(f"what was made for AoEGuestDisk {key_of(disk)} cannot be taken back: it changes all the time")

    def _end(self, disk: AoEGuestDisk) -> float | None:
        if GRANT_FINALIZER not in disk.metadata.finalizers:
            return None
        try:
            if self._disks.is_definition_going():
                # Nobody has asked for its end: finalizers go, what the guest has stays, and its claim is held.
                log.warning("its definition is going; its guest keeps the disk", extra={"guest_disk": key_of(disk)})
            else:
                self._release(disk)
        except Busy:
            return SOON_S
        except AoECsiError as error:
            self._teller.refuses(disk, "Released", error)
            return self._end_again_s
        kept = (one for one in disk.metadata.finalizers if one != GRANT_FINALIZER and not is_host_finalizer(one))
        self._disks.put_finalizers(disk, tuple(kept))
        return None
