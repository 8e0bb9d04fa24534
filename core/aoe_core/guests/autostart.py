"""Guests that are to start with their host and could not, since their disks came later than libvirt.

A host unit that readies devices before libvirt starts (readiness) needs this program on the host. Where it comes in a
container, libvirt is first: it refuses to start a guest whose device is missing, and does not try again. So whoever
readies the devices then starts those guests: once in a boot, and only those that libvirt was to start itself.

Who may wait is written down when the boot's first process looks, before any device is readied and without libvirt,
which may be busy for minutes with the guests that it does start: those alone whose devices are not there. One that is
not to start with the host, runs, or is gone, waits no more; one that a person shuts down later is not started again.
"""

import logging
from collections.abc import Callable
from collections.abc import Set as AbstractSet

import msgspec

from aoe_core.errors import AoECsiError, NotFound
from aoe_core.guests.disk import alias_of
from aoe_core.guests.guest_disks import GuestDisks
from aoe_core.host.contracts import Domain, Hypervisor, RecordFiles

log = logging.getLogger(__name__)

_NAME = "waiting"


class Waiting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The guests that wait for their disks since a boot, or may."""

    boot: str
    domain_uuids: tuple[str, ...]


_DECODER = msgspec.json.Decoder(Waiting)


class Autostart:
    """Starts guests whose disks were late."""

    def __init__(
        self,
        boot: str,
        disks: GuestDisks,
        hypervisor: Hypervisor,
        files: RecordFiles,
        require_startable: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`boot`: tells this boot from any other. `require_startable`: called with a domain's UUID; raises when its
        guest may have gone to another host while this one was away, or when nobody can tell."""
        self._boot = boot
        self._disks = disks
        self._hypervisor = hypervisor
        self._files = files
        self._require_startable = require_startable

    def start(self) -> tuple[str, ...]:
        """Start who waits, has all its disks, and does not run. Returns: the names of those that wait on. Raises:
        Unreachable when libvirt does not answer."""
        waiting = self._waiting()
        if not waiting.domain_uuids:
            return ()
        aliases = {alias_of(record.attachment.serial) for record in self._disks.records()}
        left: dict[str, str] = {}
        for uuid in waiting.domain_uuids:
            try:
                domain = self._hypervisor.get_domain(uuid)
            except NotFound:
                continue
            if _is_kept_back(domain, aliases) and not self._started(domain):
                left[uuid] = domain.name
        if tuple(left) != waiting.domain_uuids:
            self._put(Waiting(boot=self._boot, domain_uuids=tuple(left)))
        return tuple(left.values())

    def _waiting(self) -> Waiting:
        """Return who waits in this boot, found out when it is asked for the first time."""
        known = self._read()
        if known is not None and known.boot == self._boot:
            return known
        domains = sorted({record.domain_uuid for record in self._disks.records() if not record.released})
        late = tuple(uuid for uuid in domains if not self._disks.is_ready_to_start(uuid))
        waiting = Waiting(boot=self._boot, domain_uuids=late)
        self._put(waiting)
        return waiting

    def _read(self) -> Waiting | None:
        text = self._files.read_all().get(_NAME)
        if text is None:
            return None
        try:
            return _DECODER.decode(text)
        except msgspec.MsgspecError as error:
            log.warning("who waits for a device is not known any more, and found out anew", extra={"error": str(error)})
            return None

    def _put(self, waiting: Waiting) -> None:
        self._files.write(_NAME, msgspec.json.encode(waiting).decode())

    def _started(self, domain: Domain) -> bool:
        if not self._disks.is_ready_to_start(domain.uuid):
            return False
        try:
            self._require_startable(domain.uuid)
            self._hypervisor.start(domain.uuid)
        except AoECsiError as error:
            if self._hypervisor.get_domain(domain.uuid).running:
                return True  # Somebody was quicker.
            log.warning("guest does not start", extra={"domain": domain.name, "error": str(error)})
            return False
        log.info("guest started: its disks came after libvirt", extra={"domain": domain.name})
        return True


def _is_kept_back(domain: Domain, aliases: AbstractSet[str]) -> bool:
    """Say whether libvirt would start a domain with the host, and could not for want of a disk of ours."""
    return domain.autostart and not domain.running and any(disk.alias in aliases for disk in domain.config)
