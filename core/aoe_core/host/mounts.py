"""Mounts of this host: mount(8), umount(8) and /proc/<pid>/mountinfo.

Never unmounts lazily or by force: a mount that is gone from the table while its file system lives on could not be told
from a finished one. Paths are acted on as given; links in them are the caller's to refuse.
Sources: proc(5) (mountinfo), mount(8), umount(8).
"""

import contextlib
import logging
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from aoe_core.errors import CommandFailed, InUse, NotFound
from aoe_core.host.contracts import Mount, Runner

log = logging.getLogger(__name__)

_MOUNT_LIMIT_S = 120.0
"""Mounting may replay a journal over a slow link."""
_UNMOUNT_LIMIT_S = 60.0
"""Unmounting writes back what is dirty; with a dead target it would take until aoe_deadsecs have passed."""
_OCTAL = re.compile(rb"\\([0-7]{3})")


class HostMounts:
    """Mounts of this host. `table_file` is the mountinfo of a process in the namespace where mount(8) acts."""

    def __init__(self, runner: Runner, table_file: Path = Path("/proc/self/mountinfo")) -> None:
        self._runner = runner
        self._table_file = table_file

    def table(self) -> tuple[Mount, ...]:
        """Return every mount."""
        try:
            return parse_mountinfo(self._table_file.read_bytes())
        except OSError as error:
            raise CommandFailed(f"{self._table_file} cannot be read ({error.strerror}); mount /proc") from error

    def mount(self, device: str, target: str, filesystem: str, options: Sequence[str]) -> None:
        """Mount a file system on an existing directory."""
        self._change(
            ["mount", "-t", filesystem, *(["-o", ",".join(options)] if options else []), "--", device, target],
            f"{device} cannot be mounted at {target}",
        )

    def bind(self, source: str, target: str, *, read_only: bool, options: Sequence[str] = ()) -> None:
        """Bind-mount a directory or a device node; mount(8) remounts it when there are flags."""
        flags = [*options, *(["ro"] if read_only else [])]
        self._change(
            ["mount", "--bind", *(["-o", ",".join(flags)] if flags else []), "--", source, target],
            f"{source} cannot be bound to {target}",
        )

    def unmount(self, target: str) -> None:
        """Unmount the topmost mount at a path."""
        finished = self._runner.run(["umount", "--", target], timeout_s=_UNMOUNT_LIMIT_S)
        log.info(
            "unmounted", extra={"argv": finished.argv, "code": finished.code, "ms": round(finished.seconds * 1000)}
        )
        if finished.code == 0:
            return
        if "busy" in finished.stderr:
            raise InUse(f"{target} is in use and stays mounted; stop what uses it")
        if "not mounted" in finished.stderr:
            raise NotFound(f"nothing is mounted at {target}")
        log.warning("umount failed", extra={"argv": finished.argv, "stderr": finished.stderr})
        raise CommandFailed(f"{target} cannot be unmounted (umount exit {finished.code}); look at the log")

    def make_directory(self, path: str) -> None:
        """Create a directory and its parents."""
        try:
            Path(path).mkdir(mode=0o750, parents=True, exist_ok=True)
        except OSError as error:
            raise CommandFailed(f"directory {path} cannot be created ({error.strerror})") from error

    def make_file(self, path: str) -> None:
        """Create an empty file and its parents."""
        try:
            Path(path).parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            # O_NOFOLLOW with O_CREAT: a link put there meanwhile is not written through.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640))
        except OSError as error:
            raise CommandFailed(f"file {path} cannot be created ({error.strerror})") from error

    def remove_path(self, path: str) -> None:
        """Remove an empty directory or an empty file; what holds anything stays."""
        with contextlib.suppress(FileNotFoundError):
            try:
                found = os.lstat(path)
                if stat.S_ISDIR(found.st_mode):
                    Path(path).rmdir()
                elif stat.S_ISREG(found.st_mode) and found.st_size == 0:
                    Path(path).unlink()
                else:
                    raise CommandFailed(f"{path} is no empty directory or file and was left alone; remove it by hand")
            except FileNotFoundError:
                raise
            except OSError as error:
                raise CommandFailed(f"{path} cannot be removed ({error.strerror}); empty it by hand") from error

    def kind(self, path: str) -> str:
        """Return what is at a path."""
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return "absent"
        except OSError as error:
            raise CommandFailed(f"{path} cannot be looked at ({error.strerror})") from error
        kinds = ((stat.S_ISDIR, "directory"), (stat.S_ISREG, "file"), (stat.S_ISBLK, "block"), (stat.S_ISLNK, "link"))
        return next((name for test, name in kinds if test(mode)), "other")

    def resolve(self, path: str) -> str:
        """Return a path as the mount table spells it."""
        parent, name = os.path.split(os.path.normpath(path))
        return os.path.join(os.path.realpath(parent), name)  # noqa: PTH118 - text in, text out.

    def device_number(self, path: str) -> str:
        """Return `major:minor` of the block device at a path."""
        try:
            found = os.stat(path)  # noqa: PTH116
        except FileNotFoundError as error:
            raise NotFound(f"device {path} does not exist") from error
        except OSError as error:
            raise CommandFailed(f"device {path} cannot be looked at ({error.strerror})") from error
        if not stat.S_ISBLK(found.st_mode):
            raise NotFound(f"{path} is no block device")
        return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"

    def _change(self, argv: list[str], failure: str) -> None:
        finished = self._runner.run(argv, timeout_s=_MOUNT_LIMIT_S)
        log.info("mounted", extra={"argv": finished.argv, "code": finished.code, "ms": round(finished.seconds * 1000)})
        if finished.code != 0:
            log.warning("mount failed", extra={"argv": finished.argv, "stderr": finished.stderr})
            raise CommandFailed(f"{failure} (mount exit {finished.code}); look at the log and the kernel's log")


def parse_mountinfo(content: bytes) -> tuple[Mount, ...]:
    """Return the mounts of a mountinfo file.

    A line: `36 35 98:0 /root /target rw,noatime shared:1 - ext4 /dev/sda1 rw,errors=continue`; blanks, tabs, newlines
    and backslashes inside a field are written in octal. Lines that are not of this form are not mounts.
    """
    mounts = []
    for line in content.split(b"\n"):
        before, separator, after = line.partition(b" - ")
        first, last = before.split(b" "), after.split(b" ")
        if not separator or len(first) < 6 or len(last) < 3:
            continue
        mounts.append(
            Mount(
                target=_text(first[4]),
                source=_text(last[1]),
                root=_text(first[3]),
                filesystem=_text(last[0]),
                device=_text(first[2]),
                options=frozenset(_text(first[5]).split(",")) | frozenset(_text(last[2]).split(",")),
            )
        )
    return tuple(mounts)


def _text(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field))
