"""A volume that no claim made, as docs/kubernetes.md has it: what is tried is what is printed there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.documented import documented

if TYPE_CHECKING:
    from aoe_lab.kubernetes.cluster import Cluster

    from .claims import Claims

SIZE = "64Mi"


def wanted() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the AoEVolume and the PersistentVolume of the docs, of a size and a pool that the lab has."""
    volume, persistent = documented("kubernetes.md", "An AoEVolume by hand")
    assert (volume["kind"], persistent["kind"]) == ("AoEVolume", "PersistentVolume")
    volume["spec"] |= {"size": SIZE, "pool": "thick"}
    persistent["spec"]["capacity"]["storage"] = SIZE
    return volume, persistent


def test_a_volume_that_no_claim_made_serves_one_after_the_other(cluster: Cluster, claims: Claims) -> None:
    plane = cluster.plane
    volume, persistent = wanted()
    name = volume["metadata"]["name"]
    plane.apply(volume)
    first, second, *_ = (machine.name for machine in (*cluster.compute_machines, *cluster.storage_machines))
    for turn, node in enumerate((first, second), 1):
        plane.apply(persistent)
        claims.claim(f"claim{turn}", size=SIZE, storage_class="", volume=name)
        claims.pod(f"user{turn}", f"claim{turn}", node=node)
        claims.await_running(f"user{turn}")
        claims.run(f"user{turn}", f"echo turn {turn} >> /data/file; sync")
        assert claims.run(f"user{turn}", "wc -l < /data/file").stdout.strip() == str(turn)
        if node == second:
            # Deleted by hand too, it waits for its user.
            plane.kubectl("delete", "aoevolume", name, "--wait=false")
            claims.run(f"user{turn}", "echo more >> /data/file; sync")
            assert plane.kubectl("get", "aoevolume", name, "-ojsonpath={.status.grants[*].node}").stdout == node
        claims.delete_pod(f"user{turn}")
        claims.kubectl("delete", "pvc", f"claim{turn}", "--timeout=60s", timeout_s=90)
        plane.kubectl("delete", "pv", name, "--timeout=300s", timeout_s=330)
    plane.kubectl("wait", "--for=delete", f"aoevolume/{name}", "--timeout=600s", timeout_s=630)
