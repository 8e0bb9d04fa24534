"""Between resources and the words of the model. Pure."""

from msgspec.structs import replace

from aoe_core.model import (
    Address,
    Attachment,
    FromSnapshot,
    FromVolume,
    Grant,
    Mac,
    NodeIdentity,
    NodeName,
    PoolName,
    SanName,
    Serial,
    Snapshot,
    SnapshotId,
    Transport,
    Volume,
    VolumeId,
    VolumeSpec,
    VolumeState,
    VolumeStatus,
    serial_of,
)
from aoe_core.resources import volume as resource
from aoe_core.resources.conditions import seconds_of, time_of
from aoe_core.resources.fields import parse_quantity, quantity
from aoe_core.resources.guest_disk import HostGrant
from aoe_core.resources.snapshot import AoESnapshot
from aoe_core.resources.volume import AoEVolume, AoEVolumeSpec, GrantStatus


def wanted_of(spec: VolumeSpec) -> AoEVolumeSpec:
    """Return the resource that asks for a volume."""
    source: resource.Source | None = None
    if isinstance(spec.source, FromSnapshot):
        source = resource.Source(snapshot=spec.source.snapshot_id)
    elif isinstance(spec.source, FromVolume):
        source = resource.Source(volume=spec.source.volume_id)
    return AoEVolumeSpec(
        size=quantity(spec.size_bytes),
        max_size=quantity(spec.limit_bytes) if spec.limit_bytes else None,
        pool=spec.pool,
        san=spec.san,
        reach=spec.reach,
        durability=spec.durability,
        wipe=spec.wipe,
        source=source,
    )


def request_of(asked: AoEVolume) -> VolumeSpec:
    """Return what a resource asks of its storage node. Raises: Invalid."""
    spec = asked.spec
    source: FromSnapshot | FromVolume | None = None
    if spec.source is not None and spec.source.snapshot is not None:
        source = FromSnapshot(snapshot_id=SnapshotId(spec.source.snapshot))
    elif spec.source is not None and spec.source.volume is not None:
        source = FromVolume(volume_id=VolumeId(spec.source.volume))
    return VolumeSpec(
        volume_id=VolumeId(asked.metadata.name),
        pool=PoolName(spec.pool),
        size_bytes=parse_quantity(spec.size),
        limit_bytes=parse_quantity(spec.max_size) if spec.max_size else 0,
        durability=spec.durability,
        wipe=spec.wipe,
        san=SanName(spec.san) if spec.san else None,
        reach=tuple(SanName(san) for san in spec.reach),
        source=source,
    )


def volume_of(made: AoEVolume) -> Volume:
    """Return the volume a Ready resource stands for."""
    asked = request_of(made)
    size_bytes = parse_quantity(made.status.size or made.spec.size)
    return Volume(
        volume_id=asked.volume_id,
        pool=asked.pool,
        size_bytes=size_bytes,
        device_bytes=parse_quantity(made.status.device_size) if made.status.device_size else size_bytes,
        state=VolumeState.READY,
        durability=asked.durability,
        wipe=asked.wipe,
        san=asked.san,
        reach=tuple(SanName(san) for san in made.status.sans),
        source=asked.source,
        filesystem=made.status.filesystem or None,
    )


def status_of(made: AoEVolume) -> VolumeStatus:
    """Return the volume, the grants in force, and which of them are guests'."""
    volume_id = VolumeId(made.metadata.name)
    return VolumeStatus(
        volume=volume_of(made),
        grants=tuple(_grant_of(volume_id, granted) for granted in made.status.grants),
        guest_nodes=frozenset(NodeName(ticket.node) for ticket in made.spec.tickets if ticket.guest is not None),
    )


def _grant_of(volume_id: VolumeId, granted: GrantStatus) -> Grant:
    identity = NodeIdentity.parse(granted.node_id)
    san = SanName(granted.san) if granted.san else None
    return Grant(
        volume_id=volume_id,
        node=NodeName(granted.node),
        node_id=granted.node_id,
        boot=identity.boot,
        mode=granted.mode,
        writable=granted.writable,
        block=granted.block,
        transport=granted.transport,
        san=san,
        macs=identity.macs_on(san) if san else (),
        address=Address.parse(granted.address) if granted.address else None,
        granted_s=seconds_of(granted.granted_at),
    )


def granted_of(grant: Grant, attachment: Attachment) -> GrantStatus:
    """Return a grant in force as the status tells of it."""
    return replace(
        held_of(grant, quantity(attachment.size_bytes)),
        target_mac=attachment.target_mac,
        device=attachment.device,
        filesystem=attachment.filesystem,
    )


def held_of(grant: Grant, size: str) -> GrantStatus:
    """Return a grant as its export file alone tells of it. `size`: the volume's quantity."""
    return GrantStatus(
        node=grant.node,
        node_id=grant.node_id,
        mode=grant.mode,
        writable=grant.writable,
        block=grant.block,
        transport=grant.transport,
        address=str(grant.address) if grant.address else "",
        san=grant.san or "",
        size=size,
        granted_at=time_of(grant.granted_s),
    )


def attachment_of(volume_id: VolumeId, granted: GrantStatus | HostGrant) -> Attachment:
    """Return what the node needs to use its grant."""
    local = granted.transport is Transport.LOCAL
    return Attachment(
        volume_id=volume_id,
        transport=granted.transport,
        serial=Serial(serial_of(volume_id)),
        size_bytes=parse_quantity(granted.size),
        filesystem=granted.filesystem,
        writable=granted.writable,
        address=None if local else Address.parse(granted.address),
        san=SanName(granted.san) if granted.san else None,
        target_mac=Mac(granted.target_mac) if granted.target_mac else None,
        device=granted.device,
    )


def snapshot_of(made: AoESnapshot) -> Snapshot:
    """Return the snapshot a ready resource stands for."""
    status = made.status
    return Snapshot(
        snapshot_id=SnapshotId(made.metadata.name),
        source=VolumeId(made.spec.volume),
        pool=PoolName(status.pool),
        size_bytes=parse_quantity(status.size or "0"),
        created_s=seconds_of(status.taken_at) if status.taken_at else 0,
        filesystem=status.filesystem or None,
    )
