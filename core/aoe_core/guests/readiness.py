"""After a boot of this host: every device that a guest's configuration may name is brought back before libvirt starts
its guests, and within a time that the boot can bear.

All volumes at once, each tried until its storage machine answers or the time is over: storage and hypervisors may have
lost power together, and then storage is the later one. What is not ready in time stays so: libvirt refuses to start a
guest whose device is missing ("Cannot access storage file"), and no other guest waits for it.
"""

import threading
import time
from collections.abc import Collection
from concurrent.futures import Future, wait
from dataclasses import dataclass

from aoe_core.attach.attacher import Attacher
from aoe_core.errors import AoECsiError, Conflict, IdentityMismatch, Invalid
from aoe_core.guests.guest_disks import GuestDisks
from aoe_core.model import VolumeId

READY_S = 90.0
"""A storage machine that starts together with this one needs a minute or so."""
_AGAIN_S = 1.0
_FOR_GOOD = (Invalid, Conflict, IdentityMismatch)
"""What no waiting mends. Everything else passes, or may: a command that fails while the machine comes up, a device that
somebody looks at, a logical volume that is not active yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Readied:
    """What came of one volume."""

    volume_id: VolumeId
    problem: str = ""
    """A sentence; empty when its device is there."""


def ready_all(
    disks: GuestDisks, attacher: Attacher, *, limit_s: float = READY_S, but: Collection[str] = ()
) -> tuple[Readied, ...]:
    """Bring every volume's device back, or say what is wrong, within `limit_s`. Threads that the kernel holds longer
    are left behind. `but`: volumes that are left alone. Raises: CommandFailed when the records cannot be read, or the
    driver does not take its settings."""
    volumes = [one for one in disks.to_ready() if one not in but]
    if not volumes:
        return ()
    ends_s = time.monotonic() + limit_s
    _prepare(attacher, ends_s)
    futures = {volume_id: _started(disks, volume_id, ends_s) for volume_id in volumes}
    wait(futures.values(), timeout=max(0.0, ends_s - time.monotonic()) + _AGAIN_S)
    return tuple(
        future.result()
        if future.done()
        else Readied(volume_id=volume_id, problem=f"volume {volume_id} does not come up within {limit_s:g} s")
        for volume_id, future in futures.items()
    )


def _prepare(attacher: Attacher, ends_s: float) -> None:
    """Make the driver ready; a network interface may come late, and commands fail while a machine comes up."""
    while True:
        try:
            attacher.prepare()
        except AoECsiError as error:
            if isinstance(error, _FOR_GOOD) or time.monotonic() >= ends_s:
                raise
            time.sleep(_AGAIN_S)
        else:
            return


def _started(disks: GuestDisks, volume_id: VolumeId, ends_s: float) -> "Future[Readied]":
    future: Future[Readied] = Future()

    def work() -> None:
        try:
            future.set_result(_readied(disks, volume_id, ends_s))
        except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is.
            future.set_exception(error)

    threading.Thread(target=work, name=f"ready {volume_id}", daemon=True).start()
    return future


def _readied(disks: GuestDisks, volume_id: VolumeId, ends_s: float) -> Readied:
    while True:
        try:
            disks.ready(volume_id)
        except AoECsiError as error:
            if isinstance(error, _FOR_GOOD) or time.monotonic() >= ends_s:
                return Readied(volume_id=volume_id, problem=str(error))
            time.sleep(_AGAIN_S)
        else:
            return Readied(volume_id=volume_id)
