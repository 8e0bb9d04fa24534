"""What is refused before anything is done, and with which remedy."""

from dataclasses import replace
from typing import Any

import pytest

from aoe_core.attach.records import BlockUse, StageRecord
from aoe_core.errors import AoECsiError, Conflict, InUse, Invalid
from aoe_core.guests.admission import require_admissible, require_grant, require_stage_for_guests
from aoe_core.guests.records import Bus
from aoe_core.host.contracts import DomainDisk
from aoe_core.model import AccessMode, Address, SanName, Serial, Transport

from .made import OTHER_UUID, SERIAL, VOLUME, attachment, domain, ours, record

FINE: dict[str, Any] = {
    "domain": domain(),
    "attachment": attachment(),
    "mode": AccessMode.SINGLE_NODE_WRITER,
    "bus": Bus.VIRTIO,
    "earlier": None,
    "users": (),
}
LOCAL = attachment(transport=Transport.LOCAL, address=None, san=None, device="/dev/vg0/v-web")
ASLEEP = replace(domain(running=False), saved=True)
THIEF = DomainDisk(target="vdc", bus="virtio", serial=SERIAL, source="/images/copy.raw")


def admit(**more: Any) -> None:
    asked = FINE | more
    require_grant(asked["attachment"], asked["mode"], asked["earlier"])
    require_admissible(
        asked["domain"],
        VOLUME,
        asked["mode"],
        asked["bus"],
        earlier=asked["earlier"],
        users=asked["users"],
    )


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"earlier": record()},
        {"earlier": record(wanted=False)},
        {"earlier": record(attachment=attachment(size_bytes=1, filesystem="ext4"))},
        {"earlier": record(domain_name="its-former-name")},
        {"users": (domain(config=(ours(),)),)},
        {"domain": domain(config=(ours(),), live=(ours(),))},
        {"attachment": attachment(writable=False), "mode": AccessMode.SINGLE_NODE_READER_ONLY},
    ],
)
def test_what_may_be(more: dict[str, Any]) -> None:
    admit(**more)


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"domain": ASLEEP}, InUse, "virsh start, or virsh managedsave-remove"),
        ({"domain": ASLEEP, "earlier": record()}, InUse, "sleeps"),
        ({"attachment": attachment(writable=False)}, Invalid, "for reading only"),
        ({"earlier": record(domain_uuid=OTHER_UUID, domain_name="g2")}, InUse, "disk of domain g2"),
        ({"earlier": record(domain_uuid=OTHER_UUID, wanted=False)}, InUse, "detach it there"),
        ({"earlier": record(bus=Bus.SCSI)}, Conflict, "on bus scsi"),
        ({"earlier": record(mode=AccessMode.SINGLE_NODE_READER_ONLY)}, Conflict, "reader"),
        (
            {"earlier": record(attachment=attachment(address=Address(77, 1)))},
            Conflict,
            "through e77.1 .*detach it first",
        ),
        ({"earlier": record(attachment=attachment(san=SanName("second")))}, Conflict, "on SAN second"),
        ({"earlier": record(attachment=attachment(serial=Serial("othervols")))}, Conflict, "serial othervols"),
        ({"earlier": record(attachment=LOCAL, wanted=False)}, Conflict, "through /dev/vg0/v-web"),
        ({"users": (domain(name="g2", uuid=OTHER_UUID, live=(ours(),)),)}, InUse, "by domain g2"),
        ({"domain": domain(config=(THIEF,))}, Conflict, "/images/copy.raw"),
        ({"domain": domain(live=(THIEF,))}, Conflict, "take that disk away"),
    ],
)
def test_what_may_not_be(more: dict[str, Any], error: type[AoECsiError], words: str) -> None:
    with pytest.raises(AoECsiError, match=words) as caught:
        admit(**more)
    assert type(caught.value) is error


def test_a_volume_that_is_staged_for_something_else_is_left_alone() -> None:
    staged = StageRecord(
        attachment=attachment(),
        staging_path="/var/lib/kubelet/web",
        use=BlockUse(mode=AccessMode.SINGLE_NODE_WRITER),
        interface="san0",
        pinned_mac=None,
        staged=True,
        boot="00000001",
    )
    require_stage_for_guests(VOLUME, None, "/ours")
    require_stage_for_guests(VOLUME, staged, "/var/lib/kubelet/web")
    with pytest.raises(InUse, match="/var/lib/kubelet/web; unstage it there first"):
        require_stage_for_guests(VOLUME, staged, "/ours")
