"""From a claim to a pod that has written, through the sudden death of its storage machine, to nothing left."""

from aoe_lab.kubernetes.cluster import Cluster
from aoe_lab.patience import OUTLASTING_DEADSECS, deadsecs

from .claims import Claims


def test_a_pod_s_data_outlives_its_storage_machine(cluster: Cluster, claims: Claims) -> None:
    claims.claim("data")
    node = cluster.compute_machines[0].name
    claims.pod("writer", "data", node=node)
    claims.await_running("writer")
    claims.run("writer", "echo kept > /data/file; sync")
    (storage,) = cluster.storage_machines
    with deadsecs(cluster.compute_machines[0], OUTLASTING_DEADSECS):
        storage.power_cut()
        storage.boot()
        storage.wait_ready()
        written = claims.run("writer", "cat /data/file; echo more >> /data/file; sync; cat /data/file").stdout.split()
    assert written == ["kept", "kept", "more"]
    claims.delete_pod("writer")
    claims.pod("reader", "data", node=node)
    claims.await_running("reader")
    assert claims.run("reader", "cat /data/file").stdout.split() == ["kept", "more"]
