"""LVM in memory: volume groups of extents, thick LVs, thin pools, thin LVs and their snapshots.

Freed extents keep their content and are the next to be given out, so a volume that was not wiped is seen in the next
one. A thin LV starts as zeros and shares chunks with its snapshots until one of them writes. A change whose caller
dies while it runs goes on by itself, as a transient unit of the host does.
"""

import itertools
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from aoe_core.errors import AoECsiError, Busy, CommandFailed, Conflict, InUse, NoSpace, NotFound
from aoe_core.fakes.blocks import BLOCK_BYTES, Device, Medium
from aoe_core.host.contracts import LogicalVolume, LvKind, LvmReport, VolumeGroup
from aoe_core.units import KIB, MIB, format_bytes, round_up

if TYPE_CHECKING:
    from aoe_core.fakes.world import FakeMachine, Process

EXTENT_BYTES = 4 * MIB
CHUNK_BYTES = 64 * KIB
RUNS_ON_S = 5.0
"""How long a change whose caller died goes on before it is done."""

_BLOCKS_PER_EXTENT = EXTENT_BYTES // BLOCK_BYTES
_BLOCKS_PER_CHUNK = CHUNK_BYTES // BLOCK_BYTES
_MAX_TAG = 1024


class Group:
    """A volume group on one machine's disks."""

    def __init__(self, name: str, size_bytes: int, *, system_id: str) -> None:
        self.name = name
        self.uuid = f"fake-{name}"
        self.system_id = system_id
        self.foreign = False
        self.exported = False
        self.partial = False
        self.writable = True
        self.extents = size_bytes // EXTENT_BYTES
        self.free = list(range(self.extents))
        """Free extents, the lowest given out first."""
        self.content: dict[int, dict[int, bytes]] = {}
        """Extent → block in it → data; freeing an extent changes nothing here."""
        self.volumes: dict[str, Lv] = {}

    def foul(self, data: bytes) -> None:
        """Leave a former owner's data in the first and last block of every free extent."""
        for extent in self.free:
            self.content[extent] = {0: data, _BLOCKS_PER_EXTENT - 1: data}

    def take(self, count: int, what: str) -> list[int]:
        """Take free extents. Raises: NoSpace when there are too few; then none is taken."""
        if count > len(self.free):
            raise NoSpace(f"{self.name} has {len(self.free)} free extents and {what} needs {count}; free some space")
        taken, self.free = self.free[:count], self.free[count:]
        return taken

    def give_back(self, extents: Iterable[int]) -> None:
        """Free extents with whatever they hold."""
        self.free = sorted([*extents, *self.free])


class ThickMedium:
    """A thick LV's blocks, in the extents of its group."""

    def __init__(self, group: Group, extents: list[int]) -> None:
        self.group = group
        self.extents = extents

    def load(self, block: int) -> bytes:
        index, inner = divmod(block, _BLOCKS_PER_EXTENT)
        return self.group.content.get(self.extents[index], {}).get(inner, b"")

    def store(self, block: int, data: bytes) -> None:
        index, inner = divmod(block, _BLOCKS_PER_EXTENT)
        content = self.group.content.setdefault(self.extents[index], {})
        if data:
            content[inner] = data
        else:
            content.pop(inner, None)

    def filled(self, first: int, end: int) -> list[int]:
        found: list[int] = []
        last = min(-(-end // _BLOCKS_PER_EXTENT), len(self.extents))
        for index in range(first // _BLOCKS_PER_EXTENT, last):
            base = index * _BLOCKS_PER_EXTENT
            inner = self.group.content.get(self.extents[index])
            if inner:
                found.extend(sorted(base + one for one in inner if first <= base + one < end))
        return found


class Chunk:
    """A chunk of a thin pool, perhaps shared by several thin LVs."""

    def __init__(self, blocks: dict[int, bytes] | None = None) -> None:
        self.blocks = dict(blocks or {})
        self.owners = 1


class ThinMedium:
    """A thin LV's blocks: chunks of its pool, copied before they are written when somebody shares them."""

    def __init__(self, pool: "Lv") -> None:
        self.pool = pool
        self.chunks: dict[int, Chunk] = {}

    def load(self, block: int) -> bytes:
        index, inner = divmod(block, _BLOCKS_PER_CHUNK)
        chunk = self.chunks.get(index)
        return chunk.blocks.get(inner, b"") if chunk else b""

    def store(self, block: int, data: bytes) -> None:
        index, inner = divmod(block, _BLOCKS_PER_CHUNK)
        chunk = self.chunks.get(index)
        if chunk is None or chunk.owners > 1:
            if self.pool.used_chunks() >= self.pool.size_bytes // CHUNK_BYTES:
                raise NoSpace(f"thin pool {self.pool.name} is full; extend it")
            if chunk is not None:
                chunk.owners -= 1
            chunk = self.chunks[index] = Chunk(chunk.blocks if chunk else None)
        if data:
            chunk.blocks[inner] = data
        else:
            chunk.blocks.pop(inner, None)

    def filled(self, first: int, end: int) -> list[int]:
        found: list[int] = []
        for index in sorted(self.chunks):
            base = index * _BLOCKS_PER_CHUNK
            if base < end and base + _BLOCKS_PER_CHUNK > first:
                found.extend(sorted(base + one for one in self.chunks[index].blocks if first <= base + one < end))
        return found

    def share(self, other: "ThinMedium") -> None:
        """Give a new snapshot everything this LV holds now."""
        for index, chunk in self.chunks.items():
            chunk.owners += 1
            other.chunks[index] = chunk

    def drop(self) -> None:
        """Let go of every chunk."""
        for chunk in self.chunks.values():
            chunk.owners -= 1
        self.chunks.clear()


class Lv:
    """A logical volume."""

    def __init__(
        self, group: Group, name: str, kind: LvKind, size_bytes: int, tags: Iterable[str], *, medium: Medium, minor: int
    ) -> None:
        self.group = group
        self.name = name
        self.kind = kind
        self.tags = set(tags)
        self.medium = medium
        self.pool: Lv | None = None
        self.origin: Lv | None = None
        self.created_s = 0
        self.active = True
        self.writable = True
        """LVM's permission."""
        self.zeroing = True
        """For thin pools."""
        self.metadata_percent = 10.0
        """For thin pools: settable by a test."""
        self.device = Device(f"/dev/{group.name}/{name}", f"253:{minor}", medium, size_bytes)

    @property
    def size_bytes(self) -> int:
        """Whole extents."""
        return self.device.size_bytes

    @property
    def paths(self) -> tuple[str, str, str]:
        """Every path of its device: LVM's, device-mapper's and the kernel's."""
        mapped = f"{self.group.name.replace('-', '--')}-{self.name.replace('-', '--')}"
        return (f"/dev/{self.group.name}/{self.name}", f"/dev/mapper/{mapped}", f"/dev/dm-{self.device.number[4:]}")

    def used_chunks(self) -> int:
        """For a thin pool: how many of its chunks hold something."""
        thin = (lv.medium for lv in self.group.volumes.values() if lv.pool is self)
        return len({id(chunk) for medium in thin if isinstance(medium, ThinMedium) for chunk in medium.chunks.values()})

    def report(self) -> LogicalVolume:
        """Return what `lvs` shows of it."""
        percent = 0.0
        if self.kind is LvKind.THIN_POOL:
            percent = 100.0 * self.used_chunks() * CHUNK_BYTES / self.size_bytes
        elif isinstance(self.medium, ThinMedium):
            percent = 100.0 * len(self.medium.chunks) * CHUNK_BYTES / self.size_bytes
        return LogicalVolume(
            vg=self.group.name,
            name=self.name,
            kind=self.kind,
            size_bytes=self.size_bytes,
            tags=frozenset(self.tags),
            thin_pool=self.pool.name if self.pool else "",
            origin=self.origin.name if self.origin and self.origin.name in self.group.volumes else "",
            active=self.active,
            data_percent=round(percent, 2),
            metadata_percent=self.metadata_percent if self.kind is LvKind.THIN_POOL else 0.0,
            created_s=self.created_s,
            zeroing=self.zeroing and self.kind is LvKind.THIN_POOL,
        )


class RunningChange:
    """A change that goes on although whoever asked for it is dead."""

    def __init__(self, effect: Callable[[], None], due_s: float) -> None:
        self.effect = effect
        self.due_s = due_s


class LvmState:
    """All of LVM on one machine."""

    def __init__(self, machine: "FakeMachine") -> None:
        self._machine = machine
        self.groups: dict[str, Group] = {}
        self.running: dict[str, RunningChange] = {}
        """VG → the change that runs on."""
        self._minors = itertools.count(0)

    def add_group(self, name: str, size_bytes: int) -> Group:
        """Make a volume group with this machine's system ID, as vgcreate does."""
        self.groups[name] = Group(name, size_bytes, system_id=self._machine.name)
        return self.groups[name]

    def add_thin_pool(self, vg: str, name: str, size_bytes: int) -> Lv:
        """Make a thin pool, as `lvcreate --type thin-pool` does."""
        group = self.groups[vg]
        extents = group.take(-(-size_bytes // EXTENT_BYTES), name)
        return self.put(group, name, LvKind.THIN_POOL, size_bytes, (), medium=ThickMedium(group, extents))

    def put(self, group: Group, name: str, kind: LvKind, size_bytes: int, tags: Iterable[str], *, medium: Medium) -> Lv:
        """Enter a new LV into its group."""
        rounded_bytes = round_up(size_bytes, EXTENT_BYTES)
        lv = Lv(group, name, kind, rounded_bytes, tags, medium=medium, minor=next(self._minors))
        lv.created_s = int(self._machine.world.clock.now())
        group.volumes[name] = lv
        return lv

    def find_device(self, path: str) -> Device | None:
        """Return the device behind a path, if its LV is active."""
        for group in self.groups.values():
            for lv in group.volumes.values():
                if lv.active and lv.kind is not LvKind.THIN_POOL and path in lv.paths:
                    return lv.device
        return None

    def lv_of(self, device: Device) -> Lv | None:
        """Return the LV a device belongs to."""
        return next((lv for lv in self.volumes() if lv.device is device), None)

    def volumes(self) -> tuple[Lv, ...]:
        """Return every LV of the machine."""
        return tuple(lv for group in self.groups.values() for lv in group.volumes.values())

    def finish_due(self, *, everything: bool = False) -> None:
        """Let changes that run on come to their end: those whose time has come, or all."""
        now_s = self._machine.world.clock.now()
        for vg, change in list(self.running.items()):
            if change.due_s <= now_s or everything:
                del self.running[vg]
                with suppress(AoECsiError):  # Nobody is left to be told.
                    change.effect()


class FakeLvm:
    """`Lvm` in memory."""

    def __init__(self, process: "Process") -> None:
        self._process = process

    def report(self) -> LvmReport:
        with self._process.reading() as machine:
            machine.lvm.finish_due()
            for vg in machine.lvm.running:
                raise Busy(f"a change of {vg} that a former process began is still running; try again")
            groups = tuple(
                VolumeGroup(
                    name=group.name,
                    uuid=group.uuid,
                    size_bytes=group.extents * EXTENT_BYTES,
                    free_bytes=len(group.free) * EXTENT_BYTES,
                    extent_bytes=EXTENT_BYTES,
                    system_id=group.system_id,
                    foreign=group.foreign,
                    exported=group.exported,
                    partial=group.partial,
                    writable=group.writable,
                )
                for group in machine.lvm.groups.values()
            )
            return LvmReport(groups=groups, volumes=tuple(lv.report() for lv in machine.lvm.volumes()))

    def create(self, vg: str, name: str, size_bytes: int, tags: Iterable[str], thin_pool: str = "") -> None:
        wanted = frozenset(tags)
        state = self._process.machine.lvm

        def effect() -> None:
            group = _group(state, vg)
            _free_name(group, name)
            _check_tags(wanted)
            if size_bytes <= 0:
                raise CommandFailed(f"lvcreate of {vg}/{name}: size {size_bytes} is not positive")
            if thin_pool:
                pool = _volume(group, thin_pool)
                if pool.kind is not LvKind.THIN_POOL:
                    raise CommandFailed(f"lvcreate of {vg}/{name}: {thin_pool} is no thin pool")
                _require_pool_room(pool)
                lv = state.put(group, name, LvKind.THIN, size_bytes, wanted, medium=ThinMedium(pool))
                lv.pool = pool
            else:
                extents = group.take(-(-size_bytes // EXTENT_BYTES), format_bytes(size_bytes))
                state.put(group, name, LvKind.THICK, size_bytes, wanted, medium=ThickMedium(group, extents))

        self._change("lvcreate", vg, name, effect)

    def snapshot(self, vg: str, origin: str, name: str, tags: Iterable[str], *, writable: bool) -> None:
        wanted = frozenset(tags)
        state = self._process.machine.lvm

        def effect() -> None:
            group = _group(state, vg)
            source = _volume(group, origin)
            _free_name(group, name)
            _check_tags(wanted)
            if not isinstance(source.medium, ThinMedium) or source.pool is None:
                raise CommandFailed(f"lvcreate of {vg}/{name}: {origin} is not thin, so it has no thin snapshots")
            _require_pool_room(source.pool)
            if any(opener.startswith("mount") for opener in source.device.openers):
                source.device.flush()  # Suspending the origin freezes a file system mounted here.
            medium = ThinMedium(source.pool)
            source.medium.share(medium)
            lv = state.put(group, name, LvKind.THIN, source.size_bytes, wanted, medium=medium)
            lv.pool, lv.origin = source.pool, source
            lv.writable = writable
            lv.device.read_only = not writable

        self._change("lvcreate --snapshot", vg, name, effect)

    def retag(self, vg: str, name: str, *, add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
        added, removed = frozenset(add), frozenset(remove)
        state = self._process.machine.lvm

        def effect() -> None:
            lv = _volume(_group(state, vg), name)
            _check_tags(added)
            lv.tags = (lv.tags - removed) | added

        self._change("lvchange --addtag", vg, name, effect)

    def extend(self, vg: str, name: str, size_bytes: int) -> None:
        state = self._process.machine.lvm

        def effect() -> None:
            group = _group(state, vg)
            lv = _volume(group, name)
            rounded_bytes = round_up(size_bytes, EXTENT_BYTES)
            if rounded_bytes <= lv.size_bytes:
                return
            if isinstance(lv.medium, ThickMedium):
                lv.medium.extents += group.take((rounded_bytes - lv.size_bytes) // EXTENT_BYTES, f"growing {name}")
            lv.device.size_bytes = rounded_bytes

        self._change("lvextend", vg, name, effect)

    def rename(self, vg: str, name: str, new_name: str) -> None:
        state = self._process.machine.lvm

        def effect() -> None:
            group = _group(state, vg)
            lv = _volume(group, name)
            _free_name(group, new_name)
            del group.volumes[name]
            group.volumes[new_name] = lv
            lv.name = new_name
            lv.device.path = f"/dev/{vg}/{new_name}"

        self._change("lvrename", vg, name, effect)

    def activate(self, vg: str, name: str, *, on: bool) -> None:
        state = self._process.machine.lvm

        def effect() -> None:
            lv = _volume(_group(state, vg), name)
            if not on:
                _require_closed(lv)
                lv.device.flush()
            lv.active = on

        self._change(f"lvchange --activate {'y' if on else 'n'}", vg, name, effect)

    def remove(self, vg: str, name: str) -> None:
        state = self._process.machine.lvm

        def effect() -> None:
            group = _group(state, vg)
            lv = _volume(group, name)
            _require_closed(lv)
            if any(other.pool is lv for other in group.volumes.values()):
                raise InUse(f"logical volume {vg}/{name} is a pool that has volumes; remove them first")
            lv.device.flush()
            del group.volumes[name]
            if isinstance(lv.medium, ThickMedium):
                group.give_back(lv.medium.extents)
            elif isinstance(lv.medium, ThinMedium):
                lv.medium.drop()

        self._change("lvremove", vg, name, effect)

    def _change(self, command: str, vg: str, name: str, effect: Callable[[], None]) -> None:
        state = self._process.machine.lvm

        def runs_on() -> None:
            state.running[vg] = RunningChange(effect, self._process.world.clock.now() + RUNS_ON_S)

        with self._process.step(f"{command} {vg}/{name}", runs_on=runs_on):
            state.finish_due()
            if vg in state.running:
                raise Busy(f"{vg}/{name}: a change of its volume group still runs on this host; try again")
            effect()


def _group(state: LvmState, vg: str) -> Group:
    group = state.groups.get(vg)
    if group is None:
        raise NotFound(f"volume group {vg} does not exist on this host")
    if group.foreign or group.exported or group.partial or not group.writable:
        raise CommandFailed(f"volume group {vg} cannot be changed: foreign, exported, partial or read-only")
    return group


def _volume(group: Group, name: str) -> Lv:
    if name not in group.volumes:
        raise NotFound(f"logical volume {group.name}/{name} does not exist")
    return group.volumes[name]


def _free_name(group: Group, name: str) -> None:
    if name in group.volumes:
        raise Conflict(f"logical volume {group.name}/{name} exists already")
    if name.startswith(("snapshot", "pvmove", "-")) or not re.fullmatch(r"[A-Za-z0-9+_.-]+", name):
        raise CommandFailed(f"{name!r} is no name that LVM takes (lvm(8), VALID NAMES)")


def _check_tags(tags: frozenset[str]) -> None:
    allowed = set("_+.-/=!:&#") | {"@"}
    for tag in tags:
        if not 0 < len(tag) < _MAX_TAG or not all(
            sign.isascii() and (sign.isalnum() or sign in allowed) for sign in tag
        ):
            raise CommandFailed(f"{tag!r} cannot be an LVM tag (lvm(8), VALID NAMES)")


def _require_pool_room(pool: Lv) -> None:
    if pool.used_chunks() * CHUNK_BYTES >= pool.size_bytes or pool.metadata_percent >= 100:
        raise NoSpace(f"thin pool {pool.name} is full; extend it")


def _require_closed(lv: Lv) -> None:
    if lv.device.openers:
        raise InUse(
            f"logical volume {lv.group.name}/{lv.name} is open ({', '.join(lv.device.openers)}); stop that first"
        )
