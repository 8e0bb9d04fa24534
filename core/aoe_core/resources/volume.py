"""AoEVolume: one volume, wherever it is; its tickets ask for grants, its status tells which are in force.

Who writes what: whoever wants the volume makes the spec; the cluster role fills in `node`; each holder applies its own
ticket; the storage node alone writes the status.
"""

from typing import Annotated

from msgspec import Meta

from aoe_core.model import AccessMode, Durability, Transport, Wipe
from aoe_core.resources.fields import (
    MAX_SANS,
    MAX_TICKETS,
    Conditions,
    Fields,
    LabelName,
    MacAddress,
    ObjectMeta,
    ObjectName,
    Progress,
    Quantity,
    Time,
    keyed_by,
    rule,
    rules,
)

GuestId = Annotated[str, Meta(min_length=1, max_length=63 + 1 + 253 + 1 + 36)]
"""Namespace, name and uid of an AoEGuestDisk."""
NodeId = Annotated[str, Meta(min_length=1, max_length=256)]


class Ticket(Fields, frozen=True, kw_only=True):
    """The wish that one node may use the volume."""

    node: Annotated[ObjectName, Meta(description="The compute node.")]
    node_id: Annotated[
        NodeId, Meta(description="The node's CSI id: its name, its boot and its network cards on each SAN.")
    ]
    mode: Annotated[AccessMode, Meta(description="CSI's access mode.")]
    writable: Annotated[bool, Meta(description="Whether the node may write.")]
    block: Annotated[bool, Meta(description="A raw block device, not a file system.")] = False
    guest: Annotated[
        GuestId | None,
        Meta(description="The AoEGuestDisk it is for: namespace/name/uid. Left out: pods, by CSI."),
    ] = None


_SAME_TICKET = rules(
    rule(
        "self.mode == oldSelf.mode && self.writable == oldSelf.writable && self.block == oldSelf.block",
        "a ticket cannot change its mode; remove it, wait until its grant is gone, and ask again",
    ),
    rule(
        "has(self.guest) == has(oldSelf.guest) && (!has(self.guest) || self.guest == oldSelf.guest)",
        "pods and a guest, or two guests, cannot have a volume on one node; end the one use, wait until its grant is "
        "gone, and ask again",
    ),
    rule(
        "!self.writable || !(self.mode in ['single-node-reader-only', 'multi-node-reader-only'])",
        "a reader's mode cannot be writable; say writable: false",
    ),
)

_ADMISSIBLE = rules(
    rule(
        "self.size() <= 1 || self.all(t, t.mode == self[0].mode)",
        "several nodes can hold a volume only in one and the same mode; remove the other tickets first",
    ),
    rule(
        "self.size() <= 1 || self.all(t, t.mode in ['multi-node-reader-only', 'multi-node-multi-writer'])",
        "another node holds this volume; remove its ticket first",
    ),
    rule(
        "self.size() <= 1 || self.all(t, t.mode != 'multi-node-multi-writer' || t.block)",
        "two nodes may write raw block only, not a file system",
    ),
    rule(
        "self.filter(t, t.writable).size() <= 2",
        "two nodes write to this volume already; remove one ticket first",
    ),
    # Of one guest there are two while it moves, and it writes on one of the two nodes at a time.
    rule(
        "self.all(t, !t.writable) || self.all(t, has(t.guest) == has(self[0].guest)"
        " && (!has(t.guest) || t.guest == self[0].guest))",
        "a guest and others can hold a volume only while all of them read; remove the other tickets first",
    ),
)


class Source(Fields, frozen=True, kw_only=True):
    """What a volume begins as a copy of: one of the two."""

    volume: Annotated[LabelName | None, Meta(description="Another AoEVolume of the same node and pool.")] = None
    snapshot: Annotated[LabelName | None, Meta(description="An AoESnapshot.")] = None


_ONE_SOURCE = rules(rule("has(self.volume) != has(self.snapshot)", "name a volume or a snapshot, not both"))


class AoEVolumeSpec(Fields, frozen=True, kw_only=True):
    """What is wanted of the volume."""

    size: Annotated[Quantity, Meta(description="The least size, like 10Gi. It can grow.")]
    max_size: Annotated[Quantity | None, Meta(description="The largest size that will do.")] = None
    pool: Annotated[LabelName, Meta(description="The pool, by the name storage nodes offer it under.")]
    san: Annotated[
        LabelName | None,
        Meta(description="The SAN it is exported on; left out: any that storage and compute node share."),
    ] = None
    reach: Annotated[
        tuple[LabelName, ...],
        Meta(max_length=MAX_SANS, description="SANs one of which the storage node must be on; left out: any."),
    ] = ()
    durability: Annotated[
        Durability, Meta(description="sync: vblade -s. direct-sync: vblade -d -s, past the storage node's cache.")
    ] = Durability.SYNC
    wipe: Annotated[Wipe, Meta(description="How a thick volume is made unreadable when it is deleted.")] = Wipe.ZERO
    source: Annotated[Source | None, Meta(description="What it begins as a copy of; left out: empty."), _ONE_SOURCE] = (
        None
    )
    node: Annotated[
        ObjectName | None,
        Meta(description="The storage node. Left out, it is chosen; once accepted there, it stays."),
    ] = None
    tickets: Annotated[
        tuple[Annotated[Ticket, _SAME_TICKET], ...],
        Meta(max_length=MAX_TICKETS, description="Who may use the volume: one for each node."),
        keyed_by("node"),
        _ADMISSIBLE,
    ] = ()


def _decided(field: str, remedy: str) -> dict[str, str]:
    return rule(
        f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})",
        f"{field} cannot change; {remedy}",
    )


def _decided_list(field: str, remedy: str) -> dict[str, str]:
    # Left out and empty are the same.
    now, before = (f"(has({one}.{field}) ? {one}.{field} : [])" for one in ("self", "oldSelf"))
    return rule(f"{now} == {before}", f"{field} cannot change; {remedy}")


_SPEC_RULES = rules(
    rule("!quantity(self.size).isLessThan(quantity('1'))", "size must be at least 1 byte"),
    rule(
        "!has(self.maxSize) || quantity(self.maxSize).compareTo(quantity(self.size)) >= 0",
        "maxSize is less than size",
    ),
    _decided("pool", "make a volume in the other pool and copy"),
    _decided("san", "make a volume for the other SAN and copy"),
    _decided_list("reach", "make a volume that is reached over the other SANs and copy"),
    _decided("durability", "make a volume with the other durability and copy"),
    _decided("wipe", "make a volume with the other wipe and copy"),
    _decided("source", "make another volume from the other source"),
)


MAX_HOLDERS = 4096
"""Characters of `holders`; fewer nodes than there may be tickets fill it, if their names are long."""


class GrantStatus(Fields, frozen=True, kw_only=True):
    """A grant in force: the answer to a ticket."""

    node: Annotated[ObjectName, Meta(description="The compute node.")]
    node_id: Annotated[NodeId, Meta(description="The ticket's nodeId that the export admits.")]
    mode: Annotated[AccessMode, Meta(description="CSI's access mode.")]
    writable: Annotated[bool, Meta(description="Whether the export takes writes.")]
    block: Annotated[bool, Meta(description="A raw block device, not a file system.")] = False
    transport: Annotated[Transport, Meta(description="aoe, or local on the storage node itself.")]
    address: Annotated[str, Meta(max_length=16, description="e<shelf>.<slot>.")] = ""
    san: Annotated[str, Meta(max_length=63, description="The SAN it is exported on.")] = ""
    target_mac: Annotated[MacAddress | None, Meta(description="The storage node's card there.")] = None
    device: Annotated[str, Meta(max_length=512, description="The logical volume's path, for local.")] = ""
    size: Annotated[Quantity, Meta(description="Of the device when the grant came into force.")]
    filesystem: Annotated[str, Meta(max_length=32, description="What the storage node saw on it.")] = ""
    granted_at: Annotated[Time, Meta(description="Since when it is in force.")]


class Refusal(Fields, frozen=True, kw_only=True):
    """A ticket that no grant answers, and why."""

    node: Annotated[ObjectName, Meta(description="The compute node.")]
    node_id: Annotated[NodeId, Meta(description="The ticket's nodeId.")]
    reason: Annotated[str, Meta(max_length=64, description="The kind of error, in one word.")]
    message: Annotated[str, Meta(max_length=1024, description="The fact, and what to do about it.")]


class AoEVolumeStatus(Fields, frozen=True, kw_only=True):
    """What has become of it."""

    observed_generation: Annotated[int, Meta(ge=0, description="The generation the rest was judged by.")] = 0
    phase: Annotated[
        str,
        Meta(
            pattern="^(Pending|Creating|Ready|Deleting|Lost)$",
            description="In one word. Conditions say more.",
        ),
    ] = "Pending"
    node: Annotated[ObjectName | None, Meta(description="The storage node that has taken it on.")] = None
    size: Annotated[Quantity | None, Meta(description="The size it has now, as asked for.")] = None
    device_size: Annotated[Quantity | None, Meta(description="The same, rounded up to LVM's extents.")] = None
    sans: Annotated[
        tuple[LabelName, ...],
        Meta(max_length=MAX_SANS, description="The SANs its storage node can export it on."),
    ] = ()
    serial: Annotated[str, Meta(max_length=9, description="What identifies it on the wire and in a guest.")] = ""
    filesystem: Annotated[str, Meta(max_length=32, description="What the storage node saw on it.")] = ""
    grants: Annotated[
        tuple[GrantStatus, ...],
        Meta(max_length=MAX_TICKETS, description="The grants in force."),
        keyed_by("node"),
    ] = ()
    refusals: Annotated[
        tuple[Refusal, ...],
        Meta(max_length=MAX_TICKETS, description="The tickets that could not be granted yet."),
        keyed_by("node"),
    ] = ()
    holders: Annotated[str, Meta(max_length=MAX_HOLDERS, description="The same in one line, for a table.")] = ""
    progress: Annotated[Progress | None, Meta(description="The copy it begins with, under way.")] = None
    conditions: Annotated[
        Conditions,
        Meta(description="Placed, Ready, Expanded, Granted, Revoked, Deleted, Current: with reason and remedy."),
    ] = ()


class AoEVolume(Fields, frozen=True, kw_only=True):
    """A logical volume on one storage node, exported over ATA-over-Ethernet to the nodes that hold tickets for it."""

    metadata: ObjectMeta
    spec: Annotated[AoEVolumeSpec, Meta(description="What is wanted."), _SPEC_RULES]
    status: Annotated[AoEVolumeStatus, Meta(description="What has become of it.")] = AoEVolumeStatus()


ROOT_RULES = (
    # What was asked for and not had can be asked for no more.
    rule(
        "quantity(self.spec.size).compareTo(quantity(oldSelf.spec.size)) >= 0"
        " || (has(self.status) && has(self.status.size)"
        " && quantity(self.spec.size).compareTo(quantity(self.status.size)) >= 0)",
        "a volume cannot shrink; make a smaller one and copy",
    ),
    rule(
        "!has(oldSelf.spec.node) || (has(self.spec.node) && self.spec.node == oldSelf.spec.node)"
        " || !has(oldSelf.status) || !has(oldSelf.status.node)",
        "a storage node has taken this volume on and its data is there; make a volume on the other node and copy",
    ),
)
