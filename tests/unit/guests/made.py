"""Values the tests of guests' disks are made of."""

from typing import Any

from aoe_core.guests.disk import disk_of
from aoe_core.guests.records import Bus, GuestRecord
from aoe_core.host.contracts import Domain, DomainDisk
from aoe_core.model import AccessMode, Address, Attachment, SanName, Transport, VolumeId, serial_of

VOLUME = VolumeId("web")
SERIAL = serial_of(VOLUME)
LINK = "/run/aoe-csi/guests/disks/web"
UUID = "00000000-0000-4000-8000-000000000001"
OTHER_UUID = "00000000-0000-4000-8000-000000000002"


def attachment(**more: Any) -> Attachment:
    facts: dict[str, Any] = {
        "volume_id": VOLUME,
        "transport": Transport.AOE,
        "serial": SERIAL,
        "size_bytes": 1 << 20,
        "filesystem": "",
        "writable": True,
        "address": Address(10, 3),
        "san": SanName("main"),
    }
    return Attachment(**facts | more)


def record(**more: Any) -> GuestRecord:
    facts: dict[str, Any] = {
        "attachment": attachment(),
        "domain_uuid": UUID,
        "domain_name": "g1",
        "bus": Bus.VIRTIO,
        "mode": AccessMode.SINGLE_NODE_WRITER,
        "target": "vdb",
        "wanted": True,
    }
    return GuestRecord(**facts | more)


def ours(**more: Any) -> DomainDisk:
    """The volume's disk."""
    return disk_of(record(**more), LINK)


def domain(
    *,
    name: str = "g1",
    uuid: str = UUID,
    running: bool = True,
    persistent: bool = True,
    live: tuple[DomainDisk, ...] = (),
    config: tuple[DomainDisk, ...] = (),
) -> Domain:
    return Domain(
        name=name,
        uuid=uuid,
        running=running,
        persistent=persistent,
        live=live if running else (),
        config=config if persistent else (),
    )
