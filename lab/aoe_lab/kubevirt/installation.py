"""KubeVirt on a cluster of a lab, installed as its users do: by its own virt-operator.

Owns: what a lab's machines need first, and what KubeVirt is told of emulation. Refuses: parts that nobody here uses;
there is no virtctl, no CDI, and one replica of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aoe_lab import process, progress
from aoe_lab.kubernetes.cluster import Additions
from aoe_lab.kubernetes.kubelet import pod_subnet
from aoe_lab.kubernetes.programs import KUBEVIRT
from aoe_lab.kubevirt.boot_disk import ensure_boot_disk
from aoe_lab.kubevirt.images import ensure_images, manifests, name_of
from aoe_lab.lab import at_once

if TYPE_CHECKING:
    from aoe_lab.kubernetes.cluster import Cluster
    from aoe_lab.machine import Machine

NAMESPACE = "kubevirt"
MEMORY_MIB = 3072
"""Of each machine: KubeVirt's own pods take half of it."""
_VALUES = {
    "kubevirt": {"guestDisks": True},
    "guests": {"access": [{"namespaces": ["*"], "virtualMachines": ["shop-*"]}]},
}
"""Of our chart: what an administrator allows of KubeVirt's machines."""
DEPLOYED_S = 2400.0
"""Its images are there, but virt-operator waits for each component it has started, in emulation."""
WORKER = "node-role.kubernetes.io/worker"
LABELS = ("node-role.kubernetes.io/control-plane=", f"{WORKER}=")
"""virt-operator, virt-api and virt-controller insist on the first."""
FEATURES = ("DeclarativeHotplugVolumes", "ExpandDisks")


def additions() -> Additions:
    """Return what a cluster's machines need for KubeVirt and its guests, built if the cache lacks it (minutes)."""
    images = ensure_images()
    return Additions(
        images=images.archives,
        tags=images.tags,
        binaries=(ensure_boot_disk(),),
        memory_mib=MEMORY_MIB,
        values=_VALUES,
        has_guests=True,
    )


def install(cluster: Cluster) -> None:
    """Install KubeVirt and wait until it is Deployed and each compute machine may run guests. Raises: LabError."""
    at_once(_prepare, cluster.compute_machines)
    _route_pods(cluster)
    for machine in cluster.compute_machines:
        cluster.plane.kubectl("label", "node", machine.name, *LABELS, "--overwrite")
    with progress.step(f"installing KubeVirt {KUBEVIRT.version}"):
        cluster.plane.apply(*_first())
        for text in manifests(NAMESPACE):
            cluster.plane.kubectl("apply", "--server-side", "-f", "-", stdin=text)
        cluster.plane.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd/kubevirts.kubevirt.io",
                              timeout_s=90)  # fmt: skip
        cluster.plane.apply(_operator(), _wanted())
    cluster.await_(lambda: _missing(cluster), "KubeVirt to be deployed", DEPLOYED_S)


def _prepare(machine: Machine) -> None:
    # An emulated processor that can do all shows virtualisation, too; the node-labeller would try it.
    machine.run("modprobe -r kvm_amd kvm_intel kvm 2>/dev/null; test ! -e /dev/kvm")
    machine.run("modprobe -a vhost_net tun && mount --make-rshared /")


def _route_pods(cluster: Cluster) -> None:
    """Have pods reached from each other's nodes, and from the API server: webhooks, and guests that move."""
    for machine in cluster.lab.machines:
        route = ["ip", "route", "replace", pod_subnet(machine), "via", machine.spec.address]
        process.run([*cluster.lab.network.enter, *route], timeout_s=30)
        for other in cluster.lab.machines:
            if other is not machine:
                other.run(route)


def _first() -> tuple[dict[str, Any], ...]:
    labels = {"kubevirt.io": "", "pod-security.kubernetes.io/enforce": "privileged"}
    return (
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}},
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": "kubevirt-cluster-critical"},
            "value": 1_000_000_000,
        },
    )


def _operator() -> dict[str, Any]:
    labels = {"kubevirt.io": "virt-operator", "name": "virt-operator", "prometheus.kubevirt.io": "true"}
    container = {
        "name": "virt-operator",
        "image": name_of("virt-operator"),
        "imagePullPolicy": "IfNotPresent",
        "command": ["virt-operator"],
        "args": ["--port", "8443", "-v", "2"],
        "ports": [{"name": "metrics", "containerPort": 8443}, {"name": "webhooks", "containerPort": 8444}],
        "env": [
            {"name": "VIRT_OPERATOR_IMAGE", "value": name_of("virt-operator")},
            {"name": "KUBEVIRT_VERSION", "value": KUBEVIRT.version},
        ],
        "readinessProbe": {
            "httpGet": {"scheme": "HTTPS", "port": 8443, "path": "/metrics"},
            "initialDelaySeconds": 5,
            "timeoutSeconds": 10,
        },
        "volumeMounts": [
            {"name": "certificates", "mountPath": "/etc/virt-operator/certificates", "readOnly": True},
            {"name": "profile-data", "mountPath": "/profile-data"},
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "virt-operator", "namespace": NAMESPACE, "labels": {"kubevirt.io": "virt-operator"}},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"kubevirt.io": "virt-operator"}},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "priorityClassName": "kubevirt-cluster-critical",
                    "serviceAccountName": "kubevirt-operator",
                    "securityContext": {"runAsNonRoot": True},
                    "containers": [container],
                    "volumes": [
                        {"name": "certificates", "secret": {"secretName": "kubevirt-operator-certs", "optional": True}},
                        {"name": "profile-data", "emptyDir": {}},
                    ],
                },
            },
        },
    }


def _wanted() -> dict[str, Any]:
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "KubeVirt",
        "metadata": {"name": "kubevirt", "namespace": NAMESPACE},
        "spec": {
            "imagePullPolicy": "IfNotPresent",
            "infra": {"replicas": 1},
            # No guest on a storage machine: it would have its disks without the SAN, and its node is cut in tests.
            "workloads": {"nodePlacement": {"nodeSelector": {WORKER: ""}}},
            "configuration": {
                "developerConfiguration": {"useEmulation": True, "featureGates": list(FEATURES)},
                "imagePullPolicy": "IfNotPresent",
            },
        },
    }


def _missing(cluster: Cluster) -> str | None:
    said = cluster.plane.kubectl(
        "get", "kubevirt", "kubevirt", f"--namespace={NAMESPACE}", "--output=jsonpath={.status.phase}", check=False
    )
    if said.stdout != "Deployed":
        return f"KubeVirt is in phase {said.stdout or said.stderr!r}"
    for machine in cluster.compute_machines:
        label = r"--output=jsonpath={.metadata.labels.kubevirt\.io/schedulable}"
        if cluster.plane.kubectl("get", "node", machine.name, label).stdout != "true":
            return f"node {machine.name} takes no guests yet"
    return None
