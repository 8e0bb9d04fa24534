"""What is true of a staged volume on this node right now: shared questions of staging and publishing.

Compares stage records with the mount table by device number, never by the spelling of a device's path.
"""

from aoe_core.attach.host import ComputeHost
from aoe_core.attach.prove import address_of
from aoe_core.attach.records import BlockUse, StageRecord, StageRecords
from aoe_core.errors import Invalid, NotFound
from aoe_core.host.contracts import AoEDevice, Mount
from aoe_core.model import Address, Attachment, Transport, VolumeId


class StagedVolumes:
    """Looks; changes nothing but missing pins."""

    def __init__(self, host: ComputeHost, records: StageRecords) -> None:
        self._host = host
        self._records = records

    def find(self, volume_id: VolumeId) -> StageRecord | None:
        """Return a volume's record of this boot; one of an earlier boot describes nothing that is there."""
        record = self._records.find(volume_id)
        return record if record is not None and record.boot == self._host.boot else None

    def of_address(self, address: Address) -> StageRecord | None:
        """Return the record of this boot that holds an address."""
        record = self._records.of_address(address)
        return record if record is not None and record.boot == self._host.boot else None

    def device(self, address: Address) -> AoEDevice | None:
        """Return the driver's device of an address."""
        return next((one for one in self._host.initiator.devices() if one.address == address), None)

    def resolved(self, path: str) -> str:
        """Return a path as the mount table spells it. Raises: Invalid when it is not plain and absolute."""
        if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise Invalid(f"path {path[:200]!r} is not plain and absolute; start it with / and leave out ..")
        return self._host.mounts.resolve(path)

    def mounts_at(self, path: str) -> tuple[Mount, ...]:
        """Return what is mounted at a resolved path, the topmost last."""
        return tuple(mount for mount in self._host.mounts.table() if mount.target == path)

    def is_filesystem_of(self, mount: Mount, attachment: Attachment) -> bool:
        """Say whether a mount is of the volume's file system."""
        if mount.filesystem == "devtmpfs":
            return False
        try:
            return mount.device == self._host.mounts.device_number(device_path(attachment))
        except NotFound:
            return mount.source == device_path(attachment)

    def is_node_of(self, mount: Mount, attachment: Attachment) -> bool:
        """Say whether a mount is a bind of the volume's device node."""
        if mount.filesystem != "devtmpfs":
            return False
        try:
            number = self._host.mounts.device_number(device_path(attachment))
            return self._host.mounts.device_number(mount.target) == number
        except NotFound:
            return mount.root == device_path(attachment).removeprefix("/dev")

    def is_own(self, mount: Mount, record: StageRecord) -> bool:
        """Say whether a mount is of the volume, in the way it is used."""
        if isinstance(record.use, BlockUse):
            return self.is_node_of(mount, record.attachment)
        return self.is_filesystem_of(mount, record.attachment)

    def restore_pins(self, interface: str) -> None:
        """Make the ingress rules stand on an interface, with a pin for each proven target on record."""
        pinned = self._host.ingress.ensure([interface])
        for record in self._records.all():
            if record.boot != self._host.boot or record.pinned_mac is None or record.interface != interface:
                continue
            address = address_of(record.attachment)
            if (record.interface, address, record.pinned_mac) not in pinned:
                self._host.ingress.pin(record.interface, address, record.pinned_mac)


def device_path(attachment: Attachment) -> str:
    """Return the device a volume is used through."""
    if attachment.transport is Transport.LOCAL:
        return attachment.device
    return f"/dev/etherd/{address_of(attachment)}"


def is_read_only(record: StageRecord) -> bool:
    """Say whether a volume is staged for reading only."""
    return record.use.read_only or not record.use.mode.writes or not record.attachment.writable


def is_of_grant(record: StageRecord, other: Attachment) -> bool:
    """Say whether a volume is staged through a grant; size, file system and MAC are as they were when that was made."""
    one = record.attachment
    return (one.transport, one.address, one.san, one.device, one.serial, one.writable) == (
        other.transport,
        other.address,
        other.san,
        other.device,
        other.serial,
        other.writable,
    )
