"""A volume's disk in a domain: what it is called there, and whether it is there. Pure.

Known again by its alias, which is derived from the volume and which libvirt keeps, because of its `ua-`, through every
start of the guest. Serials are lower case, as everything libvirt plugs in.
"""

import itertools
import string
from collections.abc import Callable, Collection, Iterable, Iterator

from aoe_core.errors import NoSpace
from aoe_core.guests.records import Bus, GuestRecord
from aoe_core.host.contracts import Domain, DomainDisk
from aoe_core.model import AccessMode, Serial

_PREFIXES = {Bus.VIRTIO: "vd", Bus.SCSI: "sd"}


def alias_of(serial: Serial) -> str:
    """Return the alias of a volume's disk, in any domain."""
    return f"ua-aoe-{serial}"


def disk_of(record: GuestRecord, source: str) -> DomainDisk:
    """Return the disk a domain is to have. `source`: the volume's stable link."""
    return DomainDisk(
        target=record.target,
        bus=record.bus.value,
        source=source,
        serial=record.attachment.serial,
        alias=alias_of(record.attachment.serial),
        read_only=record.read_only,
        # For libvirt's lock manager, where there is one. QEMU's own image locks guard nothing here: each emulator has
        # device nodes of its own, on which they do not meet. That one guest has a volume is for us alone to see to.
        shareable=record.mode is AccessMode.MULTI_NODE_MULTI_WRITER,
    )


def find_disk(disks: Iterable[DomainDisk], alias: str) -> DomainDisk | None:
    """Return the disk of an alias."""
    return next((disk for disk in disks if disk.alias == alias), None)


def users_of(domains: Iterable[Domain], alias: str, is_volume: Callable[[str], bool]) -> tuple[Domain, ...]:
    """Return the domains that have a volume's disk, live or in their configuration, under its alias or any other.
    `is_volume`: whether a path leads to the volume."""
    return tuple(
        domain
        for domain in domains
        if any(
            disk.alias == alias or (disk.source != "" and is_volume(disk.source))
            for disk in (*domain.live, *domain.config)
        )
    )


def has_come(domain: Domain, alias: str) -> bool:
    """Say whether a guest is where a domain is: it runs there with a disk. What an earlier move left there may run, and
    without it; one that is still on its way does not run yet."""
    return find_disk(domain.live, alias) is not None and not domain.arriving


def free_target(domain: Domain, bus: Bus, reserved: Collection[str]) -> str:
    """Return a target that no disk of the domain has, live or from its next start on. Raises: NoSpace.

    Never the first name: a domain without a boot order starts from the disk that is first by name.
    """
    taken = {disk.target for disk in (*domain.live, *domain.config)} | set(reserved)
    for name in itertools.islice(_names(_PREFIXES[bus]), 1, 702):
        if name not in taken:
            return name
    raise NoSpace(f"domain {domain.name} has no free target on bus {bus.value}; detach a disk")


def _names(prefix: str) -> Iterator[str]:
    """Yield vda to vdz, then vdaa to vdzz, as the kernel names disks (drivers/scsi/sd.c, sd_format_disk_name)."""
    for length in (1, 2):
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            yield prefix + "".join(letters)
