"""AoEGuestDisk: a claim of its own namespace as a disk of a guest.

Who writes what: a person makes the spec; the cluster role admits it and writes the grant; the role on a libvirt guest's
host writes what has become of the disk. Each has a finalizer of its own, and the hosts' go first: two of them, while a
guest moves from one to the other. Of a machine of KubeVirt's the cluster role writes everything: KubeVirt takes the
claim to the machine's node as it would take any other.
"""

import hashlib
from typing import Annotated, Literal, Protocol

from msgspec import Meta
from msgspec.structs import replace

from aoe_core.model import AccessMode, Attachment, Transport
from aoe_core.resources.fields import (
    GROUP,
    Conditions,
    Fields,
    MacAddress,
    ObjectMeta,
    ObjectName,
    Quantity,
    keyed_by,
    quantity,
    rule,
    rules,
)

GRANT_FINALIZER = f"{GROUP}/cluster"
"""The cluster role's: a host may have a grant, and the claim a finalizer."""
_HOST_FINALIZER = f"guests.{GROUP}/"
_LONGEST = 63

DomainName = Annotated[str, Meta(pattern=r"^[^/\x00-\x1f]+$", max_length=253)]
Bus = Literal["scsi", "virtio"]


class LibvirtGuest(Fields, frozen=True, kw_only=True):
    """A domain of one host's libvirt."""

    host: Annotated[ObjectName, Meta(description="The Kubernetes node that libvirt runs on.")]
    domain: Annotated[DomainName, Meta(description="The domain's name or UUID there.")]
    migrate_to: Annotated[
        ObjectName | None,
        Meta(description="Another host, made ready to take the running guest over (live migration)."),
    ] = None


class KubeVirtGuest(Fields, frozen=True, kw_only=True):
    """A machine of KubeVirt's."""

    virtual_machine: Annotated[ObjectName, Meta(description="A VirtualMachine of this namespace.")]


class AoEGuestDiskSpec(Fields, frozen=True, kw_only=True):
    """Which claim, which guest, and how."""

    claim: Annotated[
        ObjectName,
        Meta(
            description="A PersistentVolumeClaim of this namespace, with volumeMode: Block and a class of this driver."
        ),
    ]
    read_only: Annotated[bool, Meta(description="Whether the guest may only read.")] = False
    bus: Annotated[Bus, Meta(description="How the guest sees it: virtio, or scsi with virtio-scsi's controller.")] = (
        "virtio"
    )
    libvirt: Annotated[LibvirtGuest | None, Meta(description="The guest, if a host's libvirt has it.")] = None
    kubevirt: Annotated[KubeVirtGuest | None, Meta(description="The guest, if KubeVirt has it.")] = None


class HostGrant(Fields, frozen=True, kw_only=True):
    """The right of the guest's host to use the volume, and all it needs to do so."""

    serial: Annotated[str, Meta(max_length=9, description="What identifies the volume on the wire and in the guest.")]
    writable: Annotated[bool, Meta(description="Whether the export takes writes.")]
    transport: Annotated[Transport, Meta(description="aoe, or local on the storage node itself.")]
    address: Annotated[str, Meta(max_length=16, description="e<shelf>.<slot>.")] = ""
    san: Annotated[str, Meta(max_length=63, description="The SAN it is exported on.")] = ""
    target_mac: Annotated[MacAddress | None, Meta(description="The storage node's card there.")] = None
    device: Annotated[str, Meta(max_length=512, description="The logical volume's path, for local.")] = ""
    size: Annotated[Quantity, Meta(description="Of the device: what the guest may be told.")]
    filesystem: Annotated[str, Meta(max_length=32, description="What the storage node saw on it.")] = ""


class HostStatus(Fields, frozen=True, kw_only=True):
    """The disk on one host."""

    host: Annotated[ObjectName, Meta(description="The host.")]
    grant: Annotated[HostGrant | None, Meta(description="Its right to use the volume, once it has one.")] = None
    here: Annotated[bool, Meta(description="Whether the guest is on it.")] = False
    target: Annotated[str, Meta(max_length=16, description="The disk's name among its domain's; a hint at most.")] = ""
    trouble: Annotated[str, Meta(max_length=1024, description="Why it has not let go yet, if it is to.")] = ""


class AoEGuestDiskStatus(Fields, frozen=True, kw_only=True):
    """What has become of it."""

    observed_generation: Annotated[int, Meta(ge=0, description="The generation the rest was judged by.")] = 0
    guest: Annotated[
        str, Meta(max_length=512, description="Host and domain, or the virtual machine, in one word, for a table.")
    ] = ""
    volume: Annotated[str, Meta(max_length=63, description="The AoEVolume behind the claim.")] = ""
    serial: Annotated[str, Meta(max_length=9, description="What identifies the volume in the guest.")] = ""
    mode: Annotated[AccessMode | None, Meta(description="How the guest uses it: CSI's access mode.")] = None
    hosts: Annotated[
        tuple[HostStatus, ...],
        Meta(
            max_length=8,
            description="The hosts of libvirt that may have a grant, one, and two while the guest moves; or the node "
            "of KubeVirt's machine.",
        ),
        keyed_by("host"),
    ] = ()
    domain_uuid: Annotated[str, Meta(max_length=36, description="The domain, whatever it is called by now.")] = ""
    size: Annotated[Quantity | None, Meta(description="The size the guest has been told.")] = None
    conditions: Annotated[
        Conditions,
        Meta(description="Granted, Attached, Grown, Migratable, Released: each with reason and remedy."),
    ] = ()


_SPEC_RULES = rules(
    rule("has(self.libvirt) != has(self.kubevirt)", "name one guest: libvirt, or kubevirt"),
    rule(
        "self.claim == oldSelf.claim && has(self.libvirt) == has(oldSelf.libvirt)"
        " && (!has(self.libvirt) || self.libvirt.domain == oldSelf.libvirt.domain)"
        " && (!has(self.kubevirt) || self.kubevirt == oldSelf.kubevirt)"
        " && has(self.readOnly) == has(oldSelf.readOnly) && (!has(self.readOnly) || self.readOnly == oldSelf.readOnly)"
        " && has(self.bus) == has(oldSelf.bus) && (!has(self.bus) || self.bus == oldSelf.bus)",
        "a guest's disk cannot change; delete it, wait until it is gone, make another",
    ),
    rule(
        "!has(self.libvirt) || !has(self.libvirt.migrateTo) || self.libvirt.migrateTo != self.libvirt.host",
        "migrateTo is the host it is on; name another one",
    ),
    rule(
        "!has(self.libvirt) || !has(oldSelf.libvirt) || !has(self.libvirt.migrateTo) || !has(oldSelf.libvirt.migrateTo)"
        " || self.libvirt.migrateTo == oldSelf.libvirt.migrateTo",
        "a guest moves to one host at a time; remove migrateTo, and wait until that host has let go",
    ),
)
ROOT_RULES = (
    rule(
        "!has(self.spec.libvirt) || !has(oldSelf.spec.libvirt)"
        " || self.spec.libvirt.host == oldSelf.spec.libvirt.host || (has(self.status) && has(self.status.hosts)"
        " && self.status.hosts.exists(h, h.host == self.spec.libvirt.host && has(h.grant)))",
        "a guest's disk goes to another host by live migration: set libvirt.migrateTo first, and wait for Migratable",
    ),
)


class NamespacedMeta(ObjectMeta, frozen=True, kw_only=True):
    """metav1.ObjectMeta of what lives in a namespace."""

    namespace: str


class AoEGuestDisk(Fields, frozen=True, kw_only=True):
    """A PersistentVolumeClaim that is a disk of a guest, attached while the guest runs and detached when this goes."""

    metadata: NamespacedMeta
    spec: Annotated[
        AoEGuestDiskSpec,
        Meta(description="Which claim, which guest, and how."),
        _SPEC_RULES,
    ]
    status: Annotated[AoEGuestDiskStatus, Meta(description="What has become of it.")] = AoEGuestDiskStatus()


def key_of(disk: AoEGuestDisk) -> str:
    """Return how a person names a guest's disk: namespace and name."""
    return f"{disk.metadata.namespace}/{disk.metadata.name}"


def holder_of(disk: AoEGuestDisk) -> str:
    """Return how a ticket and a host's record name a guest's disk: this very one, and no later one of its name."""
    return f"{key_of(disk)}/{disk.metadata.uid}"


def host_finalizer(host: str) -> str:
    """Return one host's finalizer: its guest may have the disk. A node's name may be too long for one."""
    name = host if len(host) <= _LONGEST else hashlib.sha256(host.encode()).hexdigest()[:_LONGEST]
    return f"{_HOST_FINALIZER}{name}"


def is_host_finalizer(finalizer: str) -> bool:
    """Say whether a finalizer is a host's."""
    return finalizer.startswith(_HOST_FINALIZER)


def libvirt_guest(disk: AoEGuestDisk) -> LibvirtGuest:
    """Return the domain that a disk is of; it is known to be one's."""
    assert disk.spec.libvirt is not None, "only disks of libvirt guests come here"
    return disk.spec.libvirt


def wanted_hosts(disk: AoEGuestDisk) -> tuple[str, ...]:
    """Return the hosts that are to have a grant: a libvirt guest's, and the one it is to move to."""
    guest = disk.spec.libvirt
    if guest is None:
        return ()
    return (guest.host,) if guest.migrate_to is None else (guest.host, guest.migrate_to)


def on_host(status: AoEGuestDiskStatus, host: str) -> HostStatus | None:
    """Return what a status says of one host."""
    return next((one for one in status.hosts if one.host == host), None)


def with_host(status: AoEGuestDiskStatus, entry: HostStatus) -> AoEGuestDiskStatus:
    """Return a status with that of one host put in."""
    kept = (one for one in status.hosts if one.host != entry.host)
    return replace(status, hosts=tuple(sorted((*kept, entry), key=lambda one: one.host)))


def without_host(status: AoEGuestDiskStatus, host: str) -> AoEGuestDiskStatus:
    """Return a status without that of one host."""
    return replace(status, hosts=tuple(one for one in status.hosts if one.host != host))


def is_going(disk: AoEGuestDisk) -> bool:
    """Say whether its end was asked for."""
    return disk.metadata.deletion_timestamp is not None


def granted_of(attachment: Attachment) -> HostGrant:
    """Return an attachment as the status tells of it."""
    return HostGrant(
        serial=attachment.serial,
        writable=attachment.writable,
        transport=attachment.transport,
        address=str(attachment.address) if attachment.address else "",
        san=attachment.san or "",
        target_mac=attachment.target_mac,
        device=attachment.device,
        size=quantity(attachment.size_bytes),
        filesystem=attachment.filesystem,
    )


class GuestDiskStore(Protocol):
    """Where guests' disks are kept. Reads are of the present. Every method raises Unreachable; every change raises Busy
    when somebody else has changed the disk since it was read, and NotFound when it is gone."""

    def find(self, namespace: str, name: str) -> AoEGuestDisk | None:
        """Return a guest's disk, None when it is not there."""

    def list(self) -> tuple[AoEGuestDisk, ...]:
        """Return every guest's disk, ordered by namespace and name."""

    def update_status(self, disk: AoEGuestDisk) -> AoEGuestDisk:
        """Replace the status."""

    def put_finalizers(self, disk: AoEGuestDisk, finalizers: tuple[str, ...]) -> AoEGuestDisk:
        """Replace the finalizers."""

    def is_definition_going(self) -> bool:
        """Say whether the definition of guests' disks is being removed, or gone: then they go with it, all of them,
        and nobody has asked for the end of any."""


def find_same(store: GuestDiskStore, disk: AoEGuestDisk) -> AoEGuestDisk | None:
    """Return this very disk as it is now, None when it is gone, or another one of its name is there. Raises:
    Unreachable."""
    now = store.find(disk.metadata.namespace, disk.metadata.name)
    return now if now is not None and now.metadata.uid == disk.metadata.uid else None
