"""Durable small files in memory, with every step of a write a step to be killed at.

What processes see and what the disk holds are two things: a rename is seen at once and survives a power cut only
after the directory was synced. A temporary file left behind is no record.
"""

from typing import TYPE_CHECKING

from aoe_core.errors import CommandFailed

if TYPE_CHECKING:
    from aoe_core.fakes.world import Process


class RecordDirectory:
    """One directory of records on one machine's disk."""

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}
        self.durable: dict[str, str] = {}
        self.leftovers: dict[str, str] = {}
        """Temporary files of writes that were cut short."""

    def sync(self) -> None:
        """Make what is seen durable."""
        self.durable = dict(self.seen)

    def lose_unsynced(self, *, keep: bool = False) -> None:
        """Fall back to what the disk holds; with `keep`, the disk happened to be quick and holds everything."""
        if keep:
            self.sync()
        self.seen = dict(self.durable)
        self.leftovers.clear()


class FakeRecordFiles:
    """`RecordFiles` in memory."""

    def __init__(self, process: "Process", directory: str) -> None:
        self._process = process
        self._directory = directory
        self._read = False

    def read_all(self) -> dict[str, str]:
        if not self._read:
            # Whoever wrote what is there may have died between rename and sync.
            self._sync(f"records {self._directory}")
            self._read = True
        with self._process.reading() as machine:
            return dict(machine.record_directory(self._directory).seen)

    def write(self, name: str, text: str) -> None:
        if not name or name.startswith(".") or "/" in name or len(name) > 127:
            raise CommandFailed(f"{name!r} cannot be a record's file name")
        what = f"record {self._directory}/{name}"
        with self._process.step(f"{what}: write temporary file") as machine:
            machine.record_directory(self._directory).leftovers[name] = text
        with self._process.step(f"{what}: sync temporary file"):
            pass
        with self._process.step(f"{what}: rename") as machine:
            directory = machine.record_directory(self._directory)
            directory.seen[name] = directory.leftovers.pop(name)
        self._sync(what)

    def remove(self, name: str) -> None:
        what = f"record {self._directory}/{name}"
        with self._process.step(f"{what}: unlink") as machine:
            machine.record_directory(self._directory).seen.pop(name, None)
        self._sync(what)

    def _sync(self, what: str) -> None:
        with self._process.step(f"{what}: sync directory") as machine:
            machine.record_directory(self._directory).sync()
