"""ext4 and xfs on a device, by their own tools, each with a limit.

A mkfs can be killed at any moment, and both mkfs.ext4 and mkfs.xfs wipe the start of the device long before they write
a superblock: what is left then has no label and is not blank either. So before mkfs starts, a mark is written near the
end of the device, where neither writes before its superblock is out; it is zeroed after the label is cleared, unless
the file system has overwritten it. `has_mark` is asked only of a device on which nothing is recognised.
Sources: mke2fs(8), e2fsck(8), resize2fs(8), tune2fs(8), mkfs.xfs(8), xfs_admin(8), xfs_growfs(8), blockdev(8).
"""

import errno
import logging
import os
from collections.abc import Sequence

from aoe_core.errors import CommandFailed, InUse, NotFound, Unsupported
from aoe_core.host.blocking import BlockingCalls
from aoe_core.host.contracts import Finished, Runner, Usage
from aoe_core.units import MIB

log = logging.getLogger(__name__)

_MAKE_LIMIT_S = 3600.0
"""mkfs.ext4 zeroes a journal of up to 1 GiB; over a link with 5 MB/s of durable writes that is minutes."""
_CHECK_LIMIT_S = 3600.0
_STEP_LIMIT_S = 120.0
_GROW_LIMIT_S = 600.0
_USAGE_LIMIT_S = 10.0
_REPAIRED = 0x3
"""e2fsck's exit bits that need nobody: errors corrected (1), and a reboot due only if it was mounted (2)."""

MARK_TEXT = "aoe-csi: a file system is being made here\n"
MARK_BYTES = 4096
MARK_FROM_END_BYTES = MIB


class HostFileSystems:
    """FileSystems of this host."""

    def __init__(self, runner: Runner, calls: BlockingCalls) -> None:
        self._runner = runner
        self._calls = calls

    def make(self, device: str, filesystem: str, label: str) -> None:
        """Mark the device, then make a file system with a label on it, without discarding."""
        # Lazy inode tables: the kernel zeroes them after the mount, instead of the pod waiting for it.
        commands = {
            "ext4": ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", "-m", "0", "-L", label, device],
            "xfs": ["mkfs.xfs", "-q", "-f", "-K", "-L", label, device],
        }
        command = commands[_known(filesystem)]
        # mkfs refuses a device in use, but only after the mark would have been written into it.
        self._refuse_if_in_use(device)
        self._put_mark(device, MARK_TEXT.encode().ljust(MARK_BYTES, b"\0"))
        self._change(command, f"{filesystem} cannot be made on {device}", _MAKE_LIMIT_S)

    def set_label(self, device: str, filesystem: str, label: str) -> None:
        """Change the label; clearing it ends a mkfs, so it takes the mark away too, last."""
        commands = {
            "ext4": ["tune2fs", "-L", label, device],
            "xfs": ["xfs_admin", "-L", label or "--", device],
        }
        self._change(commands[_known(filesystem)], f"the label of {device} cannot be set", _STEP_LIMIT_S)
        if not label and self.has_mark(device):
            self._put_mark(device, bytes(MARK_BYTES))

    def check(self, device: str, filesystem: str) -> None:
        """Replay and repair an ext4; xfs replays its log when it is mounted, and xfs_repair is for a person."""
        if _known(filesystem) == "xfs":
            return
        finished = self._runner.run(["e2fsck", "-p", device], timeout_s=_CHECK_LIMIT_S)
        _log(finished)
        if finished.code & ~_REPAIRED:
            raise CommandFailed(
                f"the ext4 on {device} needs a person (e2fsck exit {finished.code}); run e2fsck by hand on this node"
            )

    def grow(self, device: str, mounted_at: str, filesystem: str) -> None:
        """Grow a mounted file system to its device."""
        commands = {"ext4": ["resize2fs", device], "xfs": ["xfs_growfs", "-d", mounted_at]}
        self._change(
            commands[_known(filesystem)], f"the {filesystem} at {mounted_at} cannot be grown to {device}", _GROW_LIMIT_S
        )

    def usage(self, path: str) -> Usage:
        """Return statvfs of a path."""
        try:
            found = self._calls.run(f"usage of {path}", lambda: os.statvfs(path), timeout_s=_USAGE_LIMIT_S)
        except FileNotFoundError as error:
            raise NotFound(f"{path} does not exist") from error
        except OSError as error:
            raise CommandFailed(f"{path} does not tell its usage ({error.strerror}); look at the kernel log") from error
        return Usage(
            total_bytes=found.f_blocks * found.f_frsize,
            used_bytes=(found.f_blocks - found.f_bfree) * found.f_frsize,
            available_bytes=found.f_bavail * found.f_frsize,
            total_inodes=found.f_files,
            used_inodes=found.f_files - found.f_ffree,
            available_inodes=found.f_favail,
        )

    def set_read_only(self, device: str, *, read_only: bool) -> None:
        """Set the block device's read-only flag."""
        self._change(
            ["blockdev", "--setro" if read_only else "--setrw", device],
            f"{device} cannot be set {'read-only' if read_only else 'read-write'}",
            _STEP_LIMIT_S,
        )

    def has_mark(self, device: str) -> bool:
        """Say whether the device carries the mark of a mkfs that was under way."""
        finished = self._runner.run(
            ["dd", f"if={device}", f"bs={MARK_BYTES}", "count=1", f"skip={self._mark_offset_bytes(device)}",
             "iflag=skip_bytes,fullblock", "status=none"],
            timeout_s=_STEP_LIMIT_S,
        )  # fmt: skip
        if finished.code != 0:
            raise CommandFailed(f"{device} cannot be read (dd exit {finished.code}); look at the kernel log")
        return finished.stdout.rstrip("\0") == MARK_TEXT

    def _refuse_if_in_use(self, device: str) -> None:
        def claim() -> None:
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))

        try:
            self._calls.run(f"claim of {device}", claim, timeout_s=_STEP_LIMIT_S)
        except FileNotFoundError as error:
            raise NotFound(f"{device} does not exist; stage its volume again") from error
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise InUse(f"{device} is mounted or claimed; no file system is made on it") from error
            raise CommandFailed(f"{device} cannot be opened ({error.strerror}); look at the kernel log") from error

    def _put_mark(self, device: str, content: bytes) -> None:
        self._change(
            ["dd", f"of={device}", f"bs={MARK_BYTES}", "count=1", f"seek={self._mark_offset_bytes(device)}",
             "oflag=seek_bytes", "conv=nocreat,notrunc,fsync", "status=none"],
            f"{device} cannot be written",
            _STEP_LIMIT_S,
            stdin=content,
        )  # fmt: skip

    def _mark_offset_bytes(self, device: str) -> int:
        finished = self._runner.run(["blockdev", "--getsize64", device], timeout_s=_STEP_LIMIT_S)
        if finished.code != 0 or not finished.stdout.strip().isdigit():
            raise CommandFailed(f"{device} does not tell its size (blockdev exit {finished.code})")
        return max(0, int(finished.stdout) - MARK_FROM_END_BYTES)

    def _change(self, argv: Sequence[str], failure: str, timeout_s: float, stdin: bytes | None = None) -> None:
        finished = self._runner.run(argv, timeout_s=timeout_s, stdin=stdin)
        _log(finished)
        if finished.code != 0:
            raise CommandFailed(f"{failure} ({argv[0]} exit {finished.code}); look at the log and the kernel's log")


def _known(filesystem: str) -> str:
    if filesystem not in ("ext4", "xfs"):
        raise Unsupported(f"file system {filesystem!r} is not offered; ext4 and xfs are")
    return filesystem


def _log(finished: Finished) -> None:
    facts = {"argv": finished.argv, "code": finished.code, "ms": round(finished.seconds * 1000)}
    log.info("file system tool ended", extra=facts)
    if finished.code != 0:
        log.warning("file system tool said", extra={"argv": finished.argv, "stderr": finished.stderr})
