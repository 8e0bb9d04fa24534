"""Stable links to devices: `<state_directory>/guests/disks/<volume id>`, which domains name as their disks' source.

The emulator opens them as a user of its own, so every directory from the state directory down to here may be passed
through by anybody (o+x); what else lies in them stays as unreadable as it was.
"""

import stat
from pathlib import Path

from aoe_core.errors import CommandFailed
from aoe_core.host.files import sync_directory


class HostDeviceLinks:
    """DeviceLinks in a directory, which is made on first use."""

    def __init__(self, state_directory: Path) -> None:
        self._state_directory = state_directory
        self._directory = state_directory / "guests" / "disks"

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
            raise CommandFailed(f"{self._directory} cannot be read ({error.strerror}); look at its disk") from error

    def put(self, name: str, device: str) -> None:
        """Make a link lead to a device. Raises: CommandFailed."""
        path = self._directory / name
        temporary = self._directory / f".{name}.new"
        try:
            self._make_passable()
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(device)
            temporary.rename(path)
            sync_directory(self._directory)
        except OSError as error:
            raise CommandFailed(
                f"link {path} to {device} cannot be made ({error.strerror}); look at its disk"
            ) from error

    def remove(self, name: str) -> None:
        """Remove a link. Raises: CommandFailed."""
        try:
            (self._directory / name).unlink(missing_ok=True)
            if self._directory.exists():
                sync_directory(self._directory)
        except OSError as error:
            raise CommandFailed(
                f"link {self._directory / name} cannot be removed ({error.strerror}); look at its disk"
            ) from error

    def _make_passable(self) -> None:
        for directory in (self._state_directory, self._directory.parent, self._directory):
            if not directory.exists():
                directory.mkdir(mode=0o711, parents=True)
                sync_directory(directory.parent)
            mode = stat.S_IMODE(directory.stat().st_mode)
            if not mode & stat.S_IXOTH:
                directory.chmod(mode | stat.S_IXOTH)
