"""helm upgrade, rollback, uninstall and a new installation under I/O: no export and no device is touched."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from aoe_lab.kubernetes.helm import NAMESPACE, RELEASE

from .writer import Writer, longest_gap_s

if TYPE_CHECKING:
    from collections.abc import Callable

    from aoe_lab.evidence import Evidence
    from aoe_lab.kubernetes.cluster import Cluster
    from aoe_lab.machine import Machine

    from .claims import Claims

QUIET_S = 60.0
SWEPT_S = 80.0
"""After so long a new storage role has looked for what no resource speaks of."""


def test_releases_come_and_go_under_io(cluster: Cluster, claims: Claims, evidence: Evidence) -> None:
    (storage,), compute = cluster.storage_machines, cluster.compute_machines[0]
    claims.claim("data")
    claims.claim("untouched", storage_class="at-once", size="64Mi")
    writer = Writer.start(claims, "writer", "data", compute.name)
    kept = (exporters(storage), devices(compute))
    (release,) = json.loads(cluster.helm.run("list", "--output=json").stdout)

    def upgrade() -> None:
        cluster.install(log={"format": "json", "level": "debug"})
        cluster.await_ready()

    def roll_back() -> None:
        cluster.helm.run("rollback", RELEASE, str(release["revision"]))
        cluster.await_ready()

    def uninstall() -> None:
        cluster.helm.run("uninstall", RELEASE)
        cluster.await_(lambda: pods(cluster), "our pods to be gone")

    def install_again() -> None:
        cluster.install()
        cluster.await_ready()

    quiet_s = longest_gap_in(writer, lambda: time.sleep(QUIET_S))
    for name, act in (
        ("helm upgrade", upgrade),
        ("helm rollback", roll_back),
        ("helm uninstall", uninstall),
        ("helm install", install_again),
    ):
        gap_s = longest_gap_in(writer, act)
        assert (exporters(storage), devices(compute)) == kept, f"{name} touched the data path"
        evidence(
            f"{name}: longest gap between two fsync'ed records {gap_s / quiet_s:.1f} times that of a quiet minute;"
            " same exporter, same device"
        )
    assert writer.missing() == 0
    assert writer.restarts() == 0
    # What was there before is in use again, and nothing is taken for left over.
    grow = '-p={"spec":{"resources":{"requests":{"storage":"320Mi"}}}}'
    claims.kubectl("patch", "pvc", "data", grow)
    claims.await_(
        "the adopted volume to grow",
        lambda: None if claims.get("pvc", "data")["status"]["capacity"]["storage"] == "320Mi" else "not yet",
    )
    claims.pod("later", "untouched", node=compute.name)
    claims.await_running("later")
    time.sleep(SWEPT_S)
    orphans = cluster.plane.kubectl("get", "aoenodes", "-ojsonpath={.items[*].status.orphans}").stdout
    assert orphans in ("", "[]"), orphans


def longest_gap_in(writer: Writer, act: Callable[[], None]) -> float:
    before = len(writer.times_s())
    act()
    writer.await_more()
    return longest_gap_s(writer.times_s()[before - 1 :])


def exporters(storage: Machine) -> str:
    """Return the exporters' process ids and when they were started, in clock ticks since boot."""
    return storage.run("for p in $(pgrep -x vblade); do echo $p $(cut -d' ' -f22 /proc/$p/stat); done").stdout


def devices(compute: Machine) -> str:
    """Return the AoE devices and their sequence numbers; the kernel gives each new device one of its own."""
    return compute.run("grep -H . /sys/block/etherd*/diskseq").stdout


def pods(cluster: Cluster) -> str | None:
    return cluster.plane.kubectl("get", "pods", f"--namespace={NAMESPACE}", "-o", "name").stdout or None
