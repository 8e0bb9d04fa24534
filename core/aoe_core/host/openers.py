"""Who has a block device open.

The kernel keeps no number to read, so everyone is asked who can hold one: an exclusive open is refused while a mount,
device-mapper, md or swap holds the device or a partition of it; /sys/block/*/holders names stacked devices; loop
devices (kubelet makes one per raw block volume) tell their backing device; and programs such as qemu, which open
without claiming, show in /proc/<pid>/fd. Needs the host's /proc, /sys and /dev, and root.
Every step may block while a device's target is silent: call through `BlockingCalls`.
Sources: block/bdev.c (bd_may_claim), drivers/block/loop.c (loop_get_status), proc(5).
"""
# ruff: noqa: PTH115, PTH116, PTH208 - a few questions for each of many thousands of files; pathlib takes much longer.

import errno
import fcntl
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from aoe_core.errors import Busy, CommandFailed
from aoe_core.host.looks import SharedLook

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


def find_claim(device: str, numbers: frozenset[str], paths: HostPaths) -> str | None:
    """Return a word on what the kernel itself has a device for, None when it has not.

    `numbers`: `major:minor` of the device and its partitions. Raises: CommandFailed when it cannot be found out.
    """
    return _claimed(device) or _stacked(numbers, paths)


class DeviceUsers:
    """Who has devices of this host open. Thirty volumes may be staged at once after a boot, and a look at every process
    takes seconds of a small machine: those who ask while one is under way share the next."""

    def __init__(self, paths: HostPaths) -> None:
        self._used = SharedLook(lambda: {**_opened_by_processes(paths), **_looped(paths)})

    def find(self, numbers: frozenset[str]) -> str | None:
        """Return a word on the loop device or process that has one of these devices open, None when nothing has.
        Raises: CommandFailed when it cannot be found out."""
        used = self._used.take()
        return next((used[number] for number in sorted(numbers) if number in used), None)


def _claimed(device: str) -> str | None:
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return "a mount or another exclusive holder"
        if error.errno == errno.ENODEV:
            # The driver opens no device that is down (aoeblk.c, aoeblk_open), and this one was up a moment ago.
            raise Busy(f"{device} goes down just now; try again, and look at the kernel log if it repeats") from error
        raise CommandFailed(f"{device} cannot be opened ({error.strerror}); look at the kernel log") from error
    return None


def _stacked(numbers: frozenset[str], paths: HostPaths) -> str | None:
    for number in numbers:
        holders = paths.sys / "dev/block" / number / "holders"
        if holders.is_dir():
            for holder in holders.iterdir():
                return f"block device {holder.name}"
    return None


def _looped(paths: HostPaths) -> dict[str, str]:
    """Return the `major:minor` behind each loop device → that."""
    found: dict[str, str] = {}
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
        found[_number(struct.unpack_from("<QQQ", status)[2])] = f"loop device {name}"
    return found


def _opened_by_processes(paths: HostPaths) -> dict[str, str]:
    """Return the `major:minor` of each block device that a process has open → one such process."""
    found: dict[str, str] = {}
    # Nearly all processes see the mounts of a few, and a node of Kubernetes has hundreds of them.
    remote_seen: dict[tuple[str, str], frozenset[str]] = {}
    for number in filter(str.isdigit, os.listdir(paths.proc)):
        process = f"{paths.proc}/{number}"
        try:
            descriptors = os.listdir(f"{process}/fd")
            if not descriptors:
                continue
            view = os.readlink(f"{process}/ns/mnt"), os.readlink(f"{process}/root")
            if view not in remote_seen:
                remote_seen[view] = _remote_mounts(Path(process, "mountinfo").read_bytes())
            for one in descriptors:
                device = _open_device(process, one, remote_seen[view])
                if device is not None and device not in found:
                    found[device] = f"process {number} ({_command(process)})"
        except OSError as error:
            if _is_gone(error):
                continue
            raise CommandFailed(
                f"the open files of process {number} cannot be listed ({error.strerror}); run as root in the host's "
                "process namespace"
            ) from error
    return found


def _open_device(process: str, descriptor: str, remote: frozenset[str]) -> str | None:
    """Return the `major:minor` of the block device that a descriptor is of, None when it is of none."""
    link = f"{process}/fd/{descriptor}"
    try:
        if not os.readlink(link).startswith("/"):
            return None  # Sockets, pipes and anonymous inodes.
        if remote and _mount_of(Path(process, "fdinfo", descriptor).read_text(encoding="ascii")) in remote:
            return None
        found = os.stat(link)
    except OSError as error:
        if _is_gone(error):
            return None
        raise
    return _number(found.st_rdev) if stat.S_ISBLK(found.st_mode) else None


def _number(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


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


def _command(process: str) -> str:
    try:
        return Path(process, "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "ended"
