"""AoESnapshot: a thin snapshot of one volume, on that volume's storage node."""

from typing import Annotated

from msgspec import Meta

from aoe_core.resources.fields import (
    Conditions,
    Fields,
    LabelName,
    ObjectMeta,
    ObjectName,
    Quantity,
    Time,
    rule,
    rules,
)


class AoESnapshotSpec(Fields, frozen=True, kw_only=True):
    """What is wanted of the snapshot."""

    volume: Annotated[LabelName, Meta(description="The AoEVolume it is taken of, in a thin pool.")]
    node: Annotated[
        ObjectName, Meta(description="The volume's storage node: the one that takes the snapshot and keeps it.")
    ]


class AoESnapshotStatus(Fields, frozen=True, kw_only=True):
    """What has become of it."""

    observed_generation: Annotated[int, Meta(ge=0, description="The generation the rest was judged by.")] = 0
    ready: Annotated[bool, Meta(description="Whether it can be restored from.")] = False
    pool: Annotated[str, Meta(max_length=63, description="The thin pool it is in.")] = ""
    size: Annotated[Quantity | None, Meta(description="The least size of a volume made from it.")] = None
    filesystem: Annotated[str, Meta(max_length=32, description="What its volume held.")] = ""
    taken_at: Annotated[Time | None, Meta(description="The moment whose content it holds.")] = None
    conditions: Annotated[Conditions, Meta(description="Ready, Deleted: each with reason and remedy.")] = ()


class AoESnapshot(Fields, frozen=True, kw_only=True):
    """The content of a volume at one moment; any number of volumes can be made from it."""

    metadata: ObjectMeta
    spec: Annotated[
        AoESnapshotSpec,
        Meta(description="What is wanted."),
        rules(rule("self == oldSelf", "a snapshot cannot change; take another one")),
    ]
    status: Annotated[AoESnapshotStatus, Meta(description="What has become of it.")] = AoESnapshotStatus()
