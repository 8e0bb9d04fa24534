"""This machine's network cards and its present boot, read from sysfs and procfs."""

from pathlib import Path

from aoe_core.errors import CommandFailed, Invalid, Unreachable
from aoe_core.model import Mac, parse_mac

_IFF_UP = 0x1
_BOOT_DIGITS = 8


def card_mac(interface: str, sys: Path = Path("/sys")) -> Mac | None:
    """Return the MAC address of a network interface, up or not; None when there is no such interface."""
    try:
        return parse_mac((sys / "class/net" / interface / "address").read_text(encoding="ascii"))
    except (OSError, Invalid):
        return None


def interface_mac(interface: str, sys: Path = Path("/sys")) -> Mac:
    """Return the MAC address of a network interface that is up.

    Raises: Unreachable when it is missing, switched off or without a link. Source: Documentation/ABI/testing/
    sysfs-class-net.
    """
    directory = sys / "class/net" / interface
    mac = card_mac(interface, sys)
    try:
        flags = int((directory / "flags").read_text(encoding="ascii"), 16)
    except (OSError, ValueError):
        mac, flags = None, 0
    if mac is None:
        raise Unreachable(
            f"network interface {interface} is missing; check `interface` of its san in the configuration"
        )
    if not flags & _IFF_UP:
        raise Unreachable(f"network interface {interface} is switched off; set it up and make that permanent")
    # `carrier` is the link itself; operstate stays `unknown` with some drivers.
    try:
        carrier = (directory / "carrier").read_text(encoding="ascii").strip()
    except OSError as error:
        raise Unreachable(f"network interface {interface} does not tell its link state ({error.strerror})") from error
    if carrier != "1":
        raise Unreachable(f"network interface {interface} has no link; check cable and switch")
    return mac


def boot_id(proc: Path = Path("/proc")) -> str:
    """Return the first eight hex digits of the kernel's boot_id. Raises: CommandFailed."""
    try:
        text = (proc / "sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError as error:
        raise CommandFailed(f"the kernel's boot_id cannot be read ({error.strerror}); mount /proc") from error
    return text[:_BOOT_DIGITS]
