"""Every process of a cluster answers Prometheus with what docs/metrics.md lists, and counts what happens to a claim."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from aoe_lab.cachedir import CHECKOUT
from aoe_lab.kubernetes.helm import NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from aoe_lab.kubernetes.cluster import Cluster

    from .claims import Claims

PORTS = {"controller": "health", "node": "health", "storage": "metrics", "cluster": "metrics"}
"""Component → the port on which its own process answers; guests are no part of this cluster."""
SIDECARS = ("provisioner", "attacher", "resizer", "snapshotter")
ROW = re.compile(r"^\| `(aoe_csi_\w+)` \| \w+ \| [^|]* \| ([^|]*) \|", re.MULTILINE)


def test_every_process_answers_prometheus(cluster: Cluster, claims: Claims) -> None:
    for component, port in PORTS.items():
        (listed, *_) = scraped(cluster, component, port).values()
        assert documented(component) <= listed.keys(), component
    for sidecar in SIDECARS:
        (listed,) = scraped(cluster, "controller", sidecar).values()
        assert "csi_sidecar_operations_seconds" in listed, sidecar

    node = cluster.compute_machines[0].name
    claims.claim("data")
    claims.pod("user", "data", node=node)
    claims.await_running("user")
    (storage,) = cluster.storage_machines

    def missing() -> str | None:
        there = {
            "volumes": value(cluster, "storage", storage.name, "aoe_csi_volumes"),
            "exports": value(cluster, "storage", storage.name, "aoe_csi_exports"),
            "grants": value(cluster, "storage", storage.name, "aoe_csi_grants"),
            "staged": value(cluster, "node", node, "aoe_csi_staged_volumes"),
        }
        return None if set(there.values()) == {1.0} else str(there)

    claims.await_("one volume, one export, one grant and one stage record to be told", missing, 180)
    staged = {"method": "NodeStageVolume", "code": "OK"}
    assert value(cluster, "node", node, "aoe_csi_call_seconds_count", **staged) >= 1


def documented(component: str) -> set[str]:
    """Return the metrics that the docs say a component has."""
    rows = ROW.findall((CHECKOUT / "docs" / "metrics.md").read_text())
    named = {name for name, of in rows if component in of.split(", ")}
    assert named, component
    return named


def scraped(cluster: Cluster, component: str, port: str) -> dict[str, dict[str, Metric]]:
    """Return node → metric's name → metric, of a component's pods at a port that they name."""
    return {node: {one.name: one for one in families} for node, families in _scrape(cluster, component, port)}


def _scrape(cluster: Cluster, component: str, port: str) -> Iterator[tuple[str, list[Metric]]]:
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
        yield machine.name, list(text_string_to_metric_families(said))


def value(cluster: Cluster, component: str, node: str, sample: str, **labels: str) -> float:
    """Return a sample that a component's own process on a node tells; nan while it tells none."""
    families = scraped(cluster, component, PORTS[component])[node].values()
    found = [
        one.value
        for family in families
        for one in family.samples
        if one.name == sample and labels.items() <= one.labels.items()
    ]
    return found[0] if found else float("nan")
