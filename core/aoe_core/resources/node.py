"""AoENode: one storage node: what it is told to offer, and what it says it has.

An administrator writes the spec (the chart can); the node's own storage role writes the status.
"""

from typing import Annotated

from msgspec import Meta

from aoe_core.resources.fields import (
    A_SET,
    Conditions,
    Fields,
    Interface,
    LabelName,
    MacAddress,
    ObjectMeta,
    Progress,
    Quantity,
    ShelfNumber,
    keyed_by,
    rule,
    rules,
)

_LVM_NAME = r"^[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,126}$"
LvmName = Annotated[str, Meta(pattern=_LVM_NAME, max_length=127)]
Percent = Annotated[int, Meta(ge=1, le=100)]


class PoolSpec(Fields, frozen=True, kw_only=True):
    """A named class of space: a volume group, or a thin pool in it."""

    name: Annotated[LabelName, Meta(description="What a StorageClass's parameter pool says.")]
    volume_group: Annotated[LvmName, Meta(description="The LVM volume group; it must have this node's system ID.")]
    thin_pool: Annotated[LvmName | None, Meta(description="The thin pool in it; left out: thick volumes.")] = None
    overprovision_percent: Annotated[
        Annotated[int, Meta(ge=100, le=10000)],
        Meta(description="Thin only: how much of its size the pool may promise. Above 100 a full pool fails writes."),
    ] = 100
    spare: Annotated[Quantity, Meta(description="Space never given out.")] = "0"
    thin_data_limit_percent: Annotated[
        Percent, Meta(description="Thin only: above this share of used data, nothing new is made.")
    ] = 90
    thin_metadata_limit_percent: Annotated[
        Percent, Meta(description="Thin only: the same for the pool's metadata.")
    ] = 80


class ShelfRange(Fields, frozen=True, kw_only=True):
    """Shelves from `first` to `last`."""

    first: Annotated[ShelfNumber, Meta(description="The first shelf.")]
    last: Annotated[ShelfNumber, Meta(description="The last shelf.")]


class SanSpec(Fields, frozen=True, kw_only=True):
    """An Ethernet segment that the node is on."""

    name: Annotated[LabelName, Meta(description="The segment's name, the same on every node on it.")]
    interface: Annotated[Interface, Meta(description="This node's NIC, bond or VLAN on it; never a bridge port.")]
    shelves: Annotated[
        tuple[Annotated[ShelfRange, rules(rule("self.first <= self.last", "first is greater than last"))], ...],
        Meta(
            min_length=1,
            max_length=16,
            description="Shelves this node may claim: no other machine on the segment has, or ever had, one of them.",
        ),
    ]


class AoENodeSpec(Fields, frozen=True, kw_only=True):
    """What the node is told to offer."""

    pools: Annotated[
        tuple[PoolSpec, ...], Meta(max_length=32, description="The pools it offers."), keyed_by("name")
    ] = ()
    sans: Annotated[tuple[SanSpec, ...], Meta(max_length=16, description="The SANs it is on."), keyed_by("name")] = ()
    unschedulable: Annotated[bool, Meta(description="No new volumes are placed here; those that are stay.")] = False
    decommissioned: Annotated[
        bool,
        Meta(
            description="The node is gone for good and its disks with it: once it is silent, its volumes count as"
            " lost and may be deleted. Its shelves stay claimed. There is no way back."
        ),
    ] = False
    exporter: Annotated[
        Annotated[str, Meta(pattern=r"^/\S+$", max_length=256)],
        Meta(description="A program on the node with vblade's command line."),
    ] = "/usr/sbin/vblade"
    buffers: Annotated[
        Annotated[int, Meta(ge=1, le=65535)], Meta(description="Frames an initiator may have in flight per target.")
    ] = 16
    rest_seconds: Annotated[
        Annotated[int, Meta(ge=1, le=86400)],
        Meta(description="How long a revoked address rests: longer than any compute node's aoe_deadsecs."),
    ] = 660


class PoolStatus(Fields, frozen=True, kw_only=True):
    """What a pool can still give out."""

    name: Annotated[LabelName, Meta(description="The pool.")]
    available: Annotated[Quantity, Meta(description="What can still be given out of it.")]
    largest_volume: Annotated[Quantity, Meta(description="The largest volume it can take now.")]
    snapshots: Annotated[bool, Meta(description="Whether it can take snapshots.")] = False


class SanStatus(Fields, frozen=True, kw_only=True):
    """The node's card on a SAN."""

    name: Annotated[LabelName, Meta(description="The SAN.")]
    interface: Annotated[Interface, Meta(description="The network interface.")]
    macs: Annotated[tuple[MacAddress, ...], Meta(max_length=8, description="Its MAC addresses."), A_SET] = ()
    mtu: Annotated[Annotated[int, Meta(ge=0, le=65535)], Meta(description="Its MTU.")] = 0
    up: Annotated[bool, Meta(description="Whether it has a link.")] = False
    shelves: Annotated[
        tuple[ShelfNumber, ...], Meta(max_length=1024, description="The shelves this node has claimed there."), A_SET
    ] = ()


class Finding(Fields, frozen=True, kw_only=True):
    """Something that preflight found."""

    check: Annotated[str, Meta(max_length=128, description="What was looked at.")]
    severity: Annotated[str, Meta(pattern="^(warning|error)$", description="error: volumes cannot be served.")]
    fact: Annotated[str, Meta(max_length=1024, description="What was seen.")]
    remedy: Annotated[str, Meta(max_length=1024, description="What to do.")] = ""


MAX_ORPHANS = 256
MAX_WORK = 64


class Orphan(Fields, frozen=True, kw_only=True):
    """Something of ours on the node that nothing wants. It is reported, and never removed unasked."""

    kind: Annotated[str, Meta(max_length=64, description="volume, logical volume or export.")]
    name: Annotated[str, Meta(max_length=256, description="Its name on the host.")]
    fact: Annotated[str, Meta(max_length=1024, description="What is odd, and what to do.")]


class AoENodeStatus(Fields, frozen=True, kw_only=True):
    """What the node says it has."""

    observed_generation: Annotated[int, Meta(ge=0, description="The generation the rest was judged by.")] = 0
    boot: Annotated[str, Meta(max_length=36, description="The kernel's boot_id.")] = ""
    free: Annotated[Quantity | None, Meta(description="What all its pools can still give out together.")] = None
    pools: Annotated[tuple[PoolStatus, ...], Meta(max_length=32, description="Its pools."), keyed_by("name")] = ()
    sans: Annotated[tuple[SanStatus, ...], Meta(max_length=16, description="Its SANs."), keyed_by("name")] = ()
    volumes: Annotated[int, Meta(ge=0, description="How many volumes it has.")] = 0
    exports: Annotated[int, Meta(ge=0, description="How many grants are in force.")] = 0
    findings: Annotated[tuple[Finding, ...], Meta(max_length=128, description="What preflight found amiss.")] = ()
    work: Annotated[tuple[Progress, ...], Meta(max_length=MAX_WORK, description="Copies and wipes under way.")] = ()
    orphans: Annotated[tuple[Orphan, ...], Meta(max_length=MAX_ORPHANS, description="What nothing wants.")] = ()
    conditions: Annotated[Conditions, Meta(description="Ready, Live, Decommissioned: with reason and remedy.")] = ()


class AoENode(Fields, frozen=True, kw_only=True):
    """A storage node: its volume groups, its cards, its shelves. Its name is the Kubernetes node's."""

    metadata: ObjectMeta
    spec: Annotated[
        AoENodeSpec,
        Meta(description="What the node is told to offer."),
        rules(
            rule(
                "!(has(oldSelf.decommissioned) && oldSelf.decommissioned)"
                " || (has(self.decommissioned) && self.decommissioned)",
                "a decommissioned node's volumes count as lost already; delete this object and make it anew",
            ),
            rule(
                "!has(self.pools) || self.pools.all(p, self.pools.exists_one(q, q.volumeGroup == p.volumeGroup"
                " && (has(q.thinPool) ? q.thinPool : '') == (has(p.thinPool) ? p.thinPool : '')))",
                "two pools are of one place, and each would promise all of its room; name it once",
            ),
            rule(
                "!has(self.sans) || self.sans.all(s, self.sans.exists_one(t, t.interface == s.interface))",
                "two SANs are on one interface; give each one its own, a VLAN for example",
            ),
        ),
    ]
    status: Annotated[AoENodeStatus, Meta(description="What the node says it has.")] = AoENodeStatus()
