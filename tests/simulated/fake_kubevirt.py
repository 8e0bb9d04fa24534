"""KubeVirt in memory: machines whose specs name volumes, and what becomes of these in the ones that run.

It does a step of its work each time it is told to, as a controller does that others wait for; a guest that has a disk
holds its claim, and it is wrong if nobody keeps that for it.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from tests.simulated.guest_api import NAMESPACE, GuestApi

from aoe_core.resources.virtual_machine import READY, Instance, VirtualMachine, VolumeState
from aoe_core.units import MIB

_WAY_IN = ("AttachedToNode", "MountedToPod", READY)


@dataclass(slots=True)
class Running:
    """What runs of a machine."""

    node: str
    started: bool = False
    """Its guest runs: it does once all its volumes are there."""
    phases: dict[str, str] = field(default_factory=dict)
    """Volume → how far it is."""
    claims: dict[str, str] = field(default_factory=dict)
    """Volume → its claim."""
    serials: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class FakeKubeVirt:
    """The machines of one namespace."""

    api: GuestApi
    machines: dict[str, VirtualMachine] = field(default_factory=dict)
    running: dict[str, Running] = field(default_factory=dict)
    deaf: set[str] = field(default_factory=set)
    """Machines whose guests do not let go."""
    ungated: bool = False
    """Whether the feature gate is not set: nothing is done for a machine that runs."""
    missing: set[str] = field(default_factory=set)
    """Claims that do not come to a node."""

    def add(self, name: str, node: str = "") -> None:
        """Make a machine with a disk of its own; it runs where `node` says, if it does."""
        self.machines[name] = VirtualMachine(
            namespace=NAMESPACE,
            name=name,
            uid=f"uid-{self.api.version()}",
            resource_version=self.api.version(),
            deleting=False,
            volumes=({"name": "root", "persistentVolumeClaim": {"claimName": "system"}},),
            disks=({"name": "root", "disk": {"bus": "virtio"}, "bootOrder": 1},),
        )
        if node:
            self.start(name, node)

    def start(self, name: str, node: str) -> None:
        """Start a machine: with all that its spec has."""
        self.running[name] = Running(node)
        before: dict[str, str] | None = None
        while before != (before := self.work(name)):
            pass

    def stop(self, name: str) -> None:
        """Stop a machine."""
        del self.running[name]

    def delete(self, name: str) -> None:
        """Delete a machine, running or not."""
        self.running.pop(name, None)
        del self.machines[name]

    def put(self, machine: VirtualMachine) -> VirtualMachine:
        """Write a machine's spec."""
        machine = self.machines[machine.name] = replace(machine, resource_version=self.api.version())
        return machine

    def instance(self, name: str) -> Instance | None:
        """Return what runs of a machine."""
        found = self.running.get(name)
        if found is None:
            return None
        states = {
            one: VolumeState(
                phase=phase,
                target=f"vd{chr(ord('b') + number)}" if phase == READY else "",
                size_bytes=12 * MIB if phase == READY else 0,
            )
            for number, (one, phase) in enumerate(found.phases.items())
        }
        return Instance(node=found.node, running=found.started, volumes=frozenset(states), states=states)

    def work_all(self) -> bool:
        """Do a step for each machine that runs; say whether there was anything to do."""
        before = {name: dict(one.phases) for name, one in self.running.items()}
        return not self.ungated and any(self.work(name) != before[name] for name in list(self.running))

    def work(self, name: str) -> dict[str, str]:
        """Bring each volume of a running machine a step further; return how far they are."""
        running = self.running[name]
        if (machine := self.machines.get(name)) is None:
            return dict(running.phases)  # It was left behind when its machine was deleted.
        wanted = {one["name"]: one["persistentVolumeClaim"] for one in machine.volumes if _comes_and_goes(one)}
        # What is to go keeps its phase until the guest has let go, and nothing goes from a machine that does not run.
        for volume in [
            one for one in running.phases if one not in wanted and running.started and name not in self.deaf
        ]:
            for known in (running.phases, running.claims, running.serials):
                known.pop(volume)
        for volume, claim in wanted.items():
            if volume not in running.phases:
                running.phases[volume], running.claims[volume] = _WAY_IN[0], claim["claimName"]
                (disk,) = [one for one in machine.disks if one["name"] == volume]
                running.serials[volume] = disk["serial"]
            elif running.phases[volume] != READY and claim["claimName"] not in self.missing:
                running.phases[volume] = _WAY_IN[_WAY_IN.index(running.phases[volume]) + 1]
        running.started = running.started or all(phase == READY for phase in running.phases.values())
        self.check_always()
        return dict(running.phases)

    def check_always(self) -> None:
        """Prove that the claim of each disk that a guest has is kept for it."""
        for name, running in self.running.items():
            for claim in running.claims.values():
                held = self.api.claims.get((NAMESPACE, claim))
                assert held is not None, f"{name} has a claim that is gone"
                assert any(one.startswith("guest-disk.") for one in held.finalizers), f"nobody keeps {claim} for {name}"


def _comes_and_goes(volume: Any) -> bool:
    return bool(volume.get("persistentVolumeClaim", {}).get("hotpluggable"))
