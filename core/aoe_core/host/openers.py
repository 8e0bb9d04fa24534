"""Who has a block device open.

The kernel keeps no number to read, so everyone is asked who can hold one: an exclusive open is refused while a mount,
device-mapper, md or swap holds the device or a partition of it; /sys/block/*/holders names stacked devices; loop
devices (kubelet makes one per raw block volume) tell their backing device; and programs such as qemu, which open
without claiming, show in /proc/<pid>/fd. Needs the host's /proc, /sys and /dev, and root.
Every step may block while the device's target is silent: call through `BlockingCalls`.
Sources: block/bdev.c (bd_may_claim), drivers/block/loop.c (loop_get_status), proc(5).
"""

import errno
import fcntl
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from aoe_core.errors import CommandFailed

_LOOP_GET_STATUS64 = 0x4C05
_LOOP_INFO64_BYTES = 232
_REMOTE = ("9p", "afs", "ceph", "cifs", "fuse", "gfs", "lustre", "nfs", "smb")
"""File systems whose files may not be asked about while their server is silent; no device node of ours is on one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPaths:
    """Where the host's kernel shows itself."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    dev: Path = Path("/dev")


def find_opener(device: str, numbers: frozenset[str], paths: HostPaths) -> str | None:
    """Return a word on who has the device open, None when nobody has.

    `numbers` are `major:minor` of the device and its partitions. Raises: CommandFailed when it cannot be found out.
    """
    return _claimed(device) or _stacked(numbers, paths) or _looped(numbers, paths) or _opened_by_process(numbers, paths)


def _claimed(device: str) -> str | None:
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return "a mount or another exclusive holder"
        raise CommandFailed(f"{device} cannot be opened ({error.strerror}); look at the kernel log") from error
    return None


def _stacked(numbers: frozenset[str], paths: HostPaths) -> str | None:
    for number in numbers:
        holders = paths.sys / "dev/block" / number / "holders"
        if holders.is_dir():
            for holder in holders.iterdir():
                return f"block device {holder.name}"
    return None


def _looped(numbers: frozenset[str], paths: HostPaths) -> str | None:
    for backing in (paths.sys / "block").glob("loop*/loop/backing_file"):
        name = backing.parent.parent.name
        try:
            descriptor = os.open(paths.dev / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ENODEV):
                continue
            raise CommandFailed(
                f"loop device {name} cannot be asked ({error.strerror}); is /dev the host's?"
            ) from error
        try:
            status = fcntl.ioctl(descriptor, _LOOP_GET_STATUS64, bytes(_LOOP_INFO64_BYTES))
        except OSError as error:
            if error.errno == errno.ENXIO:
                continue  # Detached meanwhile.
            raise CommandFailed(f"loop device {name} does not tell its backing ({error.strerror})") from error
        finally:
            os.close(descriptor)
        backing_device: int = struct.unpack_from("<QQQ", status)[2]
        if f"{os.major(backing_device)}:{os.minor(backing_device)}" in numbers:
            return f"loop device {name}"
    return None


def _opened_by_process(numbers: frozenset[str], paths: HostPaths) -> str | None:
    # Nearly all processes see the mounts of a few, and a node of Kubernetes has hundreds of them.
    remote_seen: dict[tuple[Path, Path], frozenset[str]] = {}
    for process in paths.proc.iterdir():
        if not process.name.isdigit():
            continue
        try:
            descriptors = [one.name for one in (process / "fd").iterdir()]
            if not descriptors:
                continue
            view = ((process / "ns" / "mnt").readlink(), (process / "root").readlink())
            if view not in remote_seen:
                remote_seen[view] = _remote_mounts((process / "mountinfo").read_bytes())
            if any(_is_open(process, one, numbers, remote_seen[view]) for one in descriptors):
                return f"process {process.name} ({_command(process)})"
        except OSError as error:
            if _is_gone(error):
                continue
            raise CommandFailed(
                f"the open files of process {process.name} cannot be listed ({error.strerror}); run as root in the "
                "host's process namespace"
            ) from error
    return None


def _is_open(process: Path, descriptor: str, numbers: frozenset[str], remote: frozenset[str]) -> bool:
    link = process / "fd" / descriptor
    try:
        if not str(link.readlink()).startswith("/"):
            return False  # Sockets, pipes and anonymous inodes.
        if remote and _mount_of((process / "fdinfo" / descriptor).read_text(encoding="ascii")) in remote:
            return False
        found = link.stat()
    except OSError as error:
        if _is_gone(error):
            return False
        raise
    return stat.S_ISBLK(found.st_mode) and f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}" in numbers


def _is_gone(error: OSError) -> bool:
    """Say whether a process ended, or closed a file, while being looked at (EINVAL: its mount namespace is gone)."""
    return error.errno in (errno.ENOENT, errno.ESRCH, errno.EINVAL)


def _remote_mounts(mountinfo: bytes) -> frozenset[str]:
    remote = set()
    for line in mountinfo.decode("utf-8", "surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith(_REMOTE):
            remote.add(before.split(" ", 1)[0])
    return frozenset(remote)


def _mount_of(fdinfo: str) -> str:
    for line in fdinfo.splitlines():
        if line.startswith("mnt_id:"):
            return line.removeprefix("mnt_id:").strip()
    return ""


def _command(process: Path) -> str:
    try:
        return (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "ended"
