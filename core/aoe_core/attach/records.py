"""Stage records: what this node has taken on, one fsynced file per volume.

Written before discovery and removed after clean-up: NodeUnstageVolume, NodeExpandVolume and NodeGetVolumeStats get no
publish_context, so this file is where they learn the address. It is also the list of devices the sweeper must leave
alone and the watchdog must look after.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from aoe_core.errors import CommandFailed
from aoe_core.host.contracts import RecordFiles
from aoe_core.host.files import DurableFiles
from aoe_core.host.links import boot_id
from aoe_core.model import AccessMode, Address, Attachment, Mac, VolumeId


class FilesystemUse(msgspec.Struct, frozen=True, kw_only=True, tag="filesystem", forbid_unknown_fields=True):
    """A volume used through a file system."""

    mode: AccessMode
    filesystem: Literal["ext4", "xfs"] = "ext4"
    options: tuple[str, ...] = ()
    """Mount options of the StorageClass or claim, passed through (SELinux's `context=` among them)."""
    read_only: bool = False


class BlockUse(msgspec.Struct, frozen=True, kw_only=True, tag="block", forbid_unknown_fields=True):
    """A volume used as a raw block device."""

    mode: AccessMode
    read_only: bool = False


Use = FilesystemUse | BlockUse


class StageRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One staged (or half-staged) volume."""

    attachment: Attachment
    staging_path: str
    use: Use
    interface: str
    """The SAN interface of this machine; empty for a local volume."""
    pinned_mac: Mac | None
    """The one proven target, once it is; None while nobody was proven yet."""
    staged: bool
    """Whether staging came to its end; a half-staged volume is staged again from its start."""
    targets: tuple[str, ...] = ()
    """Paths it is published at; of a half-staged one also where it is to be, and then the sweeper leaves it alone."""
    read_only_targets: tuple[str, ...] = ()
    """Those of them that are read-only."""
    boot: str
    """The boot it was written in: mounts and devices of an earlier boot are gone."""
    dead_since_s: int = 0
    """When the watchdog first saw its target dead (epoch seconds), 0 while it answers."""


# Made before there are threads: two that make it at once would crash in msgspec.
_DECODER = msgspec.json.Decoder(StageRecord)


class StageRecords:
    """All records of this node."""

    def __init__(self, files: RecordFiles) -> None:
        self._files = files

    def all(self) -> tuple[StageRecord, ...]:
        """Return every record. Raises: CommandFailed naming the file that cannot be read as one."""
        records = []
        for name, text in sorted(self._files.read_all().items()):
            try:
                records.append(_DECODER.decode(text))
            except msgspec.MsgspecError as error:
                raise CommandFailed(
                    f"stage record {name!r} is damaged ({error}); find out what the volume holds mounted, "
                    "unmount it, then remove the file"
                ) from error
        return tuple(records)

    def find(self, volume_id: VolumeId) -> StageRecord | None:
        """Return a volume's record."""
        return next((record for record in self.all() if record.attachment.volume_id == volume_id), None)

    def of_address(self, address: Address) -> StageRecord | None:
        """Return the record that holds an address."""
        return next((record for record in self.all() if record.attachment.address == address), None)

    def put(self, record: StageRecord) -> None:
        """Write a record durably."""
        self._files.write(record.attachment.volume_id, msgspec.json.encode(record).decode())

    def drop(self, volume_id: VolumeId) -> None:
        """Remove a record durably."""
        self._files.remove(volume_id)


def staged_check(files: RecordFiles, boot: str) -> Callable[[VolumeId], bool]:
    """Return what tells whether a volume is staged, or half-staged, since this machine's boot.

    For the storage side of the same machine: a published block device is open only while somebody uses it.
    """
    records = StageRecords(files)

    def is_staged(volume_id: VolumeId) -> bool:
        record = records.find(volume_id)
        return record is not None and record.boot == boot

    return is_staged


def open_staged_check(state_directory: Path) -> Callable[[VolumeId], bool]:
    """Return `staged_check` of this machine."""
    return staged_check(records_of(state_directory), boot_id())


def records_of(state_directory: Path) -> RecordFiles:
    """Return where the stage records of this machine are."""
    return DurableFiles(state_directory / "staged")
