"""KubeVirt's machines, as far as a guest's disk needs them: which volumes their spec has, and what became of each.

A volume and a disk of the same name in a VirtualMachine's template, the volume marked `hotpluggable`, come and go while
the machine runs (KubeVirt's feature gate DeclarativeHotplugVolumes, without HotplugVolumes; pkg/storage/hotplug). Field
names: kubevirt.io/api/core/v1, VirtualMachineInstanceSpec and VolumeStatus. What is not understood here is written back
as it was read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from aoe_core.resources.guest_disk import AoEGuestDisk

_LONGEST_PREFIX = 54
"""With a dash and eight digits, a DNS label: the volume's name becomes one of a pod's."""


READY = "Ready"
"""The phase of a volume that the guest has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeState:
    """What became of a volume in a running machine."""

    phase: str
    message: str = ""
    target: str = ""
    """The disk's name among the machine's; empty until it has one."""
    size_bytes: int = 0
    """What the machine was told; 0 until it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A machine that runs, or is to: a VirtualMachineInstance."""

    node: str
    """Empty until one is found."""
    running: bool
    """Whether its guest runs; until then KubeVirt takes nothing out of it."""
    volumes: frozenset[str]
    """The volumes it has, is to have, or has not let go of yet."""
    states: Mapping[str, VolumeState]
    """Volume → what became of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualMachine:
    """A VirtualMachine as it was read, with what its template has of volumes and disks."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    deleting: bool
    volumes: tuple[Mapping[str, Any], ...]
    disks: tuple[Mapping[str, Any], ...]
    migrates_volumes: bool = False
    """updateVolumesStrategy: Migration, with which a change of its volumes is none of what is plugged."""

    def __str__(self) -> str:
        return f"virtual machine {self.namespace}/{self.name}"


class MachineStore(Protocol):
    """Where machines are kept. Every method raises Unreachable."""

    def find_machine(self, namespace: str, name: str) -> VirtualMachine | None:
        """Return a machine, None when it is not there."""

    def find_instance(self, namespace: str, name: str) -> Instance | None:
        """Return what runs of a machine, None when nothing does, or all that did has ended."""

    def put_disks(self, machine: VirtualMachine) -> VirtualMachine:
        """Replace the volumes and disks of a machine's template. Raises: NotFound; Busy when it has changed since it
        was read; Invalid when KubeVirt refuses them."""


def volume_name(disk: AoEGuestDisk) -> str:
    """Return what a guest's disk is called in its machine: so that a person knows it again, and no later one of its
    name is taken for it."""
    readable = disk.metadata.name.replace(".", "-")[:_LONGEST_PREFIX].strip("-")
    return f"{readable}-{disk.metadata.uid[:8]}"


def find_volume(machine: VirtualMachine, name: str) -> Mapping[str, Any] | None:
    """Return a volume of a machine's template, None when it has none of that name."""
    return next((one for one in machine.volumes if one["name"] == name), None)


def is_plugged(machine: VirtualMachine, disk: AoEGuestDisk) -> bool:
    """Say whether a machine's template has a guest's disk, whole: its volume with its claim, and a disk for it."""
    name = volume_name(disk)
    volume = find_volume(machine, name)
    has_device = any(one["name"] == name for one in machine.disks)
    return has_device and volume is not None and claim_of(volume) == disk.spec.claim


def claim_of(volume: Mapping[str, Any]) -> str | None:
    """Return the claim that a volume is, however it is written down; None for what is none."""
    sources = {**volume, **(volume.get("ephemeral") or {})}
    for source, key in (("persistentVolumeClaim", "claimName"), ("dataVolume", "name"), ("memoryDump", "claimName")):
        if source in sources:
            return str((sources[source] or {}).get(key))
    return None


def with_disk(machine: VirtualMachine, disk: AoEGuestDisk, *, read_only: bool) -> VirtualMachine:
    """Return a machine that has a guest's disk besides."""
    name = volume_name(disk)
    volume = {"name": name, "persistentVolumeClaim": {"claimName": disk.spec.claim, "hotpluggable": True}}
    device = {"bus": disk.spec.bus, **({"readonly": True} if read_only else {})}
    without = without_disk(machine, name)
    return replace(
        without,
        volumes=(*without.volumes, volume),
        disks=(*without.disks, {"name": name, "serial": disk.status.serial, "disk": device}),
    )


def without_disk(machine: VirtualMachine, name: str) -> VirtualMachine:
    """Return a machine that has no volume or disk of a name."""
    return replace(
        machine,
        volumes=tuple(one for one in machine.volumes if one["name"] != name),
        disks=tuple(one for one in machine.disks if one["name"] != name),
    )
