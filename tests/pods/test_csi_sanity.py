"""csi-sanity against the controller that keeps its volumes in resources, and a node server beside kubelet."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from aoe_lab.csi_sanity import run_csi_sanity
from aoe_lab.kubernetes.helm import NAMESPACE

if TYPE_CHECKING:
    from aoe_lab.evidence import Evidence
    from aoe_lab.kubernetes.cluster import Cluster

NODE_SOCKET = "/var/lib/kubelet/plugins/aoe-csi.dev/csi.sock"


@pytest.mark.long
@pytest.mark.parametrize(("pool", "access"), [("thin", "mount"), ("thin", "block"), ("thick", "block")])
def test_csi_sanity(cluster: Cluster, evidence: Evidence, pool: str, access: str) -> None:
    """Left out on thick pools: snapshots, which the controller offers for the cluster's thin ones."""
    selector = "app.kubernetes.io/component=controller"
    (pod,) = json.loads(
        cluster.plane.kubectl("get", "pods", f"-n{NAMESPACE}", f"-l{selector}", "-ojson").stdout
    )["items"]  # fmt: skip
    machine = cluster.lab.machine(pod["spec"]["nodeName"])
    controller = f"/var/lib/kubelet/pods/{pod['metadata']['uid']}/volumes/kubernetes.io~empty-dir/socket/csi.sock"
    verdict = run_csi_sanity(
        machine, NODE_SOCKET, controller=controller, pool=pool, access=access,
        leave_out="[Ss]napshot" if pool == "thick" else "", timeout_s=3000,
    )  # fmt: skip
    assert verdict.failed == 0, verdict.output[-8000:]
    assert verdict.passed > 40, verdict.summary
    evidence(f"cluster, {pool} {access}, {machine.name}: {verdict}")
