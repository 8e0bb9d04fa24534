"""Stable links to devices: `/run/aoe-csi/guests/disks/<volume id>`, which domains name as their disks' source.

On a tmpfs: a device's name is its address, and after a boot that may be another volume's. So no link outlives the boot
in which what it leads to was proven, and a guest whose device was not proven since does not start.

The emulator opens them as a user of its own, so every directory from /run/aoe-csi down to here may be passed through by
anybody (o+x); what else lies in them stays as unreadable as it was.
"""

import os
import stat
from pathlib import Path

from aoe_core.errors import CommandFailed, Unfinished
from aoe_core.host.blocking import BlockingCalls

DIRECTORY = Path("/run/aoe-csi")
_LOOK_LIMIT_S = 5.0
"""A guest's disk may be a file on a server that is gone."""


class HostDeviceLinks:
    """DeviceLinks below a directory, which is made on first use."""

    def __init__(
        self, directory: Path = DIRECTORY, calls: BlockingCalls | None = None, *, host_root: Path = Path("/")
    ) -> None:
        """`host_root`: where domains' paths begin, for a process in a container."""
        self._top = directory
        self._host_root = host_root
        self._calls = calls or BlockingCalls()
        self._directory = directory / "guests" / "disks"

    def path(self, name: str) -> str:
        """Return the path of a link."""
        return str(self._directory / name)

    def all(self) -> dict[str, str]:
        """Return name → where it leads. Raises: CommandFailed when the directory cannot be read."""
        try:
            links = [path for path in self._directory.iterdir() if path.is_symlink() and not path.name.startswith(".")]
            return {path.name: str(path.readlink()) for path in links}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise CommandFailed(f"{self._directory} cannot be read ({error.strerror}); look at /run") from error

    def put(self, name: str, device: str) -> None:
        """Make a link lead to a device. Raises: CommandFailed."""
        path = self._directory / name
        temporary = self._directory / f".{name}.new"
        try:
            self._make_passable()
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(device)
            temporary.rename(path)
        except OSError as error:
            raise CommandFailed(f"link {path} to {device} cannot be made ({error.strerror}); look at /run") from error

    def remove(self, name: str) -> None:
        """Remove a link. Raises: CommandFailed."""
        path = self._directory / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise CommandFailed(f"link {path} cannot be removed ({error.strerror}); look at /run") from error

    def find_device(self, path: str) -> str | None:
        """Return `major:minor` of the block device that a path of the host leads to. In a container, links on the way
        that begin at the root lead to our own, which has the host's /dev and /run."""
        on_host = str(self._host_root / path.lstrip("/")) if path else path
        try:
            return self._calls.run(f"looking at {path}", lambda: _device_number(on_host), timeout_s=_LOOK_LIMIT_S)
        except Unfinished:
            return None

    def _make_passable(self) -> None:
        for directory in (self._top, self._directory.parent, self._directory):
            if not directory.exists():
                directory.mkdir(mode=0o711, parents=True)
            mode = stat.S_IMODE(directory.stat().st_mode)
            if not mode & stat.S_IXOTH:
                directory.chmod(mode | stat.S_IXOTH)


def _device_number(path: str) -> str | None:
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return None
    return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}" if stat.S_ISBLK(found.st_mode) else None
