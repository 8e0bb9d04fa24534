"""A whole cluster: a lab's machines as nodes, the control plane beside them, and aoe-csi installed by its chart.

Owns: what an administrator does before and around `helm install` (volume groups, labels, the snapshot API), and the
values a lab needs. Used by tests, demonstration and benchmarks alike.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from aoe_lab import Lab, Topology, progress
from aoe_lab.container_images import ensure_image, image_name
from aoe_lab.errors import LabError
from aoe_lab.kubernetes import kubelet
from aoe_lab.kubernetes.containers import ensure_store
from aoe_lab.kubernetes.control_plane import ControlPlane
from aoe_lab.kubernetes.helm import NAMESPACE, Helm
from aoe_lab.kubernetes.images import ensure_images, sidecar_image
from aoe_lab.kubernetes.programs import SIDECARS as SIDECAR_PROGRAMS
from aoe_lab.kubernetes.programs import ensure_programs, snapshot_definitions
from aoe_lab.lab import at_once
from aoe_lab.patience import OUTLASTING_DEADSECS
from aoe_lab.topology import Role

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from aoe_lab.machine import Machine
    from aoe_lab.process import Finished

VOLUME_GROUP, THIN_POOL = "data", "thinpool"
THIN_POOL_BYTES = 3 << 30
MEMORY_MIB = 1536
SIDECARS = ("provisioner", "attacher", "resizer", "snapshotter")
WORKLOADS = ("deployment/aoe-csi-controller", "deployment/aoe-csi-cluster", "daemonset/aoe-csi-storage",
             "daemonset/aoe-csi-node")  # fmt: skip
READY_S = 600.0
IMAGE, GUESTS_IMAGE = "aoe-csi", "aoe-csi-guests"


def own_tag(image: str = IMAGE) -> str:
    """Return a tag that changes with one of our images' content, so that an upgrade is one."""
    return ensure_image(name=image).parent.name.rpartition("-")[2]


def _own_images(hypervisors: int) -> tuple[str, ...]:
    return (IMAGE, GUESTS_IMAGE) if hypervisors else (IMAGE,)


def _full_name(image: str) -> str:
    """Return what containerd calls an image of ours once it is imported."""
    return f"docker.io/library/{image_name(image)}"


def _tagged(image: str) -> str:
    return f"{_full_name(image).rpartition(':')[0]}:{own_tag(image)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Additions:
    """What a cluster's machines have for somebody else's software, installed later."""

    images: dict[str, Path] = field(default_factory=dict)
    """Name → OCI archive."""
    tags: dict[str, str] = field(default_factory=dict)
    """Further name → the image's own."""
    binaries: tuple[Path, ...] = ()
    """Files for the tools disk's bin/."""
    memory_mib: int = MEMORY_MIB
    values: dict[str, Any] = field(default_factory=dict)
    """Of our chart."""
    has_guests: bool = False
    """Machines of it are emulated twice."""


NOTHING_MORE = Additions()
DEAD_S = 120
"""Tests do not wait for ten minutes until a disk fails."""
STARTED_AS = "cluster.json"
"""What a cluster was started with and its machines do not tell, in its lab's directory."""


@dataclass(slots=True, kw_only=True)
class Cluster:
    """A running cluster; every machine of the lab is a node."""

    lab: Lab
    plane: ControlPlane
    helm: Helm
    dead_s: int
    """After how many seconds without its storage machine a disk fails."""
    more_values: dict[str, Any]

    @classmethod
    def start(
        cls,
        *,
        storage: int = 1,
        compute: int = 1,
        hypervisors: int = 0,
        sans: tuple[str, ...] = ("main",),
        name: str = "cluster",
        dead_s: int = DEAD_S,
        more: Additions = NOTHING_MORE,
    ) -> Self:
        """Boot machines, start the control plane, join all. Nothing of ours is installed yet."""
        own = _own_images(hypervisors)
        images = {**ensure_images(), **{image_name(one): ensure_image(name=one) for one in own}, **more.images}
        store = ensure_store(images, {**{_tagged(one): _full_name(one) for one in own}, **more.tags})
        kubelet_program = ensure_programs()["kubelet"]
        topology = Topology(
            storage=storage, compute=compute, hypervisors=hypervisors, sans=sans, memory_mib=more.memory_mib
        )
        lab = Lab.start(topology, name=name, binaries=(kubelet_program, store, *more.binaries))
        try:
            plane = ControlPlane.start(lab)
            if hypervisors or more.has_guests:  # Beside guests that are emulated twice a boot takes long.
                dead_s = max(dead_s, OUTLASTING_DEADSECS)
            (lab.directory / STARTED_AS).write_text(json.dumps({"dead_s": dead_s, "more_values": more.values}))
            cluster = cls._of(lab, plane)
            with progress.step(f"joining {len(lab.machines)} nodes"):
                at_once(lambda machine: kubelet.join(machine, plane), lab.machines)
            for machine in cluster.storage_machines:
                cluster.prepare_storage(machine)
            for machine in cluster.hypervisors:
                plane.kubectl("label", "node", machine.name, "aoe-csi.dev/guests=true")
            plane.kubectl("apply", "--server-side", "-f", snapshot_definitions())
            plane.start_beside("snapshot-controller", ensure_programs((SIDECAR_PROGRAMS,))["snapshot-controller"])
            plane.kubectl("create", "namespace", NAMESPACE)
        except BaseException:
            lab.stop()
            raise
        return cluster

    @classmethod
    def attach(cls, name: str = "cluster") -> Self:
        """Return a running cluster; it goes on after us. Raises: LabError when there is none."""
        lab = Lab.attach(name)
        return cls._of(lab, ControlPlane.attach(lab))

    @classmethod
    def _of(cls, lab: Lab, plane: ControlPlane) -> Self:
        started_as = json.loads((lab.directory / STARTED_AS).read_text())
        helm = Helm(kubeconfig=plane.kubeconfig, place=lab.directory / "helm")
        return cls(lab=lab, plane=plane, helm=helm, **started_as)

    @property
    def storage_machines(self) -> tuple[Machine, ...]:
        """The machines with disks."""
        return tuple(machine for machine in self.lab.machines if machine.spec.role is Role.STORAGE)

    @property
    def compute_machines(self) -> tuple[Machine, ...]:
        """The machines without."""
        return tuple(machine for machine in self.lab.machines if machine.spec.role is Role.COMPUTE)

    @property
    def hypervisors(self) -> tuple[Machine, ...]:
        """The machines with libvirt."""
        return tuple(machine for machine in self.lab.machines if machine.spec.role is Role.HYPERVISOR)

    @property
    def control(self) -> Machine:
        """The machine that what is there once for all runs on."""
        return (self.compute_machines or self.storage_machines)[0]

    def on_san(self, san: str) -> tuple[Machine, ...]:
        """The nodes that are told of a SAN: all of the first, all but the first compute machine of any other."""
        left_out = () if san == self.lab.topology.sans[0] else self.compute_machines[:1]
        return tuple(machine for machine in self.lab.machines if machine not in left_out)

    def prepare_storage(self, machine: Machine) -> None:
        """Give a machine its volume group and thin pool, and its node the label."""
        machine.run(f"vgs {VOLUME_GROUP} >/dev/null 2>&1 || vgcreate -qq {VOLUME_GROUP} /dev/disk/by-id/virtio-data0")
        made = f"lvcreate -qq -y --type thin-pool -L {THIN_POOL_BYTES}b -n {THIN_POOL} {VOLUME_GROUP}"
        machine.run(f"lvs {VOLUME_GROUP}/{THIN_POOL} >/dev/null 2>&1 || {made}")
        self.plane.kubectl("label", "node", machine.name, "aoe-csi.dev/storage=true", "--overwrite")

    def values(self) -> dict[str, Any]:
        """Return the chart's values for this lab."""
        sans = self.lab.topology.sans
        return {
            "log": {"format": "json"},
            "image": {"tag": own_tag()},
            "sans": [
                {
                    "name": san,
                    "interfaces": [self.lab.machines[0].san_interface(san)],
                    "nodes": [machine.name for machine in self.on_san(san)],
                }
                for san in sans
            ],
            # One storage node, or few: there is no next one to be kept from a bad version.
            "storage": {"minReadySeconds": 0},
            "initiator": {"deadSeconds": self.dead_s},
            "controller": {"replicas": 1, "nodeSelector": {"kubernetes.io/hostname": self.control.name}},
            "cluster": {"nodeSelector": {"kubernetes.io/hostname": self.control.name}},
            **self._guests(),
            "storageNodes": [
                {
                    "name": machine.name,
                    "restSeconds": self.dead_s + 1,
                    "pools": [
                        {"name": "thick", "volumeGroup": VOLUME_GROUP},
                        {"name": "thin", "volumeGroup": VOLUME_GROUP, "thinPool": THIN_POOL},
                    ],
                    "sans": [
                        {
                            "name": san,
                            "interface": machine.san_interface(san),
                            "shelves": [{"first": 100 * number, "last": 100 * number + 99}],
                        }
                        for number, san in enumerate(sans, 1)
                    ],
                }
                for machine in self.storage_machines
            ],
            "storageClasses": [
                {"name": "thin", "pool": "thin", "default": True},
                {"name": "thin-xfs", "pool": "thin", "fsType": "xfs"},
                {"name": "thick", "pool": "thick"},
                {"name": "at-once", "pool": "thick", "volumeBindingMode": "Immediate"},
            ],
            "sidecars": {
                name: {"image": dict(zip(("repository", "tag"), sidecar_image(f"csi-{name}").split(":"), strict=True))}
                for name in SIDECARS
            },
        }

    def _guests(self) -> dict[str, Any]:
        if not self.hypervisors:
            return {}
        return {
            "guests": {
                "enabled": True,
                "image": {"tag": own_tag(GUESTS_IMAGE)},
                "access": [{"namespaces": ["*"], "domains": ["g*"]}],
            }
        }

    def install(self, **changed: Any) -> Finished:
        """`helm upgrade --install` the chart and the image of this checkout; `changed` go over the lab's values."""
        self.push_image()
        return self.helm.upgrade(self.values() | self.more_values | changed)

    def push_image(self) -> None:
        """Bring our images as the checkout has them now to every machine that has not got them."""
        images = ("ctr", "-n", "k8s.io", "images")
        own = {name: (ensure_image(name=name), _tagged(name)) for name in _own_images(len(self.hypervisors))}

        def push(machine: Machine) -> None:
            there = machine.run([*images, "list", "-q"]).stdout.split()
            for name, (archive, tagged) in own.items():
                if tagged in there:
                    continue
                machine.copy_to(archive, "/var/tmp/aoe-csi.tar")
                machine.run([*images, "import", "/var/tmp/aoe-csi.tar"], timeout_s=600)
                machine.run([*images, "tag", "--force", _full_name(name), tagged])
                machine.run(["rm", "/var/tmp/aoe-csi.tar"])

        with progress.step("bringing our image to the machines"):
            at_once(push, self.lab.machines)

    def await_ready(self) -> None:
        """Wait until every pod of ours is of the present release and Ready, and every node has registered the driver.

        Raises: LabError with what is not.
        """
        self.await_(self._old_pods, "aoe-csi to be rolled out")
        self.await_(self.missing, "aoe-csi to be ready")

    def await_(self, answer: Callable[[], str | None], what: str, timeout_s: float = READY_S) -> None:
        """Wait until `answer` returns None. Raises: LabError with what it returned last."""
        deadline = time.monotonic() + timeout_s
        with progress.step(f"waiting for {what}"):
            while (missing := answer()) is not None:
                if time.monotonic() > deadline:
                    raise LabError(f"waited {timeout_s:g} s in vain for {what}: {missing}\n{self.describe()}")
                time.sleep(1)

    def describe(self) -> str:
        """Return what one would look at first."""
        looked = [
            self.plane.kubectl("get", "pods", "--all-namespaces", "-o", "wide", check=False).stdout,
            self.plane.kubectl("get", "aoenodes,aoevolumes,pvc,volumeattachments", "-A", check=False).stdout,
            self.plane.kubectl("get", "events", "-A", "--sort-by=.lastTimestamp", check=False).stdout[-6000:],
        ]
        return "\n".join(looked)

    def _old_pods(self) -> str | None:
        for workload in (*WORKLOADS, *(["daemonset/aoe-csi-guests"] if self.hypervisors else [])):
            words = ("rollout", "status", f"--namespace={NAMESPACE}", workload, "--watch=false")
            said = self.plane.kubectl(*words, check=False)
            if said.code != 0 or "successfully rolled out" not in said.stdout:
                return said.stdout + said.stderr
        return None

    def missing(self) -> str | None:
        """Return what keeps aoe-csi from being ready, None when it is. Raises: CommandFailed when nobody answers."""
        pods = json.loads(self.plane.kubectl("get", "pods", f"--namespace={NAMESPACE}", "-o", "json").stdout)["items"]
        expected = 2 + len(self.lab.machines) + len(self.storage_machines) + len(self.hypervisors)
        if len(pods) < expected:
            return f"{len(pods)} of {expected} pods are there"
        for pod in pods:
            states = pod["status"].get("containerStatuses", [])
            if not states or not all(state["ready"] for state in states):
                return f"pod {pod['metadata']['name']} is not ready"
        nodes = json.loads(self.plane.kubectl("get", "csinodes", "-o", "json").stdout)["items"]
        for node in nodes:
            drivers = [driver["name"] for driver in node["spec"].get("drivers") or ()]
            if "aoe-csi.dev" not in drivers:
                return f"node {node['metadata']['name']} has not registered the driver"
        return self._storage_nodes()

    def _storage_nodes(self) -> str | None:
        listed = json.loads(self.plane.kubectl("get", "aoenodes", "-o", "json").stdout)["items"]
        for node in listed:
            said = node.get("status", {}).get("conditions", [])
            ready = next((one for one in said if one["type"] == "Ready"), None)
            current = ready is not None and ready.get("observedGeneration") == node["metadata"]["generation"]
            if ready is None or not current or ready["status"] != "True":
                return f"AoENode {node['metadata']['name']}: {ready}"
        return None

    def stop(self) -> None:
        """End it all."""
        self.plane.stop()
        self.lab.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
