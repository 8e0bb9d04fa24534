"""The grammar of `aoe-csi guest`: apart from what it does, which loads grpc."""

import argparse
import uuid

from aoe_core.guests.readiness import READY_S
from aoe_core.guests.records import Bus
from aoe_core.guests.release import LET_GO_S


def _uuid(text: str) -> str:
    """Return a UUID as libvirt writes it."""
    return str(uuid.UUID(text))


def add_arguments(command: argparse.ArgumentParser, parents: list[argparse.ArgumentParser]) -> None:
    """Give `aoe-csi guest` its own commands."""
    controller = argparse.ArgumentParser(add_help=False)
    controller.add_argument(
        "--controller",
        required=True,
        metavar="unix:///PATH",
        help="the storage machine's CSI socket; ssh -L brings it here",
    )
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("domain", metavar="DOMAIN", help="a libvirt domain's name or UUID")
    named.add_argument("volume", metavar="VOLUME", help="a volume's id")
    how = argparse.ArgumentParser(add_help=False)
    how.add_argument("--read-only", action="store_true", help="let the guest only read")
    how.add_argument("--bus", choices=[bus.value for bus in Bus], default=Bus.VIRTIO.value, help="default: %(default)s")
    acts = command.add_subparsers(dest="guest_act", required=True, metavar="ACT")

    def add(name: str, words: str, more: list[argparse.ArgumentParser]) -> argparse.ArgumentParser:
        return acts.add_parser(name, help=words, description=words, parents=[*parents, *more])

    one = add("attach", "make a volume a disk of a domain", [named, how, controller])
    one.add_argument(
        "--shared", action="store_true", help="let a second host have it, too: the guest may be migrated while it runs"
    )
    one = add(
        "prepare", "make a shared volume ready for a domain that is to come from another host", [named, how, controller]
    )
    one.add_argument("--uuid", required=True, type=_uuid, metavar="UUID", help="the domain's, as virsh domuuid says it")
    one = add("detach", "take a volume from a domain, and give it back", [named])
    whose = one.add_mutually_exclusive_group(required=True)
    whose.add_argument("--controller", metavar="unix:///PATH", help="the storage machine's CSI socket, to give it back")
    whose.add_argument(
        "--orphan",
        action="store_true",
        help="it was an AoEGuestDisk's that the cluster knows no more; give nothing back",
    )
    one.add_argument(
        "--wait", type=float, default=LET_GO_S, metavar="SECONDS", help="for the guest to let go; default: %(default)g"
    )
    one = add("resize", "grow a volume, and let the guest see it", [named, controller])
    one.add_argument("size", metavar="SIZE", help="at least so many bytes; 20GiB will do")
    one = add("list", "show guests' disks", [])
    one.add_argument("--json", action="store_true", help="print JSON")
    one = add("ready", "bring guests' devices back after a boot", [])
    one.add_argument(
        "--wait", type=float, default=READY_S, metavar="SECONDS", help="for silent targets; default: %(default)g"
    )
