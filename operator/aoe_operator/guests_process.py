"""The guests role as a process: its host's devices readied after a boot, and work beside what kopf calls."""

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Self

import prometheus_client

from aoe_core.attach.attacher import Attacher
from aoe_core.guests.autostart import Autostart
from aoe_core.guests.guest_disks import GuestDisks
from aoe_core.guests.readiness import ready_all
from aoe_operator.background import Repeated, attempt
from aoe_operator.guests import GuestsRole

log = logging.getLogger(__name__)

_SWEEP_S = 30.0
_ORPHANS = prometheus_client.Gauge(
    "aoe_csi_guest_orphans", "Disks that guests of this host have of AoEGuestDisks that are no more, or nothing to it."
)


class GuestsProcess:
    """Everything of one host's guests but kopf. Ends with nothing let go of: guests keep their disks."""

    def __init__(
        self,
        role: GuestsRole,
        disks: GuestDisks,
        attacher: Attacher,
        autostart: Autostart,
        *,
        stop: threading.Event,
        find_change: Callable[[], str | None] = lambda: None,
        sweep_s: float = _SWEEP_S,
    ) -> None:
        """`find_change`: says what is not as it was when the process began, which then ends, to be started anew."""
        self._role = role
        self._disks = disks
        self._attacher = attacher
        self._autostart = autostart
        self._stop = stop
        self._find_change = find_change
        self._sweep_s = sweep_s
        # Each on its own: a volume whose storage node is silent holds up no other's guest.
        # Who starts guests looks first: once their devices are there, nothing tells that they waited.
        works = (self.end_if_changed, self.start_guests, self.ready, self.start_guests, self.sweep)
        self._rounds = Repeated(*works, name="sweep", every_s=sweep_s, stop=stop)
        self._is_ready = False
        self._orphans: frozenset[str] = frozenset()

    def __enter__(self) -> Self:
        self._rounds.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._rounds.__exit__()

    def end_if_changed(self) -> None:
        """End the process when it was made for what this host is no more."""
        change = self._find_change()
        if change is not None:
            log.warning("ends, to be started anew", extra={"why": change})
            self._stop.set()

    def ready(self) -> None:
        """Bring back every device that a guest may need, until all are there once; from then on the node server's
        watchdog sees to them."""
        if self._is_ready:
            return
        problems = [one for one in ready_all(self._disks, self._attacher, limit_s=self._sweep_s) if one.problem]
        for one in problems:
            log.warning("a guest's device is not ready", extra={"volume": one.volume_id, "problem": one.problem})
        self._is_ready = not problems

    def start_guests(self) -> None:
        """Start the guests whose devices came after libvirt."""
        waiting = self._autostart.start()
        if waiting:
            log.warning("guests wait for their devices", extra={"domains": list(waiting)})

    def sweep(self) -> None:
        """Mend what libvirt shows otherwise than it was left, and tell of what nobody speaks of."""
        for namespace, name in self._role.find_drifted():
            log.warning("a guest's disk is not as it was", extra={"guest_disk": f"{namespace}/{name}"})
            attempt(partial(self._role.reconcile, namespace, name), f"reconcile {namespace}/{name}")
        orphans = {one.volume_id: one for one in self._role.find_orphans()}
        _ORPHANS.set(len(orphans))
        for volume_id in sorted(orphans.keys() - self._orphans):
            record = orphans[volume_id]
            log.warning(
                "a guest has a disk of an AoEGuestDisk that is no more; when that is as it should be: aoe-csi guest "
                "detach --orphan",
                extra={"volume": volume_id, "domain": record.domain_name, "was_for": record.origin.endpoint},
            )
        self._orphans = frozenset(orphans)
