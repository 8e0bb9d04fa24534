from dataclasses import replace

import pytest

from aoe_core.attach.prove import expected_serial, prove_answers, prove_device
from aoe_core.errors import IdentityMismatch, Invalid
from aoe_core.host.contracts import Answer, AoEDevice
from aoe_core.model import Address, Attachment, Mac, SanName, Serial, Transport, VolumeId
from aoe_core.units import GIB

MAC = Mac("52:54:00:00:01:15")
OTHER = Mac("52:54:00:00:01:16")
SERIAL = "10.3:abcdefghi"
ATTACHMENT = Attachment(
    volume_id=VolumeId("pvc-1"),
    transport=Transport.AOE,
    serial=Serial("abcdefghi"),
    size_bytes=GIB,
    filesystem="",
    writable=True,
    address=Address(10, 3),
    san=SanName("main"),
    target_mac=OTHER,
)
ANSWER = Answer(mac=MAC, serial=SERIAL, size_bytes=GIB)
DEVICE = AoEDevice(
    address=Address(10, 3),
    up=True,
    closewait=False,
    size_bytes=GIB,
    interface="san0",
    target_macs=(MAC,),
    open_count=None,
)


def test_the_serial_on_the_wire_names_address_and_volume() -> None:
    assert expected_serial(ATTACHMENT) == SERIAL


def test_one_fitting_answer_proves_its_card_whatever_card_the_grant_named() -> None:
    assert prove_answers(ATTACHMENT, [ANSWER]) == MAC


def test_a_volume_that_grew_since_the_grant_is_the_volume() -> None:
    assert prove_answers(ATTACHMENT, [replace(ANSWER, size_bytes=2 * GIB)]) == MAC


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [replace(ANSWER, serial="10.3:ihgfedcba")],
        [replace(ANSWER, serial="10.4:abcdefghi")],
        [replace(ANSWER, serial="10.3:abcdefghi2")],
        [replace(ANSWER, serial="", size_bytes=0)],
        [replace(ANSWER, size_bytes=GIB - 512)],
        [ANSWER, replace(ANSWER, mac=OTHER)],
        [ANSWER, replace(ANSWER, mac=OTHER, serial="", size_bytes=0)],
        [ANSWER, replace(ANSWER, serial="10.3:ihgfedcba")],
    ],
)
def test_anything_else_is_refused_with_every_fact(answers: list[Answer]) -> None:
    with pytest.raises(IdentityMismatch) as refusal:
        prove_answers(ATTACHMENT, answers)
    for fact in ("pvc-1", "e10.3", SERIAL, str(GIB), *(one.mac for one in answers), *(one.serial for one in answers)):
        assert fact in str(refusal.value)


def test_the_drivers_device_must_be_the_proven_targets_alone() -> None:
    prove_device(ATTACHMENT, MAC, DEVICE, SERIAL)


@pytest.mark.parametrize(
    ("device", "serial"),
    [
        (replace(DEVICE, target_macs=()), SERIAL),
        (replace(DEVICE, target_macs=(OTHER,)), SERIAL),
        (replace(DEVICE, target_macs=(MAC, OTHER)), SERIAL),
        (replace(DEVICE, size_bytes=GIB - 512), SERIAL),
        (DEVICE, "10.3:ihgfedcba"),
        (DEVICE, ""),
    ],
)
def test_a_device_of_anybody_else_is_refused_with_every_fact(device: AoEDevice, serial: str) -> None:
    with pytest.raises(IdentityMismatch) as refusal:
        prove_device(ATTACHMENT, MAC, device, serial)
    for fact in ("pvc-1", "e10.3", SERIAL, serial, str(device.size_bytes), *device.target_macs):
        assert fact in str(refusal.value)


def test_a_grant_without_an_address_proves_nothing() -> None:
    with pytest.raises(Invalid):
        prove_answers(replace(ATTACHMENT, address=None), [ANSWER])
