"""Mounts and mount points in memory.

A file system is mounted from its superblock on the device and marked unclean there until its last mount goes, so
another machine, or this one after a power cut, finds it as it was left. Directories and mount-point files survive a
reboot; mounts do not. Nothing unmounts lazily: a dead target holds an umount until the driver gives up.
"""

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from aoe_core.errors import CommandFailed, InUse, NotFound, Unfinished, Unreachable
from aoe_core.fakes.blocks import Device
from aoe_core.fakes.superblocks import Superblock
from aoe_core.host.contracts import Mount

if TYPE_CHECKING:
    from aoe_core.fakes.world import FakeMachine, Process

OPENER = "mount"
"""A mounted file system among the openers of its device."""

_NO_REPLAY = frozenset({"noload", "norecovery"})


@dataclass(frozen=True, slots=True)
class Mounted:
    """A mount with what it is of."""

    mount: Mount
    disk: Device | None = None
    """The device of the mounted file system, for a bind of it too."""
    node: Device | None = None
    """For the bind of a device node."""

    @property
    def writable(self) -> bool:
        """Whether one may write through it."""
        return "rw" in self.mount.options


class MountState:
    """What is mounted on one machine, and its directories."""

    def __init__(self, machine: "FakeMachine") -> None:
        self._machine = machine
        self.paths: dict[str, str] = {"/": "directory", "/dev": "directory"}
        """Path → `directory`, `file`, `link` or `other`."""
        self.busy: list[str] = []
        """Paths that somebody has a file open below, as a test says."""
        self.waiting: list[str] = []
        """Targets whose umount waits in the kernel."""
        self.table: list[Mounted] = [_root()]

    def lose(self) -> None:
        """Lose what a power cut takes: every mount, no directory."""
        self.table = [_root()]
        self.busy.clear()
        self.waiting.clear()

    def topmost(self, path: str) -> Mounted | None:
        """Return the last thing mounted exactly at a path."""
        return next((one for one in reversed(self.table) if one.mount.target == path), None)

    def of_disk(self, disk: Device) -> list[Mounted]:
        """Return every mount of a device's file system."""
        return [one for one in self.table if one.disk is disk]

    def add_path(self, path: str, kind: str) -> None:
        """Make a path and its parents. Raises: CommandFailed when a parent is no directory."""
        for parent in PurePosixPath(path).parents:
            if self.paths.setdefault(str(parent), "directory") != "directory":
                raise CommandFailed(f"{parent} is no directory")
        self.paths[path] = kind

    def kind(self, path: str) -> str:
        """Return what is at a path, what is mounted there first."""
        top = self.topmost(path)
        if top is not None:
            return "block" if top.node is not None else "directory"
        if self._machine.find_device(path) is not None:
            return "link" if path.startswith("/dev/") and path.count("/") == 3 and "/etherd/" not in path else "block"
        return self.paths.get(path, "absent")

    def unmount(self, target: str) -> None:
        """Do what umount does, to its end or not at all."""
        top = self.topmost(target)
        if top is None:
            raise NotFound(f"nothing is mounted at {target}")
        below = [one.mount.target for one in self.table if one.mount.target.startswith(target.rstrip("/") + "/")]
        users = [path for path in self.busy if path == target or path.startswith(target + "/")]
        if below or users:
            raise InUse(f"{target} is busy ({', '.join(below + users)}); stop what uses it first")
        disk = top.disk
        if disk is not None and len(self.of_disk(disk)) == 1:
            self._release(disk, writable=top.writable)
        self.table.remove(top)

    def finish_waiting(self) -> None:
        """Let umounts that waited for a target go on."""
        for target in list(self.waiting):
            self.waiting.remove(target)
            try:
                self.unmount(target)
            except Unfinished:
                self.waiting.append(target)
            except (CommandFailed, InUse):
                pass  # Somebody else unmounted it, or uses it again.

    @staticmethod
    def _release(disk: Device, *, writable: bool) -> None:
        try:
            superblock = Superblock.find(disk) if writable and disk.size_bytes else None
            if superblock is not None:
                replace(superblock, unclean=False).put(disk)
            disk.flush()
        except (Unreachable, CommandFailed):
            disk.lose_dirty()  # I/O errors end an umount as well as success does.
        disk.close(OPENER)


class FakeMounts:
    """`Mounts` in memory."""

    def __init__(self, process: "Process") -> None:
        self._process = process

    def table(self) -> tuple[Mount, ...]:
        with self._process.reading() as machine:
            return tuple(one.mount for one in machine.mounts.table)

    def mount(self, device: str, target: str, filesystem: str, options: Sequence[str]) -> None:
        with self._process.step(f"mount {device} {target}") as machine:
            state = machine.mounts
            if state.kind(target) != "directory":
                raise CommandFailed(f"mount point {target} is no directory; make it first")
            disk = _source(machine, device)
            others = state.of_disk(disk)
            if any(one.mount.target == target for one in others):
                raise CommandFailed(f"{device} is mounted at {target} already")
            writable = "ro" not in options and not disk.read_only
            if others and others[0].writable != writable:
                raise CommandFailed(f"{device} is mounted already, {'read-only' if writable else 'read-write'}")
            if not others:
                _admit(machine, disk, filesystem, frozenset(options), writable=writable)
                disk.open(OPENER)
            shown = frozenset(options) - {"ro", "rw"} | {"rw" if writable else "ro", "relatime"}
            mount = Mount(
                target=target,
                source=machine.mounted_name(disk),
                root="/",
                filesystem=filesystem,
                device=disk.number,
                options=shown,
            )
            state.table.append(Mounted(mount, disk=disk))

    def bind(self, source: str, target: str, *, read_only: bool, options: Sequence[str] = ()) -> None:
        with self._process.step(f"mount --bind {source} {target}") as machine:
            state = machine.mounts
            node = machine.find_device(source)
            if node is None and state.topmost(source) is not None:
                node = _topmost(machine, source).node
            if state.kind(target) not in (("file", "block") if node is not None else ("directory",)):
                raise CommandFailed(f"mount point {target} is no {'file' if node else 'directory'}; make it first")
            writable = "rw" if not read_only else "ro"
            if node is not None:
                mount = Mount(
                    target=target,
                    source="udev",
                    root=machine.node_name(node).removeprefix("/dev"),
                    filesystem="devtmpfs",
                    device="0:5",
                    options=frozenset({*options, writable, "nosuid", "relatime"}),
                )
                state.table.append(Mounted(mount, node=node))
                return
            if state.kind(source) != "directory":
                raise CommandFailed(f"{source} does not exist and cannot be bound")
            below = _covering(machine, source)
            inner = source.removeprefix(below.mount.target.rstrip("/"))
            root = (below.mount.root.rstrip("/") + inner) or "/"
            shown = below.mount.options - {"ro", "rw"} | {*options, writable if below.writable else "ro"}
            state.table.append(Mounted(replace(below.mount, target=target, root=root, options=shown), disk=below.disk))

    def unmount(self, target: str) -> None:
        with self._process.step(f"umount {target}") as machine:
            try:
                machine.mounts.unmount(target)
            except Unfinished:
                if target not in machine.mounts.waiting:
                    machine.mounts.waiting.append(target)
                raise

    def make_directory(self, path: str) -> None:
        with self._process.step(f"mkdir {path}") as machine:
            if machine.mounts.kind(path) == "directory":
                return
            if machine.mounts.kind(path) != "absent":
                raise CommandFailed(f"{path} exists and is no directory")
            machine.mounts.add_path(path, "directory")

    def make_file(self, path: str) -> None:
        with self._process.step(f"touch {path}") as machine:
            if machine.mounts.kind(path) in ("file", "block"):
                return
            if machine.mounts.kind(path) != "absent":
                raise CommandFailed(f"{path} exists and is no file")
            machine.mounts.add_path(path, "file")

    def remove_path(self, path: str) -> None:
        with self._process.step(f"rm {path}") as machine:
            state = machine.mounts
            if state.topmost(path) is not None:
                raise CommandFailed(f"{path} is a mount point; unmount it first")
            if any(other.startswith(path.rstrip("/") + "/") for other in state.paths):
                raise CommandFailed(f"{path} is not empty")
            state.paths.pop(path, None)

    def kind(self, path: str) -> str:
        with self._process.reading() as machine:
            top = machine.mounts.topmost(path)
            if top is not None and top.disk is not None and top.mount.filesystem == "xfs" and not top.disk.size_bytes:
                raise CommandFailed(f"{path} cannot be looked at (Input/output error)")  # It has shut down.
            return machine.mounts.kind(path)

    def resolve(self, path: str) -> str:
        with self._process.reading():
            return posixpath.normpath(path)

    def device_number(self, path: str) -> str:
        with self._process.reading() as machine:
            return machine.get_device(path).number


def _source(machine: "FakeMachine", path: str) -> Device:
    try:
        return machine.get_device(path)
    except NotFound as error:
        raise CommandFailed(f"{path} cannot be mounted: {error}") from error


def _admit(machine: "FakeMachine", disk: Device, filesystem: str, options: frozenset[str], *, writable: bool) -> None:
    """Check a superblock as the kernel does at the first mount, replay its journal, mark it mounted."""
    superblock = Superblock.find(disk)
    if superblock is None or superblock.filesystem != filesystem:
        found = superblock.filesystem if superblock else "nothing"
        raise CommandFailed(f"{disk.path} holds {found}, not {filesystem}; it was not mounted")
    if superblock.damaged or superblock.size_bytes > disk.size_bytes:
        raise CommandFailed(f"{disk.path} has a damaged {filesystem} or is too small for it; it was not mounted")
    twins = {
        other.uuid
        for one in machine.mounts.table
        if one.disk is not None and one.disk.size_bytes and (other := Superblock.find(one.disk)) is not None
    }
    if filesystem == "xfs" and superblock.uuid in twins and "nouuid" not in options:
        raise CommandFailed(f"{disk.path} has the UUID of a mounted xfs; mount it with nouuid")
    if superblock.unclean and not options & _NO_REPLAY:
        if disk.read_only:
            raise CommandFailed(f"{disk.path} needs its journal replayed and is read-only; mount it with noload")
        replace(superblock, unclean=False).put(disk)
    if writable:
        replace(superblock, unclean=True).put(disk)
    disk.flush()


def _covering(machine: "FakeMachine", path: str) -> Mounted:
    """Return the mount that a path lies in."""
    found = machine.mounts.table[0]
    for one in machine.mounts.table:
        inside = path == one.mount.target or path.startswith(one.mount.target.rstrip("/") + "/")
        if inside and len(one.mount.target) >= len(found.mount.target):
            found = one
    return found


def _topmost(machine: "FakeMachine", path: str) -> Mounted:
    top = machine.mounts.topmost(path)
    if top is None:
        raise NotFound(f"nothing is mounted at {path}")
    return top


def _root() -> Mounted:
    return Mounted(
        Mount(
            target="/",
            source="/dev/vda1",
            root="/",
            filesystem="ext4",
            device="254:1",
            options=frozenset({"rw", "relatime"}),
        )
    )
