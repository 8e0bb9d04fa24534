"""`aoe-csi guest`: volumes as disks of libvirt guests of this machine, for people without an orchestrator.

Each command does both halves: the grant on the storage machine, and the disk here. Every one may be repeated: a grant
that is there is returned, a disk that is there stays, and what was cut short goes on.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NoReturn

from aoe_core.attach.attacher import Attacher
from aoe_core.errors import InUse, Invalid, OutOfRange, Unreachable
from aoe_core.guests.disk_state import DiskState
from aoe_core.guests.guest_disks import GuestDisks
from aoe_core.guests.readiness import ready_all
from aoe_core.guests.records import Bus, Origin
from aoe_core.model import AccessMode, NodeName, VolumeId
from aoe_core.settings import Settings
from aoe_core.units import format_bytes, parse_bytes
from aoe_csi import requests
from aoe_csi.status import HostReport, as_json, as_text, guest_rows
from aoe_csi.storage_machine import StorageMachine

Say = Callable[[str], None]
"""Takes a line for whoever called the command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """This machine."""

    settings: Settings
    attacher: Attacher
    disks: GuestDisks


def open_here(settings: Settings, *, enter_host: bool = False) -> Here:
    """Return this machine, made of its real parts. `enter_host`: see HostRunner. Raises: Invalid when it is not to
    attach volumes."""
    from aoe_core.attach.attacher import open_attacher  # noqa: PLC0415 - as in composition.
    from aoe_core.guests.guest_disks import open_guest_disks  # noqa: PLC0415

    if not settings.compute:
        raise Invalid("the configuration says `compute = false`, so this machine attaches nothing; set it to true")
    attacher = open_attacher(settings, enter_host=enter_host)
    disks = open_guest_disks(settings, attacher, enter_host=enter_host)
    return Here(settings=settings, attacher=attacher, disks=disks)


def attach(options: argparse.Namespace, here: Here, say: Say) -> bool:
    """Publish a volume to this machine and attach it. Returns, as every act, whether nothing needs attention."""
    volume_id = requests.get_volume_id(options.volume)
    mode = _mode(read_only=options.read_only, shared=options.shared)
    bus = Bus(options.bus)
    with closing(StorageMachine(options.controller)) as storage:
        origin = storage.origin()
        here.disks.require_admissible(options.domain, volume_id, mode, bus, origin=origin)
        attachment = storage.publish(volume_id, here.attacher.identity(), mode)
        is_one_s = mode.writes and mode.many_nodes  # While its guest moves; who only reads shares it with anybody.
        others = sorted(storage.holders(volume_id) - {here.settings.node_name}) if is_one_s else []
        if others and not here.disks.has(options.domain, volume_id):
            _refuse(storage, volume_id, here.settings.node_name, others)
    record = here.disks.attach(
        options.domain, attachment, mode=mode, bus=bus, origin=origin, shared_with=others, tell=say
    )
    say(f"volume {volume_id} is disk {record.target} of domain {record.domain_name}, serial {attachment.serial}")
    return True


def prepare(options: argparse.Namespace, here: Here, say: Say) -> bool:
    """Publish a volume to this machine, and have its device and its link ready for a domain that is to come by live
    migration."""
    volume_id = requests.get_volume_id(options.volume)
    mode, bus = _mode(read_only=options.read_only, shared=True), Bus(options.bus)
    with closing(StorageMachine(options.controller)) as storage:
        origin = storage.origin()
        here.disks.require_expectable(options.uuid, options.domain, volume_id, mode, bus, origin=origin)
        attachment = storage.publish(volume_id, here.attacher.identity(), mode)
    here.disks.prepare(options.uuid, options.domain, attachment, mode=mode, bus=bus, origin=origin)
    say(f"volume {volume_id} is ready here for domain {options.domain}; once that has come, attach it here and detach "
        "it there")  # fmt: skip
    return True


def detach(options: argparse.Namespace, here: Here, say: Say) -> bool:
    """Detach a volume and give its grant back. The first half needs no storage machine."""
    volume_id = requests.get_volume_id(options.volume)
    if options.orphan:
        here.disks.require_orphan(volume_id)
        here.disks.detach(options.domain, volume_id, wait_s=options.wait, tell=say)
        say(
            f"volume {volume_id} is detached from domain {options.domain}; what the cluster may still hold for it, "
            "ticket and claim, is cleared away by hand: docs/runbooks.md"
        )
        return True
    with closing(StorageMachine(options.controller)) as storage:

        def give_back() -> None:
            # Once more: who did not answer before may be anybody.
            here.disks.require_origin(volume_id, storage.origin())
            storage.unpublish(volume_id, here.settings.node_name)

        try:
            asked = storage.origin()
        except Unreachable:
            asked = Origin(endpoint=options.controller)
        here.disks.require_origin(volume_id, asked)
        here.disks.require_not_arrived(volume_id)
        here.disks.detach(options.domain, volume_id, give_back=give_back, wait_s=options.wait, tell=say)
    say(f"volume {volume_id} is detached from domain {options.domain}, and its grant is given back")
    return True


def resize(options: argparse.Namespace, here: Here, say: Say) -> bool:
    """Grow a volume on its storage machine, its device here, and its disk in the guest."""
    volume_id, size_bytes = requests.get_volume_id(options.volume), parse_bytes(options.size)
    if size_bytes > requests.LARGEST_VOLUME_BYTES:
        raise OutOfRange(f"{options.size} is more than ATA can address; ask for at most 128 PiB")
    here.disks.require_disk(options.domain, volume_id)
    with closing(StorageMachine(options.controller)) as storage:
        here.disks.require_origin(volume_id, storage.origin())
        granted_bytes = storage.expand(volume_id, size_bytes)
    grown_bytes = here.disks.resize(options.domain, volume_id, granted_bytes, tell=say)
    say(f"volume {volume_id} has {format_bytes(grown_bytes)}")
    return True


def show(options: argparse.Namespace, here: Here, say: Say) -> bool:
    """Show guests' disks; one that is not attached as it should be needs attention."""
    disks = here.disks.list()
    report = HostReport(node=here.settings.node, guests=guest_rows(disks))
    say(as_json(report) if options.json else as_text(report))
    return all(disk.state is DiskState.ATTACHED for disk in disks)


def ready(options: argparse.Namespace, here: Here, say: Say) -> bool:
    """Bring every guest's devices back, within a time."""
    outcomes = ready_all(here.disks, here.attacher, limit_s=options.wait)
    for one in outcomes:
        say(f"volume {one.volume_id}: {one.problem or 'ready'}")
    return not any(one.problem for one in outcomes)


def _refuse(storage: StorageMachine, volume_id: VolumeId, node: NodeName, others: Sequence[str]) -> NoReturn:
    """Refuse a shared volume that other hosts have, and give ours back: two hosts have it while one guest moves, never
    for two guests. They were looked at after publishing, so that of two who come at once none is missed. Raises:
    InUse."""
    storage.unpublish(volume_id, node)
    raise InUse(
        f"volume {volume_id} is published to {', '.join(others)}; two guests never write to one volume. To move its "
        "guest here, prepare the volume here, then migrate the guest; else detach it there first"
    )


def _mode(*, read_only: bool, shared: bool) -> AccessMode:
    if shared:
        return AccessMode.MULTI_NODE_READER_ONLY if read_only else AccessMode.MULTI_NODE_MULTI_WRITER
    return AccessMode.SINGLE_NODE_READER_ONLY if read_only else AccessMode.SINGLE_NODE_WRITER


ACTS: Mapping[str, Callable[[argparse.Namespace, Here, Say], bool]] = {
    "attach": attach,
    "prepare": prepare,
    "detach": detach,
    "resize": resize,
    "list": show,
    "ready": ready,
}
"""By their names on the command line (guest_arguments)."""
