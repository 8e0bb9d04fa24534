"""What the engine can do to its host, as values: `plan` lists them, `apply` does them in order.

Every list may be cut after any action and is then planned anew from what is found; so each plan puts the action that
commits last.
"""

from dataclasses import dataclass

from aoe_core.host.exports import ExportFile
from aoe_core.model import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateLv:
    """Make a thick LV, or a thin one."""

    vg: str
    name: str
    size_bytes: int
    tags: frozenset[str]
    thin_pool: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotLv:
    """Make a thin snapshot."""

    vg: str
    origin: str
    name: str
    tags: frozenset[str]
    writable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RetagLv:
    """Change tags in one commit."""

    vg: str
    name: str
    add: frozenset[str]
    remove: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendLv:
    """Grow an LV to a size."""

    vg: str
    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RenameLv:
    """Rename an LV."""

    vg: str
    name: str
    new_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivateLv:
    """Activate an LV."""

    vg: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveLv:
    """Remove an LV."""

    vg: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroRange:
    """Zero a range of a device."""

    path: str
    offset_bytes: int
    length_bytes: int
    discard: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyRange:
    """Copy a range from one device to the same place of another."""

    source: str
    target: str
    offset_bytes: int
    length_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PutExport:
    """Write an export file durably."""

    file: ExportFile


@dataclass(frozen=True, slots=True, kw_only=True)
class DropExport:
    """Remove an export file durably."""

    file: ExportFile


@dataclass(frozen=True, slots=True, kw_only=True)
class StartExport:
    """Start an export and see it serve."""

    address: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartExport:
    """Restart an export, so that it sees a new size or mask."""

    address: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class StopExport:
    """Stop an export and prove that no process of it lives."""

    address: Address


Action = (
    CreateLv
    | SnapshotLv
    | RetagLv
    | ExtendLv
    | RenameLv
    | ActivateLv
    | RemoveLv
    | ZeroRange
    | CopyRange
    | PutExport
    | DropExport
    | StartExport
    | RestartExport
    | StopExport
)
