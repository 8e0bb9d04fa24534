"""What to do next for a guest's disk: values in, actions out. Pure.

Attaching is a list that may be cut anywhere and is made anew from what is there then. Detaching is one step at a time,
for each needs to be seen done before the next: libvirt's configuration, the guest that lets go when it likes, and only
then what the guest stood on. Refusals are raised, before anything is done.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from aoe_core.errors import Conflict, InUse
from aoe_core.guests.disk import find_disk
from aoe_core.host.contracts import Domain, DomainDisk


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Bring the device up, proven."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Have the stable link lead to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachConfig:
    """Have the domain start with it."""

    uuid: str
    disk: DomainDisk


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachLive:
    """Plug it into the running guest."""

    uuid: str
    disk: DomainDisk


@dataclass(frozen=True, slots=True, kw_only=True)
class DetachConfig:
    """Have the domain start without it."""

    uuid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AskGuest:
    """Ask the running guest to let go of it, and wait."""

    uuid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlink:
    """Remove the stable link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unstage:
    """Let go of the device, if nobody has it open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Note that nothing of it is here any more."""


Action = Stage | Link | AttachConfig | AttachLive | DetachConfig | AskGuest | Unlink | Unstage | Release
_GONE: tuple[Action, ...] = (Unlink(), Unstage(), Release())


def plan_attach(disk: DomainDisk, domain: Domain) -> tuple[Action, ...]:
    """Return what brings a disk into a domain. Raises: Conflict when it is in it as another disk.

    The configuration comes first: a guest that restarts in between has the disk, and never one that is gone after it.
    """
    steps: list[Action] = [Stage(), Link()]
    if domain.persistent and not _has(domain.config, disk, f"domain {domain.name}"):
        steps.append(AttachConfig(uuid=domain.uuid, disk=disk))
    if domain.running and not _has(domain.live, disk, f"the running guest {domain.name}"):
        steps.append(AttachLive(uuid=domain.uuid, disk=disk))
    return tuple(steps)


def is_attached(disk: DomainDisk, domain: Domain) -> bool:
    """Say whether nothing is left to do in the domain. Raises: Conflict."""
    return plan_attach(disk, domain) == (Stage(), Link())


def plan_detach(
    alias: str, domain: Domain | None, others: Sequence[Domain] = (), *, recorded: bool
) -> tuple[Action, ...]:
    """Return the next step of taking a disk from a domain; the last ones come together, when no domain has it.

    `domain`: None when it is proven absent. `others`: every other domain that has the volume. `recorded`: whether the
    volume was to be this domain's disk. Raises: InUse.
    """
    # What a sleeping domain wakes with is in its memory's image, not in its configuration. None gets a disk while it
    # sleeps, so one on record, or in the configuration, may have slept in with it; any other one has not.
    if domain is not None and domain.saved and (recorded or find_disk(domain.config, alias)):
        raise InUse(
            f"domain {domain.name} sleeps with its memory on disk, and wakes with the disks it had; start it, or use "
            "virsh managedsave-remove, then detach the volume again"
        )
    if domain is not None and find_disk(domain.config, alias):
        return (DetachConfig(uuid=domain.uuid),)
    if domain is not None and find_disk(domain.live, alias):
        return (AskGuest(uuid=domain.uuid),)
    if others:
        names = ", ".join(sorted(one.name for one in others))
        raise InUse(
            f"disk {alias} is gone from its domain, and domain {names} of this host has it as well; take it from there "
            "with virsh detach-disk --config, then detach it again"
        )
    return _GONE


def _has(disks: Sequence[DomainDisk], disk: DomainDisk, where: str) -> bool:
    found = find_disk(disks, disk.alias)
    if found is not None and found != disk:
        raise Conflict(
            f"{where} has disk {disk.alias} as {_words(found)}, and it was to be {_words(disk)}; detach it first"
        )
    return found is not None


def _words(disk: DomainDisk) -> str:
    return f"{disk.target} on bus {disk.bus} from {disk.source} ({'read-only' if disk.read_only else 'writable'})"
