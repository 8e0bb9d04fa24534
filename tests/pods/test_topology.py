"""Two SANs: `main` has every node, `second` all but the first compute machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aoe_lab.kubernetes.cluster import Cluster

    from .claims import Claims

KEY = "san.aoe-csi.dev/"


@pytest.fixture
def second_only(cluster: Cluster) -> Iterator[str]:
    """A class whose volumes are reached over `second`."""
    content: dict[str, Any] = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "second-only"},
        "provisioner": "aoe-csi.dev",
        "parameters": {"pool": "thin", "san": "second"},
        "volumeBindingMode": "WaitForFirstConsumer",
    }
    cluster.plane.kubectl("apply", "-f", "-", stdin=json.dumps(content))
    yield "second-only"
    cluster.plane.kubectl("delete", "storageclass", "second-only")


def test_nodes_have_the_labels_of_their_sans(cluster: Cluster) -> None:
    items = json.loads(cluster.plane.kubectl("get", "nodes", "-ojson").stdout)["items"]
    there = {
        one["metadata"]["name"]: {key for key in one["metadata"]["labels"] if key.startswith(KEY)} for one in items
    }
    first, *others = (machine.name for machine in cluster.compute_machines)
    assert there[first] == {f"{KEY}main"}
    for name in (*others, *(machine.name for machine in cluster.storage_machines)):
        assert there[name] == {f"{KEY}main", f"{KEY}second"}


def test_a_claim_s_san_chooses_its_pod_s_node(cluster: Cluster, claims: Claims, second_only: str) -> None:
    """And a pod that must be elsewhere waits, and says why."""
    first, second = cluster.compute_machines
    (storage,) = cluster.storage_machines
    claims.claim("data", storage_class=second_only, size="64Mi")
    not_storage = {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": [storage.name]}]}]}  # fmt: skip
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": not_storage}}
    claims.pod("user", "data", affinity=affinity)
    claims.await_running("user")
    assert claims.get("pod", "user")["spec"]["nodeName"] == second.name
    volume = json.loads(
        cluster.plane.kubectl("get", "pv", claims.get("pvc", "data")["spec"]["volumeName"], "-ojson").stdout
    )
    (term,) = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
    assert [one["key"] for one in term["matchExpressions"]] == [f"{KEY}second"]
    exporter = storage.run("pgrep -ax vblade").stdout
    assert storage.san_interface("second") in exporter.split(), exporter
    # By now the scheduler knows of the class's room; it is the node that has none.
    claims.claim("waits", storage_class=second_only, size="64Mi")
    claims.pod("elsewhere", "waits", node=first.name)
    claims.await_event("elsewhere", "did not have enough free storage")
    assert claims.get("pvc", "waits")["status"]["phase"] == "Pending"
    claims.delete_pod("elsewhere")
    claims.pod("there", "waits", node=second.name)
    claims.await_running("there")


def test_a_pod_of_one_san_gets_its_volume_over_that(cluster: Cluster, claims: Claims) -> None:
    """Of a storage machine on both, and each in turn: the grant goes over what storage and compute node share."""
    first, second = cluster.compute_machines
    (storage,) = cluster.storage_machines
    claims.claim("data", size="64Mi")
    claims.pod("user", "data", node=first.name)
    claims.await_running("user")
    claims.run("user", "echo moved > /data/file; sync")
    assert storage.san_interface("main") in storage.run("pgrep -ax vblade").stdout.split()
    claims.delete_pod("user")
    claims.pod("user", "data", node=second.name)
    claims.await_running("user")
    assert claims.run("user", "cat /data/file").stdout == "moved\n"
