"""The storage role as a process: the node's resource read, its shelves claimed, and work beside what kopf calls.

It is made for one generation of its AoENode. When that changes the process ends, and whoever runs it starts it anew:
exports are units of the host and do not notice.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Self

from aoe_core import preflight
from aoe_core.errors import AoECsiError, NoSpace, Unreachable
from aoe_core.host.exports import ExportFile
from aoe_core.host.runner import HostRunner
from aoe_core.recent import RecentLook
from aoe_core.resources.events import Event, Events
from aoe_core.resources.leases import RENEW_S, WENT_BACK, LeaseStore
from aoe_core.resources.node import AoENode, Finding, Orphan, SanStatus
from aoe_core.resources.store import Store
from aoe_core.settings import Settings
from aoe_core.volumes.engine import Engine
from aoe_core.volumes.inspection import Inspection
from aoe_operator import metrics, shelves, storage_node
from aoe_operator.background import attempt
from aoe_operator.seen import Seen
from aoe_operator.storage import StorageRole

log = logging.getLogger(__name__)

_WAIT_FOR_NODE_S = 60.0
_SWEEP_EVERY = 6
_LOOK_AFTER = 7
_CHECK_EVERY = 30
"""Heartbeats."""


class StorageProcess:
    """Everything of one storage node but kopf."""

    def __init__(
        self,
        node: str,
        store: Store,
        leases: LeaseStore,
        events: Events,
        seen: Seen,
        *,
        open_engine: Callable[[Settings], Engine],
        card: Callable[[str], SanStatus],
        prepare: Callable[[Settings], None],
        check: Callable[[Settings], tuple[Finding, ...]],
        boot: str,
        machine_id: str,
        stop: threading.Event,
        heartbeat_s: float = RENEW_S,
    ) -> None:
        """`prepare` and `check` bring the host into shape, and say what it lacks.

        Raises: NotFound when there is no AoENode of this name, NoSpace when no shelf is left to claim.
        """
        self._store = store
        self._leases = leases
        self._events = events
        self._card = card
        self._boot = boot
        self._machine_id = machine_id
        self._stop = stop
        self._heartbeat_s = heartbeat_s
        self._revision = 0
        self._told_short: set[str] = set()
        self._unclaimed: tuple[Orphan, ...] = ()
        self._node = await_node(store, node)
        self._claims = shelves.ensure_claims(store, self._node, machine_id)
        self._settings = storage_node.settings_of(self._node, self._claims)
        self._check = check
        self._findings: tuple[Finding, ...] = ()
        prepare(self._settings)
        self.engine = open_engine(self._settings)
        self.role = StorageRole(node, self.engine, store, events, seen=seen, now_s=lambda: int(time.time()))
        # Each on its own: a host on which LVM hangs must go on renewing its Lease, and revoking.
        self._threads = [
            threading.Thread(target=self._repeat, args=(work, every * heartbeat_s), name=name)
            for name, work, every in (
                ("heartbeat", self.beat, 1),
                ("report", self.report, 1),
                ("sweep", self.sweep, _SWEEP_EVERY),
            )
        ]
        self._reports = 0
        # Longer than between two sweeps: while nothing happens here these are the only looks at LVM.
        self._contents = RecentLook(lambda: _contents_of(self.engine.inspect()), age_s=_LOOK_AFTER * heartbeat_s)

    def __enter__(self) -> Self:
        metrics.tell_of_storage_node()
        self.engine.start_background()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.engine.stop_background()

    def _repeat(self, work: Callable[[], None], every_s: float) -> None:
        # The sweep is for what reconciliation has left over, so it begins with a pause.
        if work != self.sweep:
            attempt(work, work.__name__)
        while not self._stop.wait(every_s):
            attempt(work, work.__name__)

    def beat(self) -> None:
        """Renew the Lease; ask for the process's end when its AoENode says something else now."""
        name = self._node.metadata.name
        revision, before = self._leases.renew_lease(name), self._revision
        self._revision = revision
        metrics.HEARTBEAT.set_to_current_time()
        if revision < before:
            log.warning(WENT_BACK)
            self._stop.set()
            return
        node = self._store.get(AoENode, name)
        if (node.metadata.uid, node.metadata.generation) != (
            self._node.metadata.uid,
            self._node.metadata.generation,
        ):
            log.warning("this node's AoENode has changed; ending, to start anew with it", extra={"node": name})
            self._stop.set()

    def report(self) -> None:
        """Write what the node has, and now and then what the host lacks, into its status."""
        if self._reports % _CHECK_EVERY == 0:
            self._findings = self._check(self._settings)
        self._reports += 1
        work = self.engine.work()
        if work or self.engine.has_changed.is_set():
            self.engine.has_changed.clear()
            self._contents.forget()
        now_s = int(time.time())
        storage_node.report(
            self._store,
            self._events,
            self._store.get(AoENode, self._node.metadata.name),
            contents=self._contents.take,
            work=work,
            claims=self._claims,
            boot=self._boot,
            card=self._card,
            findings=self._findings,
            unclaimed=self._unclaimed,
            now_s=now_s,
        )

    def sweep(self) -> None:
        """Reconcile what has changed on the host unasked, and look for what nobody speaks of."""
        self.role.let_go()
        there = self._contents.renew(self.engine.inspect, _contents_of)
        self.claim_more(there.exports)
        drifted = self.role.find_drifted(there)
        self._unclaimed = self.role.find_unclaimed(there)
        for name in drifted:
            log.warning("volume is not as it was", extra={"volume": name})
            try:
                self.role.reconcile_volume(name)
            except AoECsiError as error:
                log.warning("volume is looked at again later", extra={"volume": name, "error": str(error)})

    def claim_more(self, files: Collection[ExportFile]) -> None:
        """Claim a further shelf where addresses run short, and ask for the process's end, to start anew with it."""
        rest_s = self._settings.exports.rest_s
        short = shelves.find_short(self._claims, files, now_s=int(time.time()), rest_s=rest_s)
        for san in (one for one in self._node.spec.sans if one.name in short):
            try:
                claim = shelves.claim_shelf(self._store, self._node, san, self._machine_id)
            except NoSpace as error:
                if san.name not in self._told_short:
                    self._told_short.add(san.name)
                    message = f"few addresses are left on SAN {san.name}, and {error}"
                    self._events.post(self._node, Event(reason="FewAddresses", message=message, is_warning=True))
                continue
            log.warning("addresses ran short; a further shelf is claimed", extra={"shelf": claim.metadata.name})
            self._stop.set()


def _contents_of(there: Inspection) -> storage_node.Contents:
    metrics.show_inspection(there)
    return storage_node.contents_of(there)


def await_node(store: Store, name: str) -> AoENode:
    """Return this node's AoENode, waiting a while for somebody to make it. Raises: NotFound."""
    found = store.await_(AoENode, name, lambda node: node, timeout_s=_WAIT_FOR_NODE_S)
    return found if found is not None else store.get(AoENode, name)


def card_status(interface: str) -> SanStatus:
    """Return a network card as /sys shows it; one that is not there has no address and no link."""
    base = Path("/sys/class/net") / interface

    def read(name: str) -> str:
        try:
            return (base / name).read_text(encoding="ascii").strip()
        except OSError:
            # Also what the kernel answers for the carrier of a card that is down.
            return ""

    mac = read("address")
    return SanStatus(
        name="",
        interface=interface,
        macs=(mac,) if mac else (),
        mtu=int(read("mtu") or 0),
        up=read("operstate") in ("up", "unknown") and bool(mac),
    )


def machine_id(runner: HostRunner) -> str:
    """Return the machine ID of the host, see machine-id(5). Raises: Unreachable when it has none, CommandFailed."""
    said = runner.run(["cat", "/etc/machine-id"], timeout_s=10)
    if not re.fullmatch(r"[0-9a-f]{32}", found := said.stdout.strip()):
        raise Unreachable("this host has no machine ID in /etc/machine-id; let systemd-machine-id-setup make one")
    return found


def find_lacks(runner: HostRunner, settings: Settings) -> tuple[Finding, ...]:
    """Return what preflight finds amiss on this machine."""
    return tuple(
        Finding(
            check=one.check,
            severity="error" if one.severity is preflight.Severity.FAILURE else "warning",
            fact=one.fact[:1024],
            remedy=one.remedy[:1024],
        )
        for one in preflight.run(settings, runner, shared=True)
        if one.severity is not preflight.Severity.OK
    )
