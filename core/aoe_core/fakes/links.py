"""Stable links to devices in memory. They are on a tmpfs: a boot finds none."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aoe_core.fakes.world import Process

LINKS = "/run/aoe-csi/guests/disks"
"""The directory of links."""


class FakeDeviceLinks:
    """`DeviceLinks` in memory."""

    def __init__(self, process: "Process") -> None:
        self._process = process

    def path(self, name: str) -> str:
        return f"{LINKS}/{name}"

    def all(self) -> dict[str, str]:
        with self._process.reading() as machine:
            return dict(machine.links)

    def put(self, name: str, device: str) -> None:
        with self._process.step(f"ln -s {device} {name}") as machine:
            machine.links[name] = device

    def remove(self, name: str) -> None:
        with self._process.step(f"rm link {name}") as machine:
            machine.links.pop(name, None)

    def find_device(self, path: str) -> str | None:
        with self._process.reading() as machine:
            device = machine.find_device(path)
            return device.number if device is not None else None
