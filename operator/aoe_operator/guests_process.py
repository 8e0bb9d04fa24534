"""The guests role as a process: its host's devices readied after a boot, and work beside what kopf calls."""

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Self

import prometheus_client

from aoe_core.attach.attacher import Attacher
from aoe_core.errors import AoECsiError
from aoe_core.guests.autostart import Autostart
from aoe_core.guests.guest_disks import GuestDisks
from aoe_core.guests.readiness import ready_all
from aoe_core.guests.records import GuestRecord, Origin
from aoe_core.model import VolumeId
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
        # Who starts guests looks first: once their devices are there, nothing tells that they waited.
        starts = (self.end_if_changed, self.start_guests, self.ready, self.start_guests)
        self._starts = Repeated(*starts, name="start", every_s=sweep_s, stop=stop)
        # Apart: one disk whose storage node is silent holds up a sweep, and is to hold up no other's guest.
        self._sweeps = Repeated(self.sweep, name="sweep", every_s=sweep_s, stop=stop)
        self._is_ready = False
        self._readied: set[str] = set()
        self._orphans: frozenset[str] = frozenset()

    def __enter__(self) -> Self:
        self._starts.__enter__()
        self._sweeps.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._sweeps.__exit__()
        self._starts.__exit__()

    def end_if_changed(self) -> None:
        """End the process when it was made for what this host is no more."""
        change = self._find_change()
        if change is not None:
            log.warning("ends, to be started anew", extra={"why": change})
            self._stop.set()

    def ready(self) -> None:
        """Bring back every device that a guest may need, until all are there once; from then on the node server's
        watchdog sees to them. One whose guest may be on another host by now is not brought back: libvirt, which may be
        at its autostart still, would start the guest here as well."""
        if self._is_ready:
            return
        # Those first for which nobody is asked: the API server may be silent, and for long.
        shared = {one.volume_id: one.origin for one in self._disks.records() if self._may_be_elsewhere(one)}
        problems = self._brought_back(but=shared.keys())
        if shared:
            held_back = self._why_held_back(shared)
            problems |= held_back | self._brought_back(but=held_back.keys())
        for volume_id, problem in problems.items():
            log.warning("a guest's device is not ready", extra={"volume": volume_id, "problem": problem})
        self._is_ready = not problems

    def _brought_back(self, *, but: Collection[str]) -> dict[str, str]:
        """Bring back what is not there yet; return what is wrong, by volume."""
        problems: dict[str, str] = {}
        for one in ready_all(self._disks, self._attacher, limit_s=self._sweep_s, but={*but, *self._readied}):
            if one.problem:
                problems[one.volume_id] = one.problem
            else:
                self._readied.add(one.volume_id)
        return problems

    def _may_be_elsewhere(self, record: GuestRecord) -> bool:
        """Say whether a guest could have gone to another host: with what several may have at once. Where its devices
        are there in this boot, that has been judged."""
        is_shared = record.mode.many_nodes and record.origin.is_resource and not record.released
        return is_shared and not self._disks.is_ready_to_start(record.domain_uuid)

    def _why_held_back(self, shared: Mapping[VolumeId, Origin]) -> dict[str, str]:
        """Return the volumes whose guest may be elsewhere, and why; all of them while nobody can tell."""
        try:
            elsewhere = self._role.find_elsewhere()
        except AoECsiError as error:
            return dict.fromkeys(shared, str(error))
        return {volume_id: elsewhere[origin] for volume_id, origin in shared.items() if origin in elsewhere}

    def start_guests(self) -> None:
        """Start the guests whose devices came after libvirt."""
        waiting = self._autostart.start()
        if waiting:
            log.warning("guests wait to be started", extra={"domains": list(waiting)})

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
