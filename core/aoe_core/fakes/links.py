"""Stable links to devices in memory: a rename is seen at once and survives a power cut after the directory's sync."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aoe_core.fakes.world import Process

LINKS = "/var/lib/aoe-csi/guests/disks"
"""The directory of links; the machine keeps what is in it as records of this name."""


class FakeDeviceLinks:
    """`DeviceLinks` in memory."""

    def __init__(self, process: "Process") -> None:
        self._process = process

    def path(self, name: str) -> str:
        return f"{LINKS}/{name}"

    def all(self) -> dict[str, str]:
        with self._process.reading() as machine:
            return dict(machine.record_directory(LINKS).seen)

    def put(self, name: str, device: str) -> None:
        with self._process.step(f"ln -s {device} {name}") as machine:
            machine.record_directory(LINKS).seen[name] = device
        self._sync()

    def remove(self, name: str) -> None:
        with self._process.step(f"rm link {name}") as machine:
            machine.record_directory(LINKS).seen.pop(name, None)
        self._sync()

    def _sync(self) -> None:
        with self._process.step("sync links") as machine:
            machine.record_directory(LINKS).sync()
