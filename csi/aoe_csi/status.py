"""What `aoe-csi status` prints: one machine's pools, volumes, exports, grants, staged devices and orphans. And what
`aoe-csi guest list` does: guests' disks.

Plain values in, text or JSON out; it asks nobody and changes nothing.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from aoe_core.attach.records import BlockUse, StageRecord
from aoe_core.guests.disk_state import GuestDisk
from aoe_core.host.exports import ExportFile, ExportState
from aoe_core.model import Grant, Volume
from aoe_core.units import format_bytes
from aoe_core.volumes.inspection import Inspection, Orphan


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRow:
    """A pool and what it can still give out."""

    pool: str
    available_bytes: int
    maximum_volume_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRow:
    """A volume, however far it has come."""

    volume: str
    pool: str
    size_bytes: int
    device_bytes: int
    state: str
    durability: str
    filesystem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRow:
    """An address on the wire, or at rest."""

    address: str
    volume: str
    node: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantRow:
    """The right of one node to use one volume."""

    volume: str
    node: str
    mode: str
    writable: bool
    transport: str
    san: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedRow:
    """A volume this machine has taken on."""

    volume: str
    address: str
    use: str
    staged: bool
    staging_path: str
    targets: tuple[str, ...]
    dead_since_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestRow:
    """A volume that is, or is to be, a disk of a guest."""

    volume: str
    domain: str
    target: str
    bus: str
    read_only: bool
    device: str
    live: str
    config: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphanRow:
    """Something of ours that nothing wants any more; it is reported and never removed unasked."""

    kind: str
    name: str
    fact: str


Row = PoolRow | VolumeRow | ExportRow | GrantRow | StagedRow | GuestRow | OrphanRow


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReport:
    """One machine at one moment. None stands for "not looked at", which is not the same as "there are none"."""

    node: str
    pools: tuple[PoolRow, ...] | None = None
    volumes: tuple[VolumeRow, ...] | None = None
    exports: tuple[ExportRow, ...] | None = None
    grants: tuple[GrantRow, ...] | None = None
    staged: tuple[StagedRow, ...] | None = None
    guests: tuple[GuestRow, ...] | None = None
    orphans: tuple[OrphanRow, ...] | None = None


def export_rows(inspection: Inspection) -> tuple[ExportRow, ...]:
    """Return the rows of every export file that has an address, and whether its exporter serves."""
    return tuple(
        ExportRow(
            address=str(file.address),
            volume=file.volume_id,
            node=file.node,
            state=_export_state(file, inspection),
        )
        for file in inspection.exports
        if file.address is not None
    )


def _export_state(file: ExportFile, inspection: Inspection) -> str:
    if file.state is not ExportState.LIVE or file.address is None:
        return file.state.value
    unit = inspection.units.get(file.address)
    return "serving" if unit is not None and unit.serving else "not serving"


def orphan_rows(orphans: Iterable[Orphan]) -> tuple[OrphanRow, ...]:
    """Return the rows of what nobody wants any more."""
    return tuple(OrphanRow(kind=one.kind, name=one.name, fact=one.fact) for one in orphans)


def volume_rows(volumes: Iterable[Volume]) -> tuple[VolumeRow, ...]:
    """Return the rows of some volumes."""
    return tuple(
        VolumeRow(
            volume=volume.volume_id,
            pool=volume.pool,
            size_bytes=volume.size_bytes,
            device_bytes=volume.device_bytes,
            state=volume.state.value,
            durability=volume.durability.value,
            filesystem=volume.filesystem or "",
        )
        for volume in volumes
    )


def grant_rows(grants: Iterable[Grant]) -> tuple[GrantRow, ...]:
    """Return the rows of some grants."""
    return tuple(
        GrantRow(
            volume=grant.volume_id,
            node=grant.node,
            mode=grant.mode.value,
            writable=grant.writable,
            transport=grant.transport.value,
            san=grant.san or "",
            address=str(grant.address) if grant.address else "",
        )
        for grant in grants
    )


def staged_rows(records: Iterable[StageRecord]) -> tuple[StagedRow, ...]:
    """Return the rows of some stage records."""
    return tuple(
        StagedRow(
            volume=record.attachment.volume_id,
            address=str(record.attachment.address) if record.attachment.address else "",
            use="block" if isinstance(record.use, BlockUse) else record.use.filesystem,
            staged=record.staged,
            staging_path=record.staging_path,
            targets=record.targets,
            dead_since_s=record.dead_since_s,
        )
        for record in records
    )


def guest_rows(disks: Iterable[GuestDisk]) -> tuple[GuestRow, ...]:
    """Return the rows of guests' disks."""
    return tuple(
        GuestRow(
            volume=disk.record.volume_id,
            domain=disk.domain.name if disk.domain is not None else disk.record.domain_name,
            target=disk.record.target,
            bus=disk.record.bus.value,
            read_only=disk.record.read_only,
            device=disk.device,
            live=_whether(disk.live, known=disk.known),
            config=_whether(disk.config, known=disk.known),
            state=disk.state.value,
        )
        for disk in disks
    )


def _whether(fact: bool, *, known: bool) -> str:
    return "unknown" if not known else "yes" if fact else "no"


def as_json(report: HostReport) -> str:
    """Return the report as indented JSON, sizes in bytes."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()


def as_text(report: HostReport) -> str:
    """Return the report as tables, sizes in the largest unit that fits."""
    parts = [f"node {report.node}"]
    for field in dataclasses.fields(report):
        rows = getattr(report, field.name)
        if isinstance(rows, tuple):
            parts.append(_table(field.name, rows))
    return "\n\n".join(parts)


def _table(title: str, rows: Sequence[Row]) -> str:
    if not rows:
        return f"{title}: none"
    names = [field.name for field in dataclasses.fields(rows[0])]
    lines = [[name.removesuffix("_bytes").replace("_", " ").upper() for name in names]]
    lines += [[_cell(name, getattr(row, name)) for name in names] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    body = ("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join([f"{title}:", *(line.rstrip() for line in body)])


def _cell(name: str, value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int() if name.endswith("_bytes"):
            return format_bytes(value)
        case tuple():
            return ",".join(str(one) for one in value) or "-"
        case _:
            return str(value) or "-"
