"""The host's half of a guest's disk: from a grant to the disk in the guest, and back.

Only what is granted is attached, and the grant goes only after this host's finalizer has: until then the guest may have
the disk, whatever becomes of this process, its pod or its node. A host that a guest is to move to has everything ready
and touches no domain; one that a guest has left lets go of what is its own.
"""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial

from msgspec.structs import replace

from aoe_core.errors import AoECsiError, Busy, Conflict, InUse, NotFound, Unfinished
from aoe_core.guests.disk_state import DiskState, GuestDisk
from aoe_core.guests.guest_disks import GuestDisks
from aoe_core.guests.records import RESOURCE, Bus, GuestRecord, Origin
from aoe_core.locks import Locks
from aoe_core.model import AccessMode, Attachment, VolumeId
from aoe_core.resources import conditions
from aoe_core.resources.conversion import attachment_of
from aoe_core.resources.fields import parse_quantity, quantity
from aoe_core.resources.guest_disk import (
    AoEGuestDisk,
    AoEGuestDiskStatus,
    GuestDiskStore,
    HostGrant,
    HostStatus,
    find_same,
    holder_of,
    host_finalizer,
    is_going,
    key_of,
    libvirt_guest,
    on_host,
    wanted_hosts,
    with_host,
)
from aoe_operator.guest_status import SOON_S, Teller, again_s

log = logging.getLogger(__name__)

_LET_GO_S = 20.0
"""How long one look waits for a guest to let go; the next one asks again."""
_LONGEST_TROUBLE = 1024


class GuestsRole:
    """The guests' disks of one host."""

    def __init__(
        self,
        host: str,
        disks: GuestDisks,
        store: GuestDiskStore,
        now_s: Callable[[], int] = lambda: int(time.time()),
    ) -> None:
        self._host = host
        self._disks = disks
        self._store = store
        self._finalizer = host_finalizer(host)
        self._teller = Teller(store, now_s)
        self._locks = Locks()

    def reconcile(self, namespace: str, name: str) -> float | None:
        """Bring one disk to what is wanted. Returns: when to look again, None when there is nothing to do.
        Raises: Busy, NotFound, Unreachable."""
        # Before anything is read: who waited with what he had read would act on the past.
        with self._locks.hold(f"guest disk {namespace}/{name}"):
            disk = self._store.find(namespace, name)
            if disk is None:
                return None
            if is_going(disk):
                return self._end(disk, self._detach)
            if self._host not in wanted_hosts(disk):
                return self._end(disk, self._leave)
            if not disk.status.volume:
                return None  # The cluster role says why, and calls with the volume.
            if self._finalizer not in disk.metadata.finalizers:
                disk = self._store.put_finalizers(disk, (*disk.metadata.finalizers, self._finalizer))
            return self._tried(disk, self._attach if self._host == libvirt_guest(disk).host else self._prepare)

    def find_drifted(self) -> tuple[tuple[str, str], ...]:
        """Return the disks, by namespace and name, that libvirt shows otherwise than their status says: somebody took
        one out, undefined its domain, ended a guest while it was attached to, or migrated it. Raises: Unreachable."""
        shown = {one.record.origin: one for one in self._disks.list()}
        return tuple(
            (disk.metadata.namespace, disk.metadata.name)
            for disk in self._store.list()
            if not is_going(disk) and self._has_drifted(disk, shown.get(origin_of(disk)))
        )

    def _has_drifted(self, disk: AoEGuestDisk, shown: GuestDisk | None) -> bool:
        entry = on_host(disk.status, self._host)
        if entry is None or entry.grant is None or (shown is not None and not shown.known):
            return False
        if entry.here != self._is_here(disk, shown):
            return True
        if self._host != libvirt_guest(disk).host:
            # After a boot its device is brought back here, and not before libvirt has started who is to start with it.
            is_ready = shown is not None and self._disks.is_ready_to_start(shown.record.domain_uuid)
            return not is_ready or not _is_said(disk, "Migratable")
        return not (shown is not None and shown.state is DiskState.ATTACHED and _is_said(disk, "Attached"))

    def require_startable(self, domain_uuid: str) -> None:
        """Check that a domain may be started here: that every disk of ours that it has is still to be here, and that no
        other host could have started it. Raises: InUse, Unreachable."""
        records = [one for one in self._disks.records() if one.domain_uuid == domain_uuid and one.origin.is_resource]
        disks = {origin_of(disk): disk for disk in self._store.list()} if records else {}
        for record in records:
            disk = disks.get(record.origin)
            if disk is None:
                why = f"AoEGuestDisk {record.origin.endpoint.removeprefix(RESOURCE)} is no more; see docs/runbooks.md"
            elif is_going(disk):
                why = f"AoEGuestDisk {key_of(disk)} is being deleted; start it by hand if it is to have the disk still"
            else:
                why = self._why_elsewhere(disk)
            if why:
                raise InUse(f"domain {record.domain_name} is not started on host {self._host}: {why}")

    def find_elsewhere(self) -> Mapping[Origin, str]:
        """Return the disks whose guest may be on another host by now, and why. Raises: Unreachable."""
        found = {origin_of(disk): self._why_elsewhere(disk) for disk in self._store.list() if disk.spec.libvirt}
        return {origin: why for origin, why in found.items() if why}

    def _why_elsewhere(self, disk: AoEGuestDisk) -> str:
        guest, others = libvirt_guest(disk), _others(disk, self._host)
        if guest.host != self._host:
            return f"AoEGuestDisk {key_of(disk)} says that its guest is on host {guest.host}"
        if others:
            return (
                f"the guest of AoEGuestDisk {key_of(disk)} may be on host {' or '.join(others)}, which has not given "
                "its grant back; if it is there, set libvirt.host to that; else see that libvirt.migrateTo is removed, "
                "and wait until that host has let go, or give it up: condition Released says how"
            )
        return ""

    def find_orphans(self) -> tuple[GuestRecord, ...]:
        """Return what is here for guests' disks that are no more, or nothing to this host: it was given up for lost and
        was not, or the cluster's state was put back to an earlier day. Only a person can tell one from the other, so
        nothing is detached. Raises: Unreachable."""
        known = {
            origin_of(disk)
            for disk in self._store.list()
            if self._host in wanted_hosts(disk) or self._finalizer in disk.metadata.finalizers
        }
        return tuple(one for one in self._disks.records() if one.origin.is_resource and one.origin not in known)

    # --- attach -------------------------------------------------------------------------------------------------

    def _tried(self, disk: AoEGuestDisk, act: Callable[[AoEGuestDisk], float | None]) -> float | None:
        """Do something for a disk that is wanted here, and say what became of it."""
        type_ = "Attached" if self._host == libvirt_guest(disk).host else "Migratable"
        try:
            self._require_no_other(disk)
            return act(disk)
        except Busy:
            return SOON_S
        except AoECsiError as error:
            self._teller.refuses(disk, type_, error)
            return again_s(error)

    def _require_no_other(self, disk: AoEGuestDisk) -> None:
        """Refuse a volume that this host still has for somebody else. Raises: Conflict."""
        record = self._find_record(VolumeId(disk.status.volume))
        if record is None or record.origin == origin_of(disk):
            return
        command = f"aoe-csi guest detach {record.domain_name} {record.volume_id}"
        remedy = f"by {command} --controller"
        if record.origin.is_resource:
            for_whom = record.origin.endpoint.removeprefix(RESOURCE)
            remedy = (
                f"by deleting AoEGuestDisk {for_whom}, or, when the cluster knows it no more, by {command} --orphan"
            )
        raise Conflict(
            f"host {self._host} still has volume {record.volume_id} in domain {record.domain_name}; detach it there "
            f"first, {remedy}"
        )

    def _attach(self, disk: AoEGuestDisk) -> float | None:
        entry = on_host(disk.status, self._host)
        if not disk.status.domain_uuid:
            self._admit(disk)
        elif entry is not None and entry.grant is not None:
            return self._grow(self._attached(disk, entry.grant), entry.grant)
        return None  # The cluster role calls with the grant, or says why there is none.

    def _admit(self, disk: AoEGuestDisk) -> None:
        """Say which domain it is, before the host is granted anything for it."""
        domain = self._disks.require_admissible(
            libvirt_guest(disk).domain,
            VolumeId(disk.status.volume),
            _mode(disk),
            Bus(disk.spec.bus),
            origin=origin_of(disk),
        )
        self._teller.change(disk, lambda now: replace(now, domain_uuid=domain.uuid))

    def _attached(self, disk: AoEGuestDisk, grant: HostGrant) -> AoEGuestDisk:
        """Attach what is not attached as it should be. What is stays as it is, whatever its domain is called by now."""
        volume_id = VolumeId(disk.status.volume)
        seen, attachment = self._find(disk), attachment_of(volume_id, grant)
        if seen is not None and seen.state is DiskState.ATTACHED and _is_settled(seen.record, attachment):
            record = seen.record
        else:
            try:
                record = self._disks.attach(
                    disk.status.domain_uuid,
                    attachment,
                    mode=_mode(disk),
                    bus=Bus(disk.spec.bus),
                    origin=origin_of(disk),
                    shared_with=_others(disk, self._host),
                    confirm=partial(self._require_wanted, disk, grant),
                    tell=_tell_log(disk),
                )
            except Unfinished:
                seen = self._find(disk)
                if seen is None or seen.known:
                    self._note(disk, here=self._is_here(disk, seen))
                raise
            except NotFound as error:
                if self._disks.is_defined(disk.status.domain_uuid):
                    raise  # Something else is missing: an interface, a device.
                self._note(disk, here=False)
                raise self._domain_gone(disk) from error
        disk = self._note(disk, here=True, target=record.target)
        where = f"disk {record.target} of domain {record.domain_name} on {self._host}, serial {grant.serial}"
        return self._teller.holds(disk, "Attached", where)

    def _domain_gone(self, disk: AoEGuestDisk) -> NotFound:
        guest = libvirt_guest(disk)
        others = [one.host for one in disk.status.hosts if one.host != guest.host]
        remedy = "delete this, and make another for the domain that is there"
        if others:
            # Never to be deleted while the guest may run elsewhere: it would lose the disk.
            remedy = f"if it is on host {' or '.join(others)}, set libvirt.host to that and remove libvirt.migrateTo"
        return NotFound(f"domain {guest.domain} ({disk.status.domain_uuid}) is not on host {guest.host}; {remedy}")

    def _prepare(self, disk: AoEGuestDisk) -> float | None:
        """Have everything ready for a guest that is to come, and see whether it has."""
        entry, now_on = on_host(disk.status, self._host), on_host(disk.status, libvirt_guest(disk).host)
        if entry is None or entry.grant is None:
            return None  # The cluster role says why, and calls with the grant.
        domain = libvirt_guest(disk).domain
        if any(not record.wanted for record in self._records_of(disk)):
            self._leave(disk)  # The move was called off, and called for again before that had come to its end.
        record = self._disks.prepare(
            disk.status.domain_uuid,
            domain,
            attachment_of(VolumeId(disk.status.volume), entry.grant),
            mode=_mode(disk),
            bus=Bus(disk.spec.bus),
            target=now_on.target if now_on is not None else "",
            origin=origin_of(disk),
            confirm=partial(self._require_wanted, disk, entry.grant),
        )
        here = self._is_here(disk, self._find(disk))
        disk = self._note(disk, here=here, target=record.target)
        then = f"set libvirt.host to {self._host} and remove libvirt.migrateTo"
        told = f"domain {domain} is on host {self._host} now; {then}" if here else (
            f"host {self._host} is ready: virsh migrate --live --persistent --undefinesource {domain} "
            f"qemu+ssh://{self._host}/system; then {then}"
        )  # fmt: skip
        self._teller.holds(disk, "Migratable", told)
        return None

    def _require_wanted(self, disk: AoEGuestDisk, grant: HostGrant) -> None:
        """Look once more, where nobody else can detach meanwhile: another process of this role may have come to the end
        of it, or the grant may be on its way back. Raises: Busy."""
        now = find_same(self._store, disk)
        entry = on_host(now.status, self._host) if now is not None else None
        if (
            now is None
            or entry is None
            or entry.grant != grant
            or is_going(now)
            or self._host not in wanted_hosts(now)
            or self._finalizer not in now.metadata.finalizers
        ):
            raise Busy(f"AoEGuestDisk {key_of(disk)} is not wanted on host {self._host} any more, or not as it was")

    def _note(
        self, disk: AoEGuestDisk, *, here: bool | None = None, target: str | None = None, trouble: str = ""
    ) -> AoEGuestDisk:
        """Write into this host's part of the status what is here; what is None stays."""

        def noted(now: AoEGuestDiskStatus) -> AoEGuestDiskStatus:
            entry = on_host(now, self._host) or HostStatus(host=self._host)
            told = replace(
                entry,
                here=entry.here if here is None else here,
                target=entry.target if target is None else target,
                trouble=trouble[:_LONGEST_TROUBLE],
            )
            return with_host(now, told)

        return self._teller.change(disk, noted)

    def _grow(self, disk: AoEGuestDisk, grant: HostGrant) -> float | None:
        """Tell the guest of a volume that has grown, or of which nobody knows what the guest was told."""
        size_bytes = parse_quantity(grant.size)
        if disk.status.size is not None and parse_quantity(disk.status.size) >= size_bytes:
            return None
        try:
            grown_bytes = self._disks.resize(disk.status.domain_uuid, VolumeId(disk.status.volume), size_bytes)
        except Busy:
            return SOON_S
        except AoECsiError as error:
            self._teller.refuses(disk, "Grown", error)
            return again_s(error)
        size = quantity(grown_bytes)
        message = f"its device has {size}; a running guest that may write sees it, any other from its next start on"
        self._teller.holds(disk, "Grown", message, lambda now: replace(now, size=size))
        return None

    # --- detach -------------------------------------------------------------------------------------------------

    def _end(self, disk: AoEGuestDisk, act: Callable[[AoEGuestDisk], None]) -> float | None:
        """Let go of a disk, and take this host's finalizer off."""
        if self._finalizer not in disk.metadata.finalizers:
            return None
        try:
            if is_going(disk) and self._store.is_definition_going():
                return None  # Nobody has asked for this disk's end; the cluster role lets go of all there are.
            act(disk)
        except Busy:
            return SOON_S
        except AoECsiError as error:
            self._note(disk, trouble=str(error))
            return again_s(error)
        kept = tuple(one for one in disk.metadata.finalizers if one != self._finalizer)
        self._store.put_finalizers(disk, kept)
        return None

    def _detach(self, disk: AoEGuestDisk) -> None:
        """Detach all that is here for this disk: what its record says, and not its status, which may have been put back
        to an earlier day; and what its status says, if there is no record of it."""
        for record in self._records_of(disk):
            self._disks.detach(record.domain_uuid, record.volume_id, wait_s=_LET_GO_S, tell=_tell_log(disk))
        volume_id = VolumeId(disk.status.volume)
        if on_host(disk.status, self._host) is not None and self._find_record(volume_id) is None:
            self._disks.detach(disk.status.domain_uuid, volume_id, wait_s=_LET_GO_S, tell=_tell_log(disk))

    def _leave(self, disk: AoEGuestDisk) -> None:
        """Let go of what a guest has left, or did not come for. One that runs here is not asked to let go: nobody wants
        it to lose its disk. Raises: InUse."""
        for record in self._records_of(disk):
            try:
                self._disks.detach(record.domain_uuid, record.volume_id, asking=False, tell=_tell_log(disk))
            except InUse as error:
                guest = libvirt_guest(disk)
                raise InUse(
                    f"{error}; if it is domain {guest.domain}: migrate it to {guest.host}, or set libvirt.host to "
                    f"{self._host}"
                ) from error

    # --- parts --------------------------------------------------------------------------------------------------

    def _find(self, disk: AoEGuestDisk) -> GuestDisk | None:
        """Return what is here for a disk, and how libvirt shows it: a question for each domain."""
        return next((one for one in self._disks.list() if one.record.origin == origin_of(disk)), None)

    def _is_here(self, disk: AoEGuestDisk, seen: GuestDisk | None) -> bool:
        """Say whether a guest is on this host: it runs here, or this is its host and it did not have to come first."""
        if seen is None or seen.domain is None:
            return False
        is_at_home = self._host == libvirt_guest(disk).host and not seen.record.expected
        return is_at_home or seen.has_come

    def _records_of(self, disk: AoEGuestDisk) -> tuple[GuestRecord, ...]:
        return tuple(record for record in self._disks.records() if record.origin == origin_of(disk))

    def _find_record(self, volume_id: VolumeId) -> GuestRecord | None:
        return next((record for record in self._disks.records() if record.volume_id == volume_id), None)


def origin_of(disk: AoEGuestDisk) -> Origin:
    """Return whom a record names as the one who granted its volume: this very disk, and no later one of its name."""
    return Origin(endpoint=f"{RESOURCE}{holder_of(disk)}")


def _mode(disk: AoEGuestDisk) -> AccessMode:
    assert disk.status.mode is not None, "written along with the volume"
    return disk.status.mode


def _is_settled(record: GuestRecord, attachment: Attachment) -> bool:
    """Say whether a disk that its domain has is the one that is granted, and its domain no longer on its way."""
    return not record.expected and record.attachment.address == attachment.address


def _others(disk: AoEGuestDisk, host: str) -> tuple[str, ...]:
    """Return the other hosts that a guest could run on with the disk, or does: a grant that is being revoked is gone
    from the status before its export is, and its host when that is."""
    return tuple(one.host for one in disk.status.hosts if one.host != host)


def _is_said(disk: AoEGuestDisk, type_: str) -> bool:
    said = conditions.find(disk.status.conditions, type_)
    return said is not None and said.status == "True"


def _tell_log(disk: AoEGuestDisk) -> Callable[[str], None]:
    return lambda line: log.info(line, extra={"guest_disk": key_of(disk)})
