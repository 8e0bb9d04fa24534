"""Small text files that survive a power cut: the store of export files and stage records.

One directory, one file per record. A record is written as `.NAME.new`, fsynced, renamed over `NAME`, and the directory
is fsynced: at every moment the record is the old one or the new one, and once `write` returned it is the new one.
"""

import os
import re
import threading
from pathlib import Path

from aoe_core.errors import CommandFailed

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")


class DurableFiles:
    """RecordFiles on a directory, which is created on first use."""

    def __init__(self, directory: Path | str) -> None:
        self._directory = Path(directory)
        # Two threads writing one record would share its temporary name.
        self._lock = threading.Lock()
        self._trusted = False

    def read_all(self) -> dict[str, str]:
        """Return name → text of every record. Raises: CommandFailed when the directory cannot be read.

        A process that died between rename and fsync leaves a record that a power cut could still take back, so the
        directory is fsynced before the first answer.
        """
        try:
            if not self._trusted and self._directory.exists():
                self._sync_directory()
                self._trusted = True
            names = sorted(path.name for path in self._directory.iterdir() if _NAME.fullmatch(path.name))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise CommandFailed(f"{self._directory} cannot be read ({error.strerror}); look at its disk") from error
        records = {}
        for name in names:
            try:
                records[name] = (self._directory / name).read_text(encoding="utf-8")
            except FileNotFoundError:
                continue  # Removed since the directory was listed.
            except (OSError, UnicodeDecodeError) as error:
                raise CommandFailed(f"{self._directory / name} cannot be read ({error}); look at its disk") from error
        return records

    def write(self, name: str, text: str) -> None:
        """Write a record durably. Raises: CommandFailed when the disk refuses; the old record then stands."""
        if not _NAME.fullmatch(name):
            raise CommandFailed(f"{name!r} cannot be a record's file name")
        try:
            with self._lock:
                if not self._directory.exists():
                    self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                    sync_directory(self._directory.parent)
                replace_durably(self._directory / name, text)
        except OSError as error:
            raise CommandFailed(
                f"{self._directory / name} cannot be written ({error.strerror}); look at its disk"
            ) from error

    def remove(self, name: str) -> None:
        """Remove a record durably; an absent one is removed."""
        try:
            with self._lock:
                (self._directory / name).unlink(missing_ok=True)
                if self._directory.exists():
                    self._sync_directory()
        except OSError as error:
            raise CommandFailed(
                f"{self._directory / name} cannot be removed ({error.strerror}); look at its disk"
            ) from error

    def _sync_directory(self) -> None:
        sync_directory(self._directory)


def replace_durably(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file whose directory exists: at every moment, also after a power cut, it is the old one or the new one,
    and once this has returned it is the new one. Raises: OSError."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", encoding="utf-8") as handle:
        os.fchmod(handle.fileno(), mode)
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.rename(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make durable which names a directory has. Raises: OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
