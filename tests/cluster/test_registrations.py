"""The cluster role's look at compute nodes: whose node server is there and has not registered with its kubelet."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import prometheus_client
import pytest
import yaml

from aoe_core.resources.kubernetes import KubernetesRegistrations, KubernetesStore
from aoe_lab.kubernetes.helm import NAMESPACE, rendered_manifests
from aoe_operator.registration import REGISTERED_AFTER_S, Registrations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aoe_lab.kubernetes.control_plane import ControlPlane

NODES = ("compute1", "compute2")
LATER_S = 2 * REGISTERED_AFTER_S


def labels_of_the_chart() -> dict[str, str]:
    """Return what the chart's node servers are labelled with."""
    (found,) = (
        one["spec"]["template"]["metadata"]["labels"]
        for one in yaml.safe_load_all(rendered_manifests())
        if one and one["kind"] == "DaemonSet" and one["metadata"]["name"] == "aoe-csi-node"
    )
    return dict(found)


def pod(node: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"server-of-{node}", "namespace": NAMESPACE, "labels": labels_of_the_chart()},
        "spec": {"nodeName": node, "containers": [{"name": "aoe-csi", "image": "none"}]},
    }


def csi_node(node: str) -> dict[str, Any]:
    driver = {"name": "aoe-csi.dev", "nodeID": f"{node}|0000000a|main=525400000115"}
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSINode",
        "metadata": {"name": node},
        "spec": {"drivers": [driver]},
    }


@pytest.fixture
def look(clean: ControlPlane) -> Iterator[Callable[[int], set[str]]]:
    """Two nodes with a node server each. Returns: looks as if so much later, and says whom Prometheus is told of."""
    clean.kubectl("create", "namespace", NAMESPACE)
    nodes = [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}} for node in NODES]
    content = {"apiVersion": "v1", "kind": "List", "items": [*nodes, *map(pod, NODES)]}
    clean.kubectl("create", "-f-", stdin=json.dumps(content))
    registered = KubernetesRegistrations(clean.kubeconfig, NAMESPACE)
    with KubernetesStore(clean.kubeconfig) as store:

        def looked(later_s: int) -> set[str]:
            Registrations(store, registered, lambda: int(time.time()) + later_s).look()
            said = prometheus_client.generate_latest().decode()
            return {node for node in NODES if f'aoe_csi_node_unregistered{{node="{node}"}} 1.0' in said}

        yield looked
    registered.close()
    clean.kubectl("delete", "pods", "--all", f"--namespace={NAMESPACE}", "--force", "--grace-period=0")
    clean.kubectl("delete", "csinodes,nodes", "--all")
    clean.kubectl("delete", "namespace", NAMESPACE, "--timeout=60s", timeout_s=90)


def test_who_does_not_register_is_told_of_until_it_does(clean: ControlPlane, look: Callable[[int], set[str]]) -> None:
    assert look(0) == set()
    assert look(LATER_S) == set(NODES)
    clean.kubectl("create", "-f-", stdin=json.dumps(csi_node("compute1")))
    assert look(LATER_S) == {"compute2"}
    # Who is ready has registered a moment ago, or takes no part.
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    words = ("server-of-compute2", f"--namespace={NAMESPACE}", "--subresource=status", f"-p={json.dumps(ready)}")
    clean.kubectl("patch", "pod", *words)
    assert look(LATER_S) == set()
