"""What becomes of guests' disks whose definition is removed."""

from collections.abc import Callable
from functools import partial

from aoe_core.resources.guest_disk import AoEGuestDisk, GuestDiskStore, is_going
from aoe_operator.background import attempt

Reconcile = Callable[[str, str], float | None]


def give_up(disks: GuestDiskStore, reconcile: Callable[[AoEGuestDisk], Reconcile]) -> None:
    """Have disks given up that go with their definition: kopf serves no kind whose definition is going. `reconcile`:
    who sees to a disk. Raises: Unreachable."""
    if not disks.is_definition_going():
        return
    for disk in filter(is_going, disks.list()):
        namespace, name = disk.metadata.namespace, disk.metadata.name
        attempt(partial(reconcile(disk), namespace, name), f"giving up {namespace}/{name}")
