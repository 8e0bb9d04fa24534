"""Every process of a cluster answers Prometheus with what docs/metrics.md lists, and counts what happens to a claim."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from aoe_lab.cachedir import CHECKOUT
from aoe_lab.kubernetes.helm import NAMESPACE

if TYPE_CHECKING:
    from prometheus_client import Metric

    from aoe_lab.kubernetes.cluster import Cluster

    from .claims import Claims

PORTS = {"controller": "health", "node": "health", "storage": "metrics", "cluster": "metrics"}
"""Component → the port on which its own process answers; guests are no part of this cluster."""
SIDECARS = ("provisioner", "attacher", "resizer", "snapshotter")
ROW = re.compile(r"^\| `(aoe_csi_\w+)` \| \w+ \| [^|]* \| ([^|]*) \|", re.MULTILINE)


def test_every_process_answers_prometheus(cluster: Cluster, claims: Claims) -> None:
    for component, port in PORTS.items():
        for node, listed in scraped(cluster, component, port).items():
            assert documented(component) <= listed.keys(), (component, node)
    for sidecar in SIDECARS:
        (listed,) = scraped(cluster, "controller", sidecar).values()
        assert "csi_sidecar_operations_seconds" in listed, sidecar

    node = cluster.compute_machines[0].name
    claims.claim("data")
    claims.pod("user", "data", node=node)
    claims.await_running("user")
    (storage,) = cluster.storage_machines

    def missing() -> str | None:
        serving = scraped(cluster, "storage", PORTS["storage"])[storage.name]
        using = scraped(cluster, "node", PORTS["node"])[node]
        there = {name: value(serving, name) for name in ("aoe_csi_volumes", "aoe_csi_exports", "aoe_csi_grants")}
        there["aoe_csi_staged_volumes"] = value(using, "aoe_csi_staged_volumes")
        return None if set(there.values()) == {1.0} else str(there)

    claims.await_("one volume, one export, one grant and one stage record to be told", missing, 180)
    using = scraped(cluster, "node", PORTS["node"])[node]
    assert value(using, "aoe_csi_call_seconds", "_count", method="NodeStageVolume", code="OK") >= 1


def documented(component: str) -> set[str]:
    """Return the metrics that the docs say a component has."""
    rows = ROW.findall((CHECKOUT / "docs" / "metrics.md").read_text())
    named = {name for name, of in rows if component in of.split(", ")}
    assert named, component
    return named


def scraped(cluster: Cluster, component: str, port: str) -> dict[str, dict[str, Metric]]:
    """Return node → metric's name → metric, of a component's pods at a port that they name."""
    found = {}
    chosen = (f"-n{NAMESPACE}", f"--selector=app.kubernetes.io/component={component}", "-ojson")
    for pod in json.loads(cluster.plane.kubectl("get", "pods", *chosen).stdout)["items"]:
        containers = (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"])
        (number,) = (
            one["containerPort"] for each in containers for one in each.get("ports", ()) if one["name"] == port
        )
        # Without a PodMonitor they are on the machine's loopback.
        address = "127.0.0.1" if pod["spec"].get("hostNetwork") else pod["status"]["podIP"]
        machine = cluster.lab.machine(pod["spec"]["nodeName"])
        said = machine.run(["busybox", "wget", "-q", "-O-", f"http://{address}:{number}/metrics"]).stdout
        found[machine.name] = {one.name: one for one in text_string_to_metric_families(said)}
    return found


def value(metrics: dict[str, Metric], name: str, suffix: str = "", **labels: str) -> float:
    """Return a metric's sample; nan while it has none."""
    found = [
        one.value for one in metrics[name].samples if one.name == name + suffix and labels.items() <= one.labels.items()
    ]
    return found[0] if found else float("nan")
