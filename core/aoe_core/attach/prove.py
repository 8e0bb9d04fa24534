"""Is this the volume? Pure judgement of what answered and of what the driver made of it.

A device is the volume when exactly one target answers for the address, its serial is the volume's, its size is at
least the granted one, and the driver uses that one target and reads the same serial. The granted MAC is advisory: a
storage machine may get a new card. Refusals name every fact, so that a person can tell which machine to look at.
"""

from collections.abc import Sequence

from aoe_core.errors import IdentityMismatch, Invalid
from aoe_core.host.contracts import Answer, AoEDevice
from aoe_core.model import Address, Attachment, Mac


def address_of(attachment: Attachment) -> Address:
    """Return an AoE attachment's address. Raises: Invalid when it has none."""
    if attachment.address is None:
        raise Invalid(f"volume {attachment.volume_id} was granted without an AoE address; publish it again")
    return attachment.address


def expected_serial(attachment: Attachment) -> str:
    """Return the serial the volume's target has on the wire (vblade: `<shelf>.<slot>:<host name>`)."""
    return f"{address_of(attachment).instance}:{attachment.serial}"


def prove_answers(attachment: Attachment, answers: Sequence[Answer]) -> Mac:
    """Return the MAC of the one target that is the volume's. Raises: IdentityMismatch."""
    expected = expected_serial(attachment)
    only = answers[0] if len(answers) == 1 else None
    if only is not None and only.serial == expected and only.size_bytes >= attachment.size_bytes:
        return only.mac
    if not answers:
        heard = "nobody answers"
    else:
        heard = "; ".join(
            f"{one.mac} says serial {one.serial!r}, {one.size_bytes} bytes"
            if one.serial
            else f"{one.mac} does not tell"
            for one in answers
        )
        heard = f"{len(answers)} answer{'s' if len(answers) == 1 else ''}: {heard}"
    raise IdentityMismatch(
        f"address {attachment.address} is not provably volume {attachment.volume_id}: one target with serial "
        f"{expected!r} and at least {attachment.size_bytes} bytes is expected, and {heard}; nothing was mounted, "
        "look at the exports of the machines with these addresses"
    )


def prove_device(attachment: Attachment, mac: Mac, device: AoEDevice, serial: str) -> None:
    """Check that the driver's device is the proven target's, and nobody else's. Raises: IdentityMismatch."""
    expected = expected_serial(attachment)
    if device.target_macs == (mac,) and serial == expected and device.size_bytes >= attachment.size_bytes:
        return
    raise IdentityMismatch(
        f"device {device.address} is not provably volume {attachment.volume_id}: target {mac} with serial {expected!r} "
        f"and at least {attachment.size_bytes} bytes is expected, and the driver has targets "
        f"{', '.join(device.target_macs) or 'none'}, serial {serial!r} and {device.size_bytes} bytes; nothing was "
        "mounted, look at the exports of these machines"
    )
