"""Whether a volume may become a disk of a domain: refusals with their remedies, before anything is done. Pure."""

from collections.abc import Sequence

from aoe_core.attach.records import StageRecord
from aoe_core.errors import Conflict, InUse, Invalid, Unfinished
from aoe_core.guests.disk import alias_of, has_come
from aoe_core.guests.records import RESOURCE, Bus, GuestRecord, Origin
from aoe_core.host.contracts import Domain
from aoe_core.model import AccessMode, Attachment, VolumeId, serial_of


def require_admissible(
    domain: Domain,
    volume_id: VolumeId,
    mode: AccessMode,
    bus: Bus,
    *,
    earlier: GuestRecord | None,
    users: Sequence[Domain],
) -> None:
    """Check what is asked for against what there is, before or after the grant. `users`: every domain that has the
    volume's disk. Raises: InUse (another domain's, or it sleeps), Conflict (there otherwise, serial taken)."""
    if domain.saved:
        # It would wake without the disk, and nothing tells what its memory's image has from what it has not.
        raise InUse(
            f"domain {domain.name} sleeps with its memory on disk, and wakes with the disks it had then; use virsh "
            f"start, or virsh managedsave-remove, then attach volume {volume_id}"
        )
    require_room(volume_id, domain.uuid, domain.name, mode, bus, earlier=earlier, users=users)
    serial = serial_of(volume_id)
    for disk in (*domain.live, *domain.config):
        if disk.serial == serial and disk.alias != alias_of(serial):
            raise Conflict(
                f"domain {domain.name} has serial {disk.serial} on disk {disk.target} ({disk.source}), which is not "
                f"this driver's; take that disk away before volume {volume_id} is attached"
            )


def require_room(
    volume_id: VolumeId,
    domain_uuid: str,
    domain_name: str,
    mode: AccessMode,
    bus: Bus,
    *,
    earlier: GuestRecord | None,
    users: Sequence[Domain],
) -> None:
    """Check that a volume is nobody else's on this host, and not there in another way. Raises: InUse, Conflict."""
    if earlier is not None and earlier.domain_uuid != domain_uuid:
        raise InUse(
            f"volume {volume_id} is a disk of domain {earlier.domain_name} ({earlier.domain_uuid}) on this host; "
            f"detach it there before it is attached to {domain_name}"
        )
    if earlier is not None and (earlier.mode, earlier.bus) != (mode, bus):
        raise Conflict(
            f"volume {volume_id} is attached to domain {domain_name} on bus {earlier.bus.value}, {earlier.mode.value}, "
            f"and was asked for on bus {bus.value}, {mode.value}; detach it first"
        )
    others = sorted(one.name for one in users if one.uuid != domain_uuid)
    if others:
        raise InUse(
            f"volume {volume_id} is named as a disk by domain {', '.join(others)} of this host; take it from there "
            f"before it is attached to {domain_name}"
        )


def require_come(domain: Domain, volume_id: VolumeId, earlier: GuestRecord | None, shared_with: Sequence[str]) -> None:
    """Check that a guest which a volume was made ready for has come, with it. What it left here at an earlier move is a
    domain of the same UUID, which may even run: with the disk it would be a second copy of the guest. `shared_with`:
    the hosts where it may still be. Raises: Unfinished."""
    if earlier is None or not earlier.expected or not shared_with or has_come(domain, alias_of(serial_of(volume_id))):
        return
    raise Unfinished(
        f"domain {domain.name} is to come to this host with volume {volume_id} and does not run here with it yet, and "
        f"{' and '.join(shared_with)} may still have it; migrate it here from there, or have the volume taken from "
        "there first"
    )


def require_grant(attachment: Attachment, mode: AccessMode, earlier: GuestRecord | None) -> None:
    """Check that a grant is what is asked for, and the one the guest has. Raises: Invalid (it is for reading), Conflict
    (the guest's is another one)."""
    volume_id = attachment.volume_id
    if mode.writes and not attachment.writable:
        raise Invalid(f"volume {volume_id} is granted for reading only; attach it read-only, or publish it again")
    if earlier is not None and _grant(earlier.attachment) != _grant(attachment):
        # Another machine's volume of this name, or a grant made after ours was taken away: what the guest has is the
        # recorded one's, and only with the record it is known.
        raise Conflict(
            f"volume {volume_id} is attached to domain {earlier.domain_name} through {_words(earlier.attachment)}, and "
            f"was granted now through {_words(attachment)}; detach it first"
        )


def require_origin(record: GuestRecord | None, asked: Origin) -> None:
    """Check that who is asked about a volume is who granted it. Raises: Conflict naming the right one."""
    if record is None or not record.origin.is_other(asked):
        return
    origin = record.origin
    if origin.is_resource:
        raise Conflict(
            f"volume {record.volume_id} is domain {record.domain_name}'s by AoEGuestDisk "
            f"{origin.endpoint.removeprefix(RESOURCE)}; delete that, or, when the cluster knows it no more, detach "
            "with --orphan"
        )
    raise Conflict(
        f"volume {record.volume_id} of domain {record.domain_name} was granted by storage machine "
        f"{origin.node or 'without a name'}, and {asked.endpoint} leads to {asked.node or 'somewhere else'}; ask at "
        f"{origin.endpoint or origin.node}"
    )


def _grant(attachment: Attachment) -> tuple[object, ...]:
    """Return what tells one grant from another; size, file system and MAC are as they were when it was made."""
    return (attachment.transport, attachment.address, attachment.san, attachment.device, attachment.serial)


def _words(attachment: Attachment) -> str:
    where = f" on SAN {attachment.san}" if attachment.san else ""
    return f"{attachment.address or attachment.device}{where} (serial {attachment.serial})"


def require_stage_for_guests(volume_id: VolumeId, staged: StageRecord | None, staging_path: str) -> None:
    """Check that a volume is not staged on this host for something else. Raises: InUse."""
    if staged is not None and staged.staging_path != staging_path:
        raise InUse(
            f"volume {volume_id} is in use on this host for something else than a guest: it is staged at "
            f"{staged.staging_path}; unstage it there first"
        )
