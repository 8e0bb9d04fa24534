"""A namespace with claims and pods: what a user of the cluster does, in as many lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from aoe_lab.kubernetes.images import WORKLOAD

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from aoe_lab.kubernetes.cluster import Cluster
    from aoe_lab.process import Finished

READY_S = 600.0
"""mkfs.xfs alone, which writes 64 MiB of log, takes three nodes on two processors some minutes."""
DEVICE, DIRECTORY = "/dev/data", "/data"
# Exports in force or half revoked, exporters, stage records, devices of the driver, what kubelet has mounted, pins.
LEFT_OVER = (
    "grep -lsE '^STATE=(live|revoking)' /var/lib/aoe-csi/exports/*; pgrep -ax vblade; ls /var/lib/aoe-csi/staged"
    " 2>/dev/null; ls -d /sys/block/etherd* 2>/dev/null; grep -E 'kubernetes.io[~/]csi|volume-subpaths' /proc/mounts;"
    " nft list ruleset netdev | grep 'elements ='; true"
)
LEFT_IN_LVM = "lvs --noheadings -o lv_name data"


def sleeping(used: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of a pod whose one container sleeps; `used`: its mounts or devices."""
    container = {"name": "workload", "image": WORKLOAD, "imagePullPolicy": "Never", "command": ["sleep", "1000000"]}
    return {
        "containers": [{**container, **used}],
        "terminationGracePeriodSeconds": 1,
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
    }


@dataclass(slots=True)
class Claims:
    """Everything is made in the namespace `name`."""

    cluster: Cluster
    name: str

    @classmethod
    def of_test(cls, cluster: Cluster, test: str) -> Self:
        """Return the claims of a test, in a namespace of its own, named after it."""
        return cls(cluster, test.removeprefix("test_").split("[")[0].replace("_", "-")[:50].strip("-"))

    def kubectl(self, *words: str, check: bool = True, timeout_s: float = 60, stdin: str | None = None) -> Finished:
        """Run kubectl in the namespace."""
        return self.cluster.plane.kubectl(
            f"--namespace={self.name}", *words, check=check, timeout_s=timeout_s, stdin=stdin
        )

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects."""
        self.cluster.plane.apply(*objects, namespace=self.name)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return an object."""
        return dict(json.loads(self.kubectl("get", kind, name, "--output=json").stdout))

    def claim(
        self,
        name: str,
        *,
        size: str = "256Mi",
        storage_class: str = "thin",
        mode: str = "ReadWriteOnce",
        block: bool = False,
        source: dict[str, str] | None = None,
        volume: str | None = None,
    ) -> None:
        """Make a PersistentVolumeClaim. `volume`: the PersistentVolume that it takes; the class is to be empty then."""
        spec: dict[str, Any] = {
            "storageClassName": storage_class,
            "accessModes": [mode],
            "volumeMode": "Block" if block else "Filesystem",
            "resources": {"requests": {"storage": size}},
        }
        if source is not None:
            spec["dataSource"] = source
        if volume is not None:
            spec["volumeName"] = volume
        self.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec})

    def pod(
        self,
        name: str,
        claim: str,
        *,
        block: bool = False,
        node: str | None = None,
        read_only: bool = False,
        mounts: list[dict[str, Any]] | None = None,
        **spec: Any,
    ) -> None:
        """Make a pod that has a claim at /data, or as /dev/data, and sleeps. `mounts`: where it has it instead."""
        volume = {"name": "data", "persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}}
        used: dict[str, Any] = (
            {"volumeDevices": [{"name": "data", "devicePath": DEVICE}]}
            if block
            else {"volumeMounts": mounts or [{"name": "data", "mountPath": DIRECTORY, "readOnly": read_only}]}
        )
        placed = {"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}
        content = {"volumes": [volume], **sleeping(used), **placed, **spec}
        self.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": content})

    def await_running(self, *pods: str, timeout_s: float = READY_S) -> None:
        """Wait until pods are Ready. Raises: LabError with what keeps them."""
        for pod in pods:

            def missing(pod: str = pod) -> str | None:
                ready = self.kubectl(
                    "get", "pod", pod, "--output=jsonpath={.status.conditions[?(@.type=='Ready')].status}", check=False
                )
                if ready.stdout == "True":
                    return None
                return self.kubectl("describe", "pod", pod, check=False).stdout[-1500:]

            self.cluster.await_(missing, f"pod {pod}", timeout_s)

    def run(self, pod: str, command: str, *, check: bool = True, timeout_s: float = 120) -> Finished:
        """Run a line of shell in a pod."""
        return self.kubectl("exec", pod, "--", "sh", "-c", command, check=check, timeout_s=timeout_s)

    def volume_of(self, claim: str) -> str:
        """Return the volume id behind a claim."""
        bound = self.get("pvc", claim)["spec"]["volumeName"]
        return str(json.loads(self.kubectl("get", "pv", bound, "-o", "json").stdout)["spec"]["csi"]["volumeHandle"])

    def holders(self, claim: str) -> str:
        """Return the nodes that a claim's volume is wanted by, or granted to."""
        nodes = "--output=jsonpath={.spec.tickets[*].node}{.status.grants[*].node}"
        return self.cluster.plane.kubectl("get", "aoevolume", self.volume_of(claim), nodes).stdout

    def delete_pod(self, pod: str, *, timeout_s: float = READY_S) -> None:
        """Delete a pod and wait until it is gone."""
        self.kubectl("delete", "pod", pod, f"--timeout={timeout_s:g}s", timeout_s=timeout_s + 30)

    def await_(self, what: str, answer: Callable[[], str | None], timeout_s: float = READY_S) -> None:
        """Wait until `answer` returns None. Raises: LabError with what it returned last."""
        self.cluster.await_(answer, what, timeout_s)

    def await_event(self, about: str, text: str, timeout_s: float = 180) -> None:
        """Wait until an event of an object says something. Raises: LabError with what they say instead."""

        def missing() -> str | None:
            said = self.events(about=about)
            return None if text in said else said or "nothing is said"

        self.cluster.await_(missing, f"an event about {about} that says {text!r}", timeout_s)

    def events(self, *, about: str) -> str:
        """Return what events say of an object, a line each."""
        return self.kubectl(
            "get", "events", f"--field-selector=involvedObject.name={about}",
            "--output=jsonpath={range .items[*]}{.reason}: {.message}{'\\n'}{end}",
        ).stdout  # fmt: skip

    def __enter__(self) -> Self:
        self.cluster.plane.kubectl("create", "namespace", self.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kubectl("delete", "pods", "--all", "--grace-period=1", "--timeout=300s", timeout_s=330)
        self.cluster.plane.kubectl("delete", "namespace", self.name, "--timeout=300s", timeout_s=330)
        if kind is None:
            # Kubernetes detaches what was refused to a node, and granted when its pod was gone, after some minutes.
            self.cluster.await_(self._left_over, f"the volumes of {self.name} to be gone", 600)

    def _left_over(self) -> str | None:
        left = [self.cluster.plane.kubectl("get", "pv,aoevolumes,aoesnapshots,volumeattachments", "-o", "name").stdout]
        for machine in self.cluster.lab.machines:
            found = machine.run(LEFT_OVER).stdout.strip()
            left += [f"{machine.name} has {found}"] if found else []
        for machine in self.cluster.storage_machines:
            volumes = set(machine.run(LEFT_IN_LVM).stdout.split()) - {"thinpool"}
            left += [f"{machine.name} has {', '.join(sorted(volumes))}"] if volumes else []
        return "\n".join(one for one in left if one) or None
