"""Volumes attached to guests of this host, and detached again: what `aoe-csi guest` calls.

Each call looks, plans, does, and looks again; nothing is remembered but the record. A call that was killed anywhere is
made again, or its opposite, and finds its way. A device is let go of only when no domain of this host has it.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import msgspec

from aoe_core.attach.attacher import Attacher
from aoe_core.attach.records import BlockUse, StageRecord
from aoe_core.attach.staged import device_path
from aoe_core.errors import (
    AoECsiError,
    Busy,
    CommandFailed,
    Conflict,
    InUse,
    NoSpace,
    NotFound,
    Unfinished,
    Unreachable,
)
from aoe_core.guests import plan
from aoe_core.guests.admission import (
    require_admissible,
    require_come,
    require_grant,
    require_origin,
    require_room,
    require_stage_for_guests,
)
from aoe_core.guests.disk import alias_of, disk_of, find_disk, free_target, users_of
from aoe_core.guests.disk_state import GuestDisk
from aoe_core.guests.host import GuestHost
from aoe_core.guests.records import Bus, GuestRecord, GuestRecords, Origin, records_of
from aoe_core.guests.release import LET_GO_S, Tell, await_closed, await_release, silently
from aoe_core.host.blocking import BlockingCalls
from aoe_core.host.contracts import Domain, DomainDisk
from aoe_core.host.device_links import HostDeviceLinks
from aoe_core.host.libvirt import LibvirtHypervisor
from aoe_core.host.lock_files import LockFiles
from aoe_core.host.runner import HostRunner
from aoe_core.locks import Locks
from aoe_core.model import AccessMode, Attachment, Transport, VolumeId, serial_of
from aoe_core.settings import Settings

_ROUNDS = 8
"""How often a call is planned anew because the domain changed under it; three are what a detach takes."""
_CLOSE_LOOKS = 10
"""How often a device that should be closed is looked at."""
_CLOSE_LOOK_S = 0.2
_NOBODY = Origin()


def _nothing() -> None:
    """Neither give anything back nor ask again."""


class GuestDisks:
    """The disks of this host's guests."""

    def __init__(self, settings: Settings, attacher: Attacher, host: GuestHost) -> None:
        self._state = settings.state_directory
        self._attacher = attacher
        self._host = host
        self._locks = Locks(host.locks)
        self._records = GuestRecords(host.record_files)

    # --- the calls ----------------------------------------------------------------------------------------------

    def attach(
        self,
        domain_name: str,
        attachment: Attachment,
        *,
        mode: AccessMode = AccessMode.SINGLE_NODE_WRITER,
        bus: Bus = Bus.VIRTIO,
        origin: Origin = _NOBODY,
        shared_with: Sequence[str] = (),
        confirm: Callable[[], None] = _nothing,
        tell: Tell = silently,
    ) -> GuestRecord:
        """Make a granted volume a disk of a domain, now if it runs and from its next start on if it has a
        configuration; return the record, which has the target. `origin`: who granted it. `shared_with`: the other hosts
        that have a grant. `confirm`: asked before anything is done, while no other process can detach it; raises when
        it is wanted no more.

        Raises: NotFound (no such domain), InUse (another domain's, or staged for something else), Conflict (there
        otherwise, or its serial is taken), NoSpace (no free slot), what `Attacher.stage` raises, Busy, Unfinished (also
        when it is to come from another host and has not).
        """
        volume_id = attachment.volume_id
        with self._holding(volume_id):
            confirm()
            domain, earlier = self._admitted(domain_name, volume_id, mode, bus, origin=origin, attachment=attachment)
            require_grant(attachment, mode, earlier)
            require_come(domain, volume_id, earlier, shared_with)
            self._require_closed(attachment, mode)
            if earlier is not None and not earlier.wanted and earlier.asked is not False:
                # It would let go after we said that it has it. One that was never asked keeps it.
                self._await_release(volume_id, earlier.domain_uuid, alias_of(attachment.serial), tell=tell)
            record = self._recorded(domain, attachment, earlier, mode=mode, bus=bus, origin=origin)
            self._attach(record, tell)
            return record

    def prepare(
        self,
        domain_uuid: str,
        domain_name: str,
        attachment: Attachment,
        *,
        mode: AccessMode,
        bus: Bus = Bus.VIRTIO,
        target: str = "",
        origin: Origin = _NOBODY,
        confirm: Callable[[], None] = _nothing,
    ) -> GuestRecord:
        """Have a granted volume ready for a domain that is to come from another host by live migration: its device and
        its link, so that libvirt finds here what the domain's XML names. No domain is touched.

        Args: `target`: as the domain has it where it is; `origin`, `confirm`: as for `attach`. Raises: InUse (a domain
        of this host has the volume, or it is staged for something else), Conflict (on record for another domain, or
        through another grant), what `Attacher.stage` raises, Busy.
        """
        volume_id = attachment.volume_id
        with self._holding(volume_id):
            confirm()
            earlier = self._expectable(
                domain_uuid, domain_name, volume_id, mode, bus, origin=origin, attachment=attachment
            )
            require_grant(attachment, mode, earlier)
            record = earlier or GuestRecord(
                attachment=attachment,
                domain_uuid=domain_uuid,
                domain_name=domain_name,
                bus=bus,
                mode=mode,
                target=target,
                wanted=True,
                expected=True,
                origin=origin,
            )
            self._records.put(record)
            self._stage(record)
            self._link(record)
            if record.attachment.size_bytes < attachment.size_bytes:
                # It has grown since it was made ready, and a guest that comes has been told so.
                self._attacher.expand(volume_id, self.staging_path(volume_id), attachment.size_bytes)
                record = msgspec.structs.replace(record, attachment=attachment)
                self._records.put(record)
            return record

    def detach(
        self,
        domain_name: str,
        volume_id: VolumeId,
        *,
        give_back: Callable[[], None] = _nothing,
        asking: bool = True,
        wait_s: float = LET_GO_S,
        tell: Tell = silently,
    ) -> None:
        """Take a volume from a domain, let go of its device, and have its grant given back; what is gone already is
        detached. The record goes last: whoever is killed before `give_back` ended, or whom it refuses, calls again.
        `asking`: ask a guest that runs with it to let go; else it is refused, and nothing has been done.

        Raises: Conflict (it is another domain's), InUse (another domain has it too; still open; runs and is not to be
        asked), Unfinished (the guest keeps it: call again), Unreachable (libvirt does not answer), Busy; what
        `give_back` raises.
        """
        with self._holding(volume_id):
            record = self._records.find(volume_id)
            uuid = self._uuid_to_leave(domain_name, volume_id, record)
            if record is None or not record.released:
                if not asking:
                    self._require_not_running(volume_id, record, uuid)
                self._detach(volume_id, record, uuid, asking=asking, wait_s=wait_s, tell=tell)
            give_back()
            self._records.drop(volume_id)

    def resize(self, domain_name: str, volume_id: VolumeId, size_bytes: int, *, tell: Tell = silently) -> int:
        """Let the device and the running guest take the size that the volume has on its storage node; return the
        device's bytes. QEMU resizes no read-only disk: the guest keeps the size it has.

        Raises: NotFound, Conflict (another domain's), what `Attacher.expand` raises, Busy.
        """
        with self._holding(volume_id):
            record = self._records.find(volume_id)
            domain = self._require_disk(domain_name, volume_id, record)
            grown_bytes = self._attacher.expand(volume_id, self.staging_path(volume_id), size_bytes)
            # Once more: a guest that started meanwhile may have opened the device before it grew.
            domain = self._host.hypervisor.get_domain(domain.uuid)
            disk = find_disk(domain.live, alias_of(serial_of(volume_id)))
            if disk is not None and disk.read_only:
                tell(f"disk {disk.target} is read-only, so the guest sees its new size once it is attached anew")
            elif disk is not None:
                self._host.hypervisor.resize(domain.uuid, disk.target, grown_bytes)
                tell(f"the guest sees the new size of {disk.target}; grow the file system in it")
            return grown_bytes

    def require_admissible(
        self, domain_name: str, volume_id: VolumeId, mode: AccessMode, bus: Bus, *, origin: Origin = _NOBODY
    ) -> Domain:
        """Check what `attach` checks as far as that needs no grant: a refusal must not leave one. Return the domain.
        Raises: as attach."""
        with self._holding(volume_id):
            domain, _ = self._admitted(domain_name, volume_id, mode, bus, origin=origin)
            return domain

    def require_expectable(
        self,
        domain_uuid: str,
        domain_name: str,
        volume_id: VolumeId,
        mode: AccessMode,
        bus: Bus,
        *,
        origin: Origin = _NOBODY,
    ) -> None:
        """Check what `prepare` checks as far as that needs no grant: a refusal must not leave one. Raises: as
        prepare."""
        with self._holding(volume_id):
            self._expectable(domain_uuid, domain_name, volume_id, mode, bus, origin=origin)

    def has(self, domain_name: str, volume_id: VolumeId) -> bool:
        """Say whether a volume is on record here for a domain: attached, ready for it to come, or not yet let go of, so
        that it may be in use through its grant. Raises: NotFound when there is no such domain."""
        record = self._records.find(volume_id)
        domain = self._host.hypervisor.get_domain(domain_name)
        return record is not None and not record.released and record.domain_uuid == domain.uuid

    def is_defined(self, domain_uuid: str) -> bool:
        """Say whether there is a domain of a UUID, running or not. Raises: Unreachable."""
        return self._find_domain(domain_uuid) is not None

    def require_not_arrived(self, volume_id: VolumeId) -> None:
        """Check that a guest which a volume was made ready for has not come: who calls its move off does not mean it to
        lose its disk. Raises: InUse, Unreachable."""
        record = self._records.find(volume_id)
        domain = self._find_domain(record.domain_uuid) if record is not None and record.expected else None
        if domain is not None and find_disk(domain.live, alias_of(serial_of(volume_id))) is not None:
            raise InUse(
                f"domain {domain.name} has come to this host with volume {volume_id}, and would lose it; attach it "
                "here, and then detach it if it is to go"
            )

    def require_disk(self, domain_name: str, volume_id: VolumeId) -> None:
        """Check that a volume is a disk of a domain. Raises: NotFound, Conflict."""
        self._require_disk(domain_name, volume_id, self._records.find(volume_id))

    def require_origin(self, volume_id: VolumeId, asked: Origin) -> None:
        """Check that a storage machine is the one that granted a volume, if it is on record. Raises: Conflict."""
        require_origin(self._records.find(volume_id), asked)

    def require_orphan(self, volume_id: VolumeId) -> None:
        """Check that a volume is here for an AoEGuestDisk, whose end a person vouches for. Raises: Conflict."""
        record = self._records.find(volume_id)
        if record is not None and not record.origin.is_resource:
            raise Conflict(
                f"volume {volume_id} is not here for an AoEGuestDisk; detach it without --orphan, so that its grant is "
                "given back"
            )

    def records(self) -> tuple[GuestRecord, ...]:
        """Return every record, without asking libvirt anything."""
        return self._records.all()

    def list(self) -> tuple[GuestDisk, ...]:
        """Return every recorded disk, and what libvirt says of it if it answers."""
        known = True
        domains: dict[str, Domain] = {}
        try:
            domains = {domain.uuid: domain for domain in self._host.hypervisor.domains()}
        except (Unreachable, CommandFailed):
            known = False
        return tuple(
            GuestDisk(
                record=record,
                device=device_path(record.attachment),
                domain=domains.get(record.domain_uuid),
                known=known,
            )
            for record in self._records.all()
        )

    # --- after a boot -------------------------------------------------------------------------------------------

    def to_ready(self) -> tuple[VolumeId, ...]:
        """Return the volumes that a domain may name as its disks: every one on record but those proven gone, for what a
        detach has not come to the end of may still be in a configuration."""
        return tuple(one.volume_id for one in self._records.all() if not one.released)

    def ready(self, volume_id: VolumeId) -> None:
        """Bring a recorded volume's device and link back after a boot, without asking libvirt: its domains wait for
        it. One that nobody wants any more is ready. Raises: what `Attacher.stage` raises, Busy."""
        with self._holding(volume_id):
            record = self._records.find(volume_id)
            if record is not None and not record.released:
                self._stage(record)
                self._link(record)

    def is_ready_to_start(self, domain_uuid: str) -> bool:
        """Say whether every recorded disk of a domain has its device, proven in this boot."""
        links = self._host.links.all()
        return all(
            links.get(record.volume_id) == device_path(record.attachment)
            for record in self._records.all()
            if record.domain_uuid == domain_uuid and not record.released
        )

    def staging_path(self, volume_id: VolumeId) -> str:
        """Return where a guest's volume is staged: a path of its own, by which nobody else's is mistaken for it."""
        return f"{self._state}/guests/staging/{volume_id}"

    # --- before anything changes --------------------------------------------------------------------------------

    def _admitted(
        self,
        domain_name: str,
        volume_id: VolumeId,
        mode: AccessMode,
        bus: Bus,
        *,
        origin: Origin,
        attachment: Attachment | None = None,
    ) -> tuple[Domain, GuestRecord | None]:
        """Return the domain, and the record of the volume that an attach goes on from."""
        domain = self._host.hypervisor.get_domain(domain_name)
        earlier, users = self._known(volume_id, origin, attachment)
        require_admissible(domain, volume_id, mode, bus, earlier=earlier, users=users)
        self._require_stage_for_guests(volume_id)
        return domain, earlier

    def _expectable(
        self,
        domain_uuid: str,
        domain_name: str,
        volume_id: VolumeId,
        mode: AccessMode,
        bus: Bus,
        *,
        origin: Origin,
        attachment: Attachment | None = None,
    ) -> GuestRecord | None:
        """Return the record of the volume that a prepare goes on from."""
        earlier, users = self._known(volume_id, origin, attachment)
        require_room(volume_id, domain_uuid, domain_name, mode, bus, earlier=earlier, users=users)
        self._require_stage_for_guests(volume_id)
        if earlier is not None and not earlier.wanted:
            raise InUse(
                f"volume {volume_id} is being detached from domain {earlier.domain_name} of this host; detach it to "
                "the end first"
            )
        return earlier

    def _known(
        self, volume_id: VolumeId, origin: Origin, attachment: Attachment | None
    ) -> tuple[GuestRecord | None, tuple[Domain, ...]]:
        """Return the record of a volume, and every domain that has it. `attachment`: the grant, once there is one.
        Raises: as `_earlier`."""
        earlier = self._earlier(volume_id, origin)
        known = attachment or (earlier.attachment if earlier is not None else None)
        return earlier, self._users(volume_id, alias_of(serial_of(volume_id)), known)

    def _earlier(self, volume_id: VolumeId, origin: Origin) -> GuestRecord | None:
        """Return the record that an attach goes on from. Raises: Conflict (another one granted it)."""
        record = self._records.find(volume_id)
        require_origin(record, origin)
        # Of one that is released only a grant is left: this one, or one that has been given back.
        return None if record is not None and record.released else record

    def _require_stage_for_guests(self, volume_id: VolumeId) -> None:
        require_stage_for_guests(volume_id, self._find_staged(volume_id), self.staging_path(volume_id))

    def _require_closed(self, attachment: Attachment, mode: AccessMode) -> None:
        """Check that nobody has a local volume open that no guest has yet; over the wire staging sees to that. Somebody
        who only looks, as udev does, has soon gone. Raises: InUse."""
        staged = self._find_staged(attachment.volume_id)
        if attachment.transport is not Transport.LOCAL or mode.many_nodes or (staged is not None and staged.staged):
            return
        for _ in range(_CLOSE_LOOKS):
            if not self._attacher.is_open(attachment):
                return
            self._host.sleep(_CLOSE_LOOK_S)
        raise InUse(
            f"{attachment.device} of volume {attachment.volume_id} is open on this host, and no guest has it from this "
            "driver; find out with fuser -v or dmsetup ls --tree who has it, and end that first"
        )

    def _require_disk(self, domain_name: str, volume_id: VolumeId, record: GuestRecord | None) -> Domain:
        if record is None or not record.wanted:
            raise NotFound(f"volume {volume_id} is no disk of a guest of this host; attach it first")
        domain = self._host.hypervisor.get_domain(record.domain_uuid)
        if domain_name != domain.name and domain_name.lower() != domain.uuid:
            raise Conflict(f"volume {volume_id} is a disk of domain {domain.name}, not of {domain_name}; name that one")
        return domain

    def _require_not_running(self, volume_id: VolumeId, record: GuestRecord | None, uuid: str | None) -> None:
        """Check that no running guest has a volume that it is not to be asked for. Raises: InUse, Unreachable."""
        domain = self._find_domain(uuid) if uuid is not None else None
        alias = alias_of(record.attachment.serial if record else serial_of(volume_id))
        if domain is not None and find_disk(domain.live, alias) is not None:
            raise InUse(f"domain {domain.name} runs on this host with volume {volume_id}")

    def _recorded(
        self,
        domain: Domain,
        attachment: Attachment,
        earlier: GuestRecord | None,
        *,
        mode: AccessMode,
        bus: Bus,
        origin: Origin,
    ) -> GuestRecord:
        """Choose a target, and write the record unless the disk is there as another. Two that attach to one domain must
        not choose the same target."""
        alias = alias_of(attachment.serial)
        with self._locks.hold(f"targets of domain {domain.uuid}"):
            domain = self._host.hypervisor.get_domain(domain.uuid)
            disks = (*domain.live, *domain.config)
            there = find_disk(disks, alias)
            others = {disk.target for disk in disks if disk.alias != alias}
            if there is not None:
                target = there.target
            elif earlier is not None and earlier.target and earlier.target not in others:
                target = earlier.target
            else:
                records = self._records.all()
                target = free_target(domain, bus, {one.target for one in records if one.domain_uuid == domain.uuid})
            record = GuestRecord(
                attachment=attachment,
                domain_uuid=domain.uuid,
                domain_name=domain.name,
                bus=bus,
                mode=mode,
                target=target,
                wanted=True,
                origin=origin if origin.node or earlier is None else earlier.origin,
            )
            plan.plan_attach(disk_of(record, self._host.links.path(record.volume_id)), domain)
            self._records.put(record)
            return record

    def _uuid_to_leave(self, domain_name: str, volume_id: VolumeId, record: GuestRecord | None) -> str | None:
        """Return the UUID of the domain that is to lose a volume, None when there is no such domain.

        Names move from domain to domain: the one on record counts only while no domain has it.
        """
        named = self._find_domain(domain_name)
        if record is None:
            self._require_stage_for_guests(volume_id)
            return named.uuid if named is not None else None
        meant = named.uuid if named is not None else domain_name.lower()
        if meant != record.domain_uuid and (named is not None or domain_name != record.domain_name):
            raise Conflict(
                f"volume {volume_id} is a disk of the domain with UUID {record.domain_uuid}, which was called "
                f"{record.domain_name}, and not of {domain_name}; give that UUID"
            )
        return record.domain_uuid

    # --- doing --------------------------------------------------------------------------------------------------

    def _attach(self, record: GuestRecord, tell: Tell) -> None:
        disk = disk_of(record, self._host.links.path(record.volume_id))
        refused: AoECsiError | None = None
        for _ in range(_ROUNDS):
            domain = self._host.hypervisor.get_domain(record.domain_uuid)
            steps = plan.plan_attach(disk, domain)
            if refused is not None and plan.is_attached(disk, domain):
                return  # It was refused since the guest ended, or since somebody had done it.
            try:
                for action in steps:
                    self._do(action, record.volume_id, disk.alias, record)
            except (Conflict, InUse, CommandFailed, NotFound, NoSpace) as error:
                if self._host.hypervisor.get_domain(record.domain_uuid) == domain:
                    raise _explained(error, domain, disk) from error
                refused = error
                continue
            domain = self._host.hypervisor.get_domain(record.domain_uuid)
            if plan.is_attached(disk, domain):
                return
            tell(f"domain {domain.name} changed meanwhile; looking again")
        raise Unfinished(
            f"domain {record.domain_name} keeps changing while volume {record.volume_id} is attached "
            f"({refused or 'its disk did not stay'}); call again"
        )

    def _detach(
        self,
        volume_id: VolumeId,
        record: GuestRecord | None,
        uuid: str | None,
        *,
        asking: bool,
        wait_s: float,
        tell: Tell,
    ) -> None:
        if record is not None and record.wanted:
            self._records.put(msgspec.structs.replace(record, wanted=False, asked=False))
        alias = alias_of(record.attachment.serial if record else serial_of(volume_id))
        for _ in range(_ROUNDS):
            steps = self._next_of_detach(volume_id, alias, uuid)
            if plan.Unlink() in steps and self._awaited_closed(volume_id):
                # Once more: a look at a domain waits for what libvirt still does to it.
                steps = self._next_of_detach(volume_id, alias, uuid)
            for action in steps:
                if isinstance(action, plan.AskGuest):
                    if not asking:
                        self._require_not_running(volume_id, record, uuid)
                    self._await_release(volume_id, action.uuid, alias, wait_s=wait_s, tell=tell)
                else:
                    self._do(action, volume_id, alias)
            if plan.Release() in steps:
                return
        raise Unfinished(f"disk {alias} of domain {uuid} comes back each time it is taken out; see who does so")

    def _await_release(
        self, volume_id: VolumeId, uuid: str, alias: str, *, wait_s: float = LET_GO_S, tell: Tell = silently
    ) -> None:
        """Have a running guest let go. That it is asked is on record before it is: whoever turns a detach round must
        know whether the guest may still obey. Raises: as await_release."""

        def ask() -> None:
            found = self._records.find(volume_id)
            unasked = found if found is not None and found.asked is False else None
            if unasked is not None:
                self._records.put(msgspec.structs.replace(unasked, asked=True))
            try:
                self._host.hypervisor.ask_to_detach(uuid, alias)
            except (Busy, Unreachable):
                # It was not asked, as while it arrives from another host: nobody is to ask it by going back.
                if unasked is not None:
                    self._records.put(unasked)
                raise

        await_release(self._host, uuid, alias, ask=ask, wait_s=wait_s, tell=tell)

    def _next_of_detach(self, volume_id: VolumeId, alias: str, uuid: str | None) -> tuple[plan.Action, ...]:
        domain = self._find_domain(uuid) if uuid is not None else None
        record = self._records.find(volume_id)
        recorded = record is not None
        steps = plan.plan_detach(alias, domain, recorded=recorded)
        if plan.Unstage() not in steps:
            return steps
        # Everybody is asked only before the device goes: each domain's XML is a question of its own.
        users = self._users(volume_id, alias, record.attachment if record else None)
        return plan.plan_detach(alias, domain, users, recorded=recorded)

    def _do(self, action: plan.Action, volume_id: VolumeId, alias: str, record: GuestRecord | None = None) -> None:
        match action:
            case plan.Stage() if record is not None:
                self._stage(record)
            case plan.Link() if record is not None:
                self._link(record)
            case plan.AttachConfig(uuid=uuid, disk=disk):
                self._host.hypervisor.attach_config(uuid, disk)
            case plan.AttachLive(uuid=uuid, disk=disk):
                self._host.hypervisor.attach_live(uuid, disk)
            case plan.DetachConfig(uuid=uuid):
                with suppress(NotFound):  # Somebody was quicker, or the domain is gone.
                    self._host.hypervisor.detach_config(uuid, alias)
            case plan.Unlink():
                self._host.links.remove(volume_id)
            case plan.Unstage():
                self._attacher.unstage(volume_id, self.staging_path(volume_id))
            case plan.Release():
                self._released(volume_id)

    def _stage(self, record: GuestRecord) -> None:
        self._unlink_others(record)
        use = BlockUse(mode=record.mode, read_only=record.read_only)
        self._attacher.stage(record.attachment, self.staging_path(record.volume_id), use)

    def _awaited_closed(self, volume_id: VolumeId) -> bool:
        """Wait until the device that the link leads to is closed; say whether there was one."""
        staged = self._find_staged(volume_id)
        if staged is None or volume_id not in self._host.links.all():
            return False
        attachment = staged.attachment
        if attachment.transport is Transport.LOCAL and staged.use.mode.many_nodes:
            return True  # Exporters to other nodes have it open; who else has is asked before the grant is taken back.
        await_closed(
            self._host, f"device {device_path(attachment)} of volume {volume_id}", lambda: self._is_open(attachment)
        )
        return True

    def _is_open(self, attachment: Attachment) -> bool:
        try:
            return self._attacher.is_open(attachment)
        except NotFound:
            return False

    def _find_staged(self, volume_id: VolumeId) -> StageRecord | None:
        """Return the stage record of a volume, if it is of this boot."""
        records = self._attacher.present_records()
        return next((one for one in records if one.attachment.volume_id == volume_id), None)

    def _released(self, volume_id: VolumeId) -> None:
        record = self._records.find(volume_id)
        if record is not None:
            self._records.put(msgspec.structs.replace(record, wanted=False, released=True))

    def _unlink_others(self, record: GuestRecord) -> None:
        """Remove what other volumes left that leads to the device: their domains would have this volume by it. One that
        is staged there keeps its link, and staging refuses."""
        device = device_path(record.attachment)
        links = {name for name, leads_to in self._host.links.all().items() if leads_to == device}
        if links - {record.volume_id}:
            staged = {one.attachment.volume_id for one in self._attacher.present_records()}
            for name in sorted(links - {record.volume_id} - staged):
                self._host.links.remove(name)

    def _link(self, record: GuestRecord) -> None:
        device = device_path(record.attachment)
        if self._host.links.all().get(record.volume_id) != device:
            self._host.links.put(record.volume_id, device)

    # --- parts --------------------------------------------------------------------------------------------------

    def _holding(self, volume_id: VolumeId) -> AbstractContextManager[None]:
        return self._locks.hold(f"guest disk {volume_id}")

    def _find_domain(self, domain: str) -> Domain | None:
        try:
            return self._host.hypervisor.get_domain(domain)
        except NotFound:
            return None

    def _users(self, volume_id: VolumeId, alias: str, attachment: Attachment | None) -> tuple[Domain, ...]:
        """Return every domain that has the volume: by its alias, its link, its device, or another path to that."""
        links = self._host.links
        paths = {links.path(volume_id), *([device_path(attachment)] if attachment else [])}
        devices = {number for path in paths if (number := links.find_device(path)) is not None}

        def is_volume(source: str) -> bool:
            return source in paths or (bool(devices) and links.find_device(source) in devices)

        return users_of(self._host.hypervisor.domains(), alias, is_volume)


def _explained(error: AoECsiError, domain: Domain, disk: DomainDisk) -> AoECsiError:
    """Return a refusal with its remedy."""
    if isinstance(error, NoSpace):
        return NoSpace(
            f"the running guest {domain.name} has no free PCI slot for {disk.target}; it has the disk from its next "
            "start on, and takes further ones while it runs once its domain has more "
            "<controller type='pci' model='pcie-root-port'/>; or detach the volume again"
        )
    return error


def open_guest_disks(settings: Settings, attacher: Attacher, *, enter_host: bool = False) -> GuestDisks:
    """Return the guests' disks of this machine, made of its real parts. `enter_host`: see HostRunner."""
    state_directory = Path(settings.state_directory)
    host = GuestHost(
        hypervisor=LibvirtHypervisor(BlockingCalls()),
        links=HostDeviceLinks(host_root=HostRunner(enter_host=enter_host).root),
        record_files=records_of(state_directory),
        locks=LockFiles(),
        now_s=time.monotonic,
        sleep=time.sleep,
    )
    return GuestDisks(settings, attacher, host)
