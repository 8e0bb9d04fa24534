"""KubeVirt's machines as an API server has them. Their definitions here let anything be said; a real KubeVirt's are
tried in tests/kubevirt."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from aoe_core.errors import Busy, NotFound, Unreachable
from aoe_core.resources.guest_kubernetes import KubernetesMachines
from aoe_core.resources.virtual_machine import Instance, VolumeState
from aoe_core.units import MIB
from aoe_lab.kubernetes.control_plane import ControlPlane

NAMESPACE = "machines"
ROOT = {"name": "root", "containerDisk": {"image": "system"}}
_ANYTHING = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


_KINDS = ("VirtualMachine", "VirtualMachineInstance")


def define_kubevirt(plane: ControlPlane, *, served: bool = True) -> None:
    """Define machines and their instances."""
    for kind in _KINDS:
        singular = kind.lower()
        schema = {"openAPIV3Schema": _ANYTHING}
        plane.apply(
            {
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {"name": f"{singular}s.kubevirt.io"},
                "spec": {
                    "group": "kubevirt.io",
                    "scope": "Namespaced",
                    "names": {"kind": kind, "plural": f"{singular}s", "singular": singular},
                    "versions": [{"name": "v1", "served": served, "storage": True, "schema": schema}],
                },
            }
        )
        if served:
            plane.await_defined(f"crd/{singular}s.kubevirt.io")


def virtual_machine(namespace: str) -> dict[str, Any]:
    """Return a machine with a disk of its own."""
    devices = {"disks": [{"name": "root", "disk": {"bus": "virtio"}}], "rng": {}}
    spec = {"domain": {"devices": devices, "memory": {"guest": "1Gi"}}, "volumes": [ROOT]}
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": "vm1", "namespace": namespace},
        "spec": {"runStrategy": "Always", "template": {"spec": spec}},
    }


def instance(namespace: str, *states: dict[str, Any], phase: str = "Running") -> dict[str, Any]:
    """Return what runs of it."""
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": "vm1", "namespace": namespace},
        "spec": {"volumes": [ROOT]},
        "status": {"phase": phase, "nodeName": "node1", "volumeStatus": list(states)},
    }


@pytest.fixture(scope="module")
def defined(plane: ControlPlane) -> ControlPlane:
    define_kubevirt(plane)
    plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    return plane


@pytest.fixture
def machines(defined: ControlPlane) -> Iterator[KubernetesMachines]:
    with KubernetesMachines(defined.kubeconfig, holder="test") as opened:
        defined.apply(virtual_machine(NAMESPACE))
        yield opened
    defined.kubectl("delete", "virtualmachines,virtualmachineinstances", "--all", f"--namespace={NAMESPACE}")


def test_disks_are_changed_over_what_was_read_and_all_else_stays(
    defined: ControlPlane, machines: KubernetesMachines
) -> None:
    read = machines.find_machine(NAMESPACE, "vm1")
    assert read is not None
    assert (read.volumes, [one["name"] for one in read.disks], read.deleting) == ((ROOT,), ["root"], False)
    assert not read.migrates_volumes
    more = {"name": "more", "persistentVolumeClaim": {"claimName": "data", "hotpluggable": True}}
    disk = {"name": "more", "serial": "0123abcde", "disk": {"bus": "virtio"}}
    written = machines.put_disks(replace(read, volumes=(*read.volumes, more), disks=(*read.disks, disk)))
    assert written == machines.find_machine(NAMESPACE, "vm1")
    assert written.volumes == (ROOT, more)
    rest = "{.spec.runStrategy} {.spec.template.spec.domain.memory.guest} {.spec.template.spec.domain.devices.rng}"
    said = defined.kubectl("get", "virtualmachine/vm1", f"-n{NAMESPACE}", f"--output=jsonpath={rest}").stdout
    assert said == "Always 1Gi {}"
    with pytest.raises(Busy):
        machines.put_disks(read)
    defined.kubectl("delete", "virtualmachine/vm1", f"-n{NAMESPACE}")
    with pytest.raises(NotFound):
        machines.put_disks(written)
    defined.apply(virtual_machine(NAMESPACE))
    with pytest.raises(Busy):  # Another one of the name.
        machines.put_disks(written)


def test_a_machine_whose_volumes_are_migrated_is_known(defined: ControlPlane, machines: KubernetesMachines) -> None:
    patch = '--patch={"spec":{"updateVolumesStrategy":"Migration"}}'
    defined.kubectl("patch", "virtualmachine/vm1", f"-n{NAMESPACE}", "--type=merge", patch)
    read = machines.find_machine(NAMESPACE, "vm1")
    assert read is not None
    assert read.migrates_volumes


def test_what_runs_of_a_machine_is_read(defined: ControlPlane, machines: KubernetesMachines) -> None:
    assert machines.find_instance(NAMESPACE, "vm1") is None
    on_its_way = {"name": "more", "phase": "AttachedToNode", "message": "waits", "target": ""}
    defined.apply(
        instance(
            NAMESPACE,
            on_its_way,
            {"name": "root", "target": "vda", "persistentVolumeClaimInfo": {"capacity": {"storage": "64Mi"}}},
        )
    )
    assert machines.find_instance(NAMESPACE, "vm1") == Instance(
        node="node1",
        running=True,
        volumes=frozenset({"root", "more"}),
        states={
            "more": VolumeState(phase="AttachedToNode", message="waits"),
            "root": VolumeState(phase="", target="vda", size_bytes=64 * MIB),
        },
    )
    defined.apply(instance(NAMESPACE, phase="Succeeded"))
    assert machines.find_instance(NAMESPACE, "vm1") is None


def test_without_kubevirt_there_are_no_machines(plane: ControlPlane) -> None:
    """The last one here: it takes away what the others work with."""
    plane.kubectl("delete", "crd", *(f"{kind.lower()}s.kubevirt.io" for kind in _KINDS), "--ignore-not-found")
    with KubernetesMachines(plane.kubeconfig, holder="test") as machines:
        assert machines.find_machine(NAMESPACE, "none") is None
        assert machines.find_instance(NAMESPACE, "none") is None
        # As it answers of a definition that it does not serve yet.
        define_kubevirt(plane, served=False)
        with pytest.raises(Unreachable):
            machines.find_machine(NAMESPACE, "none")
