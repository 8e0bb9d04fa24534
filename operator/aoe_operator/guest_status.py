"""What both roles say of a guest's disk, and how long a refusal stands before it is judged anew."""

from collections.abc import Callable

from msgspec.structs import replace

from aoe_core.errors import AoECsiError, Busy, NotFound, Unfinished, Unreachable
from aoe_core.resources import conditions
from aoe_core.resources.guest_disk import AoEGuestDisk, AoEGuestDiskStatus, GuestDiskStore, find_same, key_of

SOON_S = 1.0
LATER_S = 15.0
"""What mends a refusal, a claim, a domain, the administrator's list, tells nobody of it."""
_TRIES = 8

Change = Callable[[AoEGuestDiskStatus], AoEGuestDiskStatus]


def is_passing(error: AoECsiError) -> bool:
    """Say whether an error takes care of itself."""
    return isinstance(error, Busy | Unfinished | Unreachable)


def again_s(error: AoECsiError) -> float:
    """Return when to look again after a refusal."""
    return SOON_S if is_passing(error) else LATER_S


class Teller:
    """Writes one role's part of the status. Two roles write one status, and kopf writes beside them: each changes what
    is its own in what is there now, and writes nothing when there is nothing new to say."""

    def __init__(self, store: GuestDiskStore, now_s: Callable[[], int]) -> None:
        self._store = store
        self._now_s = now_s

    def holds(self, disk: AoEGuestDisk, type_: str, message: str, change: Change = lambda now: now) -> AoEGuestDisk:
        """Say that something holds, its type being the reason, along with a change of other fields. Returns: the disk
        as it is then. Raises: NotFound when the disk is gone, Busy, Unreachable."""
        return self._tell(disk, type_, change, holds=True, reason=type_, message=message)

    def refuses(self, disk: AoEGuestDisk, type_: str, error: AoECsiError) -> AoEGuestDisk:
        """Say that something does not hold because of an error. Raises: as `holds`."""
        return self._tell(disk, type_, lambda now: now, holds=False, reason=type(error).__name__, message=str(error))

    def forgets(self, disk: AoEGuestDisk, *types: str) -> AoEGuestDisk:
        """Say no more of what is over. Raises: as `holds`."""
        return self.change(
            disk, lambda now: replace(now, conditions=tuple(one for one in now.conditions if one.type not in types))
        )

    def change(self, disk: AoEGuestDisk, change: Change) -> AoEGuestDisk:
        """Change fields of the status. Raises: as `holds`."""
        for _ in range(_TRIES):
            status = replace(change(disk.status), observed_generation=disk.metadata.generation)
            if status == disk.status:
                return disk
            try:
                return self._store.update_status(replace(disk, status=status))
            except Busy:
                disk = self._now(disk)
        raise Busy(f"AoEGuestDisk {key_of(disk)} changes all the time; looking again")

    def _tell(
        self, disk: AoEGuestDisk, type_: str, change: Change, *, holds: bool, reason: str, message: str
    ) -> AoEGuestDisk:
        def told(status: AoEGuestDiskStatus) -> AoEGuestDiskStatus:
            said = conditions.put(
                status.conditions,
                type_,
                holds=holds,
                reason=reason,
                message=message,
                generation=disk.metadata.generation,
                now_s=self._now_s(),
            )
            # In one order, or each role would find the other's to be new.
            return replace(change(status), conditions=tuple(sorted(said, key=lambda one: one.type)))

        return self.change(disk, told)

    def _now(self, disk: AoEGuestDisk) -> AoEGuestDisk:
        now = find_same(self._store, disk)
        if now is None:
            raise NotFound(f"AoEGuestDisk {key_of(disk)} is gone")
        return now
