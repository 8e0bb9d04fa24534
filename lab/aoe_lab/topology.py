"""Which machines a lab has, and everything about them that follows from their names.

Owns: addresses, MACs and interface names; they are the same in every lab, since each has a network of its own.
Source: RFC 5737 (192.0.2.0/24 is for documentation), and 52:54:00, which QEMU uses for its cards.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from aoe_lab.errors import LabError

MIB = 1 << 20
GIB = 1 << 30
GATEWAY = "192.0.2.1"
FIRST_OCTET = {"storage": 11, "compute": 21, "hypervisor": 231}
MOST_MACHINES = {"storage": 10, "compute": 200, "hypervisor": 10}
HYPERVISOR_MEMORY_MIB = 1536
"""Room for libvirt and two guests of `guest.MEMORY_MIB`, each with its emulator."""
SAN_NAME = re.compile(r"[a-z][a-z0-9-]{0,9}")  # "san-" and the name are an interface's name: 15 characters.


class Role(StrEnum):
    """What a machine is meant for. Storage machines have data disks; hypervisors boot an image with libvirt in it."""

    STORAGE = "storage"
    COMPUTE = "compute"
    HYPERVISOR = "hypervisor"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataDisk:
    """An empty disk of a storage machine.

    `volatile_cache`: writes are lost in a power cut until flushed; without it, they are on the disk at once.
    `flush_delay_ms`: how long each 64 KiB written back by a flush takes longer (needs the volatile cache).
    """

    size_bytes: int = 8 * GIB
    volatile_cache: bool = True
    flush_delay_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """One machine: `octet` is the last byte of its addresses, `sans` its SAN cards, eth1 first."""

    name: str
    role: Role
    octet: int
    memory_mib: int
    cpus: int
    sans: tuple[str, ...]
    disks: tuple[DataDisk, ...]

    @property
    def address(self) -> str:
        return f"192.0.2.{self.octet}"

    @property
    def mgmt_mac(self) -> str:
        return f"52:54:00:00:00:{self.octet:02x}"

    @property
    def mgmt_tap(self) -> str:
        return f"m{self.octet}"

    def san_mac(self, san: str) -> str:
        return f"52:54:00:00:{self._san_number(san):02x}:{self.octet:02x}"

    def san_interface(self, san: str) -> str:
        return f"eth{self._san_number(san)}"

    def san_tap(self, san: str) -> str:
        return f"s{self.octet}-{self._san_number(san)}"

    def _san_number(self, san: str) -> int:
        if san not in self.sans:
            raise LabError(f"{self.name} is not on the SAN {san!r}; it is on: {', '.join(self.sans) or 'none'}")
        return self.sans.index(san) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The machines of a lab. `disks_of` gives single machines other disks than their role's, by name."""

    storage: int = 1
    compute: int = 1
    hypervisors: int = 0
    sans: tuple[str, ...] = ("main",)
    memory_mib: int = 512
    cpus: int = 2
    disks: tuple[DataDisk, ...] = (DataDisk(), DataDisk())
    disks_of: dict[str, tuple[DataDisk, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for role, count in self._counts():
            if not 0 <= count <= MOST_MACHINES[role]:
                raise LabError(f"{count} {role} machines: a lab has 0 to {MOST_MACHINES[role]}")
        for san in self.sans:
            if not SAN_NAME.fullmatch(san):
                raise LabError(f"SAN name {san!r}: 1 to 10 lower-case letters, digits and dashes, a letter first")

    def machines(self) -> tuple[MachineSpec, ...]:
        return tuple(spec for role, count in self._counts() for spec in self._of_role(role, count))

    def _counts(self) -> tuple[tuple[Role, int], ...]:
        return ((Role.STORAGE, self.storage), (Role.COMPUTE, self.compute), (Role.HYPERVISOR, self.hypervisors))

    def _of_role(self, role: Role, count: int) -> list[MachineSpec]:
        return [
            MachineSpec(
                name=f"{role}{number}",
                role=role,
                octet=FIRST_OCTET[role] + number - 1,
                memory_mib=HYPERVISOR_MEMORY_MIB if role is Role.HYPERVISOR else self.memory_mib,
                cpus=self.cpus,
                sans=self.sans,
                disks=self.disks_of.get(f"{role}{number}", self.disks if role is Role.STORAGE else ()),
            )
            for number in range(1, count + 1)
        ]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Topology:
        raw: dict[str, Any] = json.loads(text)
        raw["sans"] = tuple(raw["sans"])
        raw["disks"] = _disks(raw["disks"])
        raw["disks_of"] = {name: _disks(disks) for name, disks in raw["disks_of"].items()}
        return cls(**raw)


def _disks(raw: list[dict[str, Any]]) -> tuple[DataDisk, ...]:
    return tuple(DataDisk(**disk) for disk in raw)
