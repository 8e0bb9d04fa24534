"""A virtual machine of KubeVirt's in a lab: made, plugged and asked as a user would, and its guest spoken to.

The guest is reached by its serial console's socket on the node it runs on, as virt-handler does, since nobody here
speaks the subresources' websockets.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aoe_lab import progress
from aoe_lab.errors import LabError
from aoe_lab.guest import ANSWER_S, BOOT_S, GuestLine
from aoe_lab.qemu import SLOW_EMULATED

if TYPE_CHECKING:
    from aoe_lab.kubernetes.cluster import Cluster
    from aoe_lab.machine import Machine
    from aoe_lab.process import Finished

READY_S = 600.0
MOVED_S = 1200.0
"""A second launcher has to come up, and the guest's memory goes through two relays that are emulated, too."""
ANSWERS_S = 3 * BOOT_S
"""Three machines share two processors here, and KubeVirt has its own pods."""
MEMORY = "192Mi"
SLOW = (*SLOW_EMULATED, "la57")
"""What an emulated emulator takes longest for; the last one is a fifth level of page tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualMachine(GuestLine):
    """A VirtualMachine of a namespace."""

    cluster: Cluster
    namespace: str
    name: str

    @classmethod
    def create(cls, cluster: Cluster, namespace: str, resource: dict[str, Any]) -> VirtualMachine:
        """Make one of a resource as a user writes it, without its namespace. Its processor, its memory and its devices
        beside the disks become what an emulated node can bear."""
        content = deepcopy(resource)
        made = cls(cluster=cluster, namespace=namespace, name=content["metadata"]["name"])
        template = content["spec"]["template"]
        template["metadata"] = {"labels": {"guest": made.name}}
        template["spec"]["terminationGracePeriodSeconds"] = 5
        domain = template["spec"]["domain"]
        domain["cpu"] = {"cores": 1, "features": [{"name": one, "policy": "disable"} for one in SLOW]}
        domain["memory"] = {"guest": MEMORY}
        domain["devices"] |= {
            "autoattachPodInterface": False,
            "autoattachGraphicsDevice": False,
            "autoattachMemBalloon": False,
            "logSerialConsole": False,
        }
        made._kubectl("apply", "-f", "-", stdin=json.dumps(content))
        return made

    def plug(self, disk: str, claim: str, serial: str) -> None:
        """Add a claim to the machine's spec as a disk that comes and goes while it runs."""
        spec = self._template()
        spec["domain"]["devices"]["disks"].append({"name": disk, "serial": serial, "disk": {"bus": "virtio"}})
        source = {"claimName": claim, "hotpluggable": True}
        spec["volumes"].append({"name": disk, "persistentVolumeClaim": source})
        self._put_template(spec)

    def unplug(self, disk: str) -> None:
        """Take a disk out of the spec."""
        spec = self._template()
        devices = spec["domain"]["devices"]
        devices["disks"] = [one for one in devices["disks"] if one["name"] != disk]
        spec["volumes"] = [one for one in spec["volumes"] if one["name"] != disk]
        self._put_template(spec)

    def own_disks(self) -> tuple[str, ...]:
        """Return the names of the volumes that its spec has."""
        return tuple(one["name"] for one in self._template()["volumes"])

    def await_phase(self, disk: str, phase: str | None) -> None:
        """Wait until a disk's volume is in a phase (Ready), or is known no more (None). Raises: LabError."""

        def missing() -> str | None:
            found = [
                one.get("phase") for one in self._instance()["status"].get("volumeStatus", ()) if one["name"] == disk
            ]
            return None if found == ([] if phase is None else [phase]) else f"disk {disk}: {found}"

        self.cluster.await_(missing, f"disk {disk} of {self.name} to be {phase or 'gone'}", READY_S)

    def await_running(self) -> None:
        """Wait until it is Ready and its guest answers. Raises: LabError with what is said instead."""
        self._await_status("Running")
        # Its kernel is emulated by an emulated processor.
        with progress.step(f"waiting for guest {self.name} to answer"):
            said = self._at_console("answers-at", f"{ANSWERS_S:g}", timeout_s=ANSWERS_S + 60)
        if said is not True:
            raise LabError(f"guest {self.name} does not answer within {ANSWERS_S:g} s")

    def stop(self) -> None:
        """Have it halted, and wait until it is."""
        self._patch({"runStrategy": "Halted"})
        self._await_status("Stopped")

    def start(self) -> None:
        """Have it run again, and wait until its guest answers."""
        self._patch({"runStrategy": "Always"})
        self.await_running()

    def is_migratable(self) -> bool:
        """Say whether KubeVirt could move it to another node."""
        return self._said("vmi", "{.status.conditions[?(@.type=='LiveMigratable')].status}") == "True"

    def migrate(self) -> None:
        """Have it move to another node while it runs, and wait until it has. Raises: LabError with what KubeVirt says
        of a move that failed, or did not come to its end."""
        move = {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstanceMigration",
            "metadata": {"name": f"{self.name}-moves"},
            "spec": {"vmiName": self.name},
        }
        self._kubectl("create", "-f", "-", stdin=json.dumps(move))

        def under_way() -> str | None:
            phase = self._said("vmim", "{.status.phase}", f"{self.name}-moves")
            if phase == "Failed":
                raise LabError(f"the move failed: {self._told_of_move()}")
            return None if phase == "Succeeded" else f"it is {phase or 'not taken note of'}: {self._told_of_move()}"

        self.cluster.await_(under_way, f"{self.name} to have moved", MOVED_S)
        self._kubectl("delete", "vmim", f"{self.name}-moves", "--timeout=60s", timeout_s=90)

    def _told_of_move(self) -> str:
        told = [self._said("vmi", path) for path in ("{.status.migrationState}", "{.status.conditions}")]
        events = self._kubectl("get", "events", "--sort-by=.lastTimestamp", check=False).stdout
        return "\n".join([*told, events[-3000:]])

    def delete(self) -> None:
        """End it."""
        self._kubectl("delete", "vm", self.name, "--timeout=300s", timeout_s=330)

    def node(self) -> Machine:
        """Return the machine it runs on. Raises: LabError when it runs on none."""
        name = self._said("vmi", "{.status.nodeName}")
        return self.cluster.lab.machine(name)

    def domain_xml(self) -> str:
        """Return what libvirt in its pod has of it."""
        pod = self._kubectl(
            "get", "pods", f"--selector=kubevirt.io=virt-launcher,guest={self.name}", "--output=name"
        ).stdout.split()[-1]  # fmt: skip
        domain = f"{self.namespace}_{self.name}"
        return self._kubectl("exec", pod, "-c", "compute", "--", "virsh", "dumpxml", domain, timeout_s=120).stdout

    def ask(self, *words: str) -> list[str]:
        """Have the guest do something; return the lines of its answer."""
        answer: list[str] = self._at_console("ask-at", *words, timeout_s=ANSWER_S + 60)
        return answer

    def _at_console(self, act: str, *words: str, timeout_s: float) -> Any:
        uid = self._said("vmi", "{.metadata.uid}")
        node = self.node()
        directory = "/var/lib/kubelet/pods/*/volumes/kubernetes.io~empty-dir/private"
        found = node.run(f"ls -t {directory}/{uid}/virt-serial0", check=False).stdout.split()
        if not found:
            raise LabError(f"guest {self.name} has no console on {node.name}")
        command = ["aoe-python", "-m", "aoe_lab.guest", act, found[0], *words]
        return json.loads(node.run(command, timeout_s=timeout_s).stdout)

    def _await_status(self, wanted: str) -> None:
        def missing() -> str | None:
            said = self._said("vm", "{.status.printableStatus}")
            return None if said == wanted else f"it says {said!r}"

        self.cluster.await_(missing, f"{self.name} {wanted}", READY_S)

    def _template(self) -> dict[str, Any]:
        found = json.loads(self._kubectl("get", "vm", self.name, "--output=json").stdout)
        return dict(found["spec"]["template"]["spec"])

    def _put_template(self, spec: dict[str, Any]) -> None:
        devices, volumes = spec["domain"]["devices"], spec["volumes"]
        self._patch({"template": {"spec": {"domain": {"devices": devices}, "volumes": volumes}}})

    def _patch(self, spec: dict[str, Any]) -> None:
        self._kubectl("patch", "vm", self.name, "--type=merge", f"--patch={json.dumps({'spec': spec})}")

    def _instance(self) -> dict[str, Any]:
        return dict(json.loads(self._kubectl("get", "vmi", self.name, "--output=json").stdout))

    def _said(self, kind: str, path: str, name: str | None = None) -> str:
        return self._kubectl("get", kind, name or self.name, f"--output=jsonpath={path}", check=False).stdout

    def _kubectl(self, *words: str, stdin: str | None = None, check: bool = True, timeout_s: float = 60) -> Finished:
        return self.cluster.plane.kubectl(
            f"--namespace={self.namespace}", *words, stdin=stdin, check=check, timeout_s=timeout_s
        )
