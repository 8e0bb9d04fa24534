"""Guest records: which volume is, or is to be, a disk of which guest; one fsynced file per volume.

Written before anything is done for a guest and removed after everything is undone and the grant is given back, so
whoever comes after a crash knows what there may be, and whose it is. It holds the grant, too: after a boot of this host
the devices are brought back before anybody is asked, since the guests that start with the host need them.
"""

import enum
from pathlib import Path

import msgspec

from aoe_core.errors import CommandFailed
from aoe_core.host.contracts import RecordFiles
from aoe_core.host.files import DurableFiles
from aoe_core.model import AccessMode, Attachment, VolumeId

RESOURCE = "aoeguestdisk:"
"""Begins the endpoint of an origin that is no storage machine but a resource of a cluster."""


class Bus(enum.Enum):
    """How a guest sees a disk."""

    VIRTIO = "virtio"
    SCSI = "scsi"


class Origin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The storage machine that granted a volume: only there is the grant given back, or the volume grown. Another one
    may have a volume of the same name, and agrees to everything."""

    node: str = ""
    """Its name, as it says it; empty when it does not."""
    endpoint: str = ""
    """Where it was asked last."""

    @property
    def is_resource(self) -> bool:
        """Whether it was granted for an AoEGuestDisk: then its endpoint names that, and nobody here gives it back."""
        return self.endpoint.startswith(RESOURCE)

    def is_other(self, asked: "Origin") -> bool:
        """Say whether another machine is asked: by their names, or else by where they are asked."""
        if self.node and asked.node:
            return self.node != asked.node
        return bool(self.endpoint) and self.endpoint != asked.endpoint


class GuestRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One volume as a guest's disk."""

    attachment: Attachment
    domain_uuid: str
    """A domain keeps it when it is renamed."""
    domain_name: str
    """As it was when it was attached; for people."""
    bus: Bus
    mode: AccessMode
    target: str
    """The name among the domain's disks that was chosen for it."""
    wanted: bool
    """False from the moment it is to be detached."""
    asked: bool | None = None
    """Whether its running guest may have been asked to let go of it, since it is to be detached, and may yet do so.
    None in a record of a version that did not write it down, too: then it may."""
    expected: bool = False
    """Its domain is to come from another host, by live migration, and may not be here yet."""
    released: bool = False
    """Nothing of it is on this host any more; what is left is to give its grant back."""
    origin: Origin = Origin()

    @property
    def volume_id(self) -> VolumeId:
        """The volume."""
        return self.attachment.volume_id

    @property
    def read_only(self) -> bool:
        """Whether the guest may only read."""
        return not self.mode.writes


_DECODER = msgspec.json.Decoder(GuestRecord)


class GuestRecords:
    """All records of this host."""

    def __init__(self, files: RecordFiles) -> None:
        self._files = files

    def all(self) -> tuple[GuestRecord, ...]:
        """Return every record. Raises: CommandFailed naming the file that cannot be read as one."""
        records = []
        for name, text in sorted(self._files.read_all().items()):
            try:
                records.append(_DECODER.decode(text))
            except msgspec.MsgspecError as error:
                raise CommandFailed(
                    f"guest record {name!r} is damaged ({error}); find out with virsh dumpxml which domain has the "
                    "volume, detach it there, then remove the file"
                ) from error
        return tuple(records)

    def find(self, volume_id: VolumeId) -> GuestRecord | None:
        """Return a volume's record."""
        return next((record for record in self.all() if record.volume_id == volume_id), None)

    def put(self, record: GuestRecord) -> None:
        """Write a record durably."""
        self._files.write(record.volume_id, msgspec.json.encode(record).decode())

    def drop(self, volume_id: VolumeId) -> None:
        """Remove a record durably."""
        self._files.remove(volume_id)


def records_of(state_directory: Path) -> RecordFiles:
    """Return where the guest records of this machine are."""
    return DurableFiles(state_directory / "guests" / "records")
