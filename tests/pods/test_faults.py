"""What happens to a pod's data when machines, links and the API server fail under it.

Each pod writes fsync'ed records and notes the last one that was acknowledged.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from .claims import Claims, sleeping

if TYPE_CHECKING:
    from collections.abc import Callable

    from aoe_lab.kubernetes.cluster import Cluster
    from aoe_lab.machine import Machine

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"


def writing(claims: Claims, name: str, claim: str, node: str) -> None:
    """Make a pod that appends records with its name to /data/log, one after the other."""
    loop = (
        f"i=0; while true; do i=$((i+1)); echo {name} $i | dd of=/data/log oflag=append conv=notrunc,fsync status=none"
        " && echo $i > /tmp/acknowledged; done"
    )
    spec: dict[str, Any] = sleeping({"volumeMounts": [{"name": "data", "mountPath": "/data"}]})
    spec["containers"][0]["command"] = ["sh", "-c", loop]
    claims.pod(name, claim, node=node, containers=spec["containers"])
    claims.await_running(name)
    claims.await_(f"records of {name}", lambda: None if acknowledged(claims, name) > 3 else "none yet")


def acknowledged(claims: Claims, name: str) -> int:
    return int(claims.run(name, "cat /tmp/acknowledged 2>/dev/null || echo 0", check=False).stdout.strip() or 0)


def records(claims: Claims, pod: str, name: str) -> int:
    """Return how many records of one writer a pod sees."""
    return int(claims.run(pod, f"grep -c '^{name} ' /data/log || true").stdout)


def test_a_storage_machine_that_reboots_is_waited_for(cluster: Cluster, claims: Claims) -> None:
    (storage,) = cluster.storage_machines
    claims.claim("data", storage_class="thick")
    writing(claims, "writer", "data", cluster.compute_machines[0].name)
    storage.reboot()
    before = acknowledged(claims, "writer")
    claims.await_("the writer to go on", lambda: None if acknowledged(claims, "writer") > before + 3 else "it waits")
    assert records(claims, "writer", "writer") >= before
    cluster.await_ready()


@pytest.mark.parametrize("fate", ["paused", "cut-from-management"])
def test_a_lost_node_s_writer_is_fenced(cluster: Cluster, claims: Claims, fate: str) -> None:
    """Cut from management, it writes on over the SAN until its grant is revoked; paused, it wakes up and tries."""
    lost, other = cluster.compute_machines
    lose, regain = losing(lost, fate)
    claims.claim("data", storage_class="thick")
    writing(claims, "lost", "data", lost.name)
    before = acknowledged(claims, "lost")
    lose()
    try:
        cluster.await_(lambda: None if not_ready(cluster, lost) else "it is Ready", f"{lost.name} to be missed", 300)
        cluster.plane.kubectl("taint", "node", lost.name, OUT_OF_SERVICE)
        claims.kubectl("delete", "pod", "lost", "--force", "--grace-period=0", "--wait=false")
        writing(claims, "next", "data", other.name)
        taken = records(claims, "next", "lost")
        # It wrote on unseen, unless it was paused.
        assert taken > before if fate == "cut-from-management" else taken >= before
        begin = acknowledged(claims, "next")
        claims.await_("the next one's records", lambda: None if acknowledged(claims, "next") > begin + 20 else "few")
    finally:
        regain()
        cluster.plane.kubectl("taint", "node", lost.name, f"{OUT_OF_SERVICE}-", check=False)
    cluster.await_(lambda: "not Ready" if not_ready(cluster, lost) else None, f"{lost.name} to be back", 300)
    cluster.await_(lambda: still_has(lost), f"{lost.name} to let go of the volume", 400)
    other.run("echo 3 > /proc/sys/vm/drop_caches")
    assert records(claims, "next", "lost") == taken
    assert records(claims, "next", "next") >= acknowledged(claims, "next") - 1
    volume = claims.volume_of("data")
    claims.delete_pod("next")
    (storage,) = cluster.storage_machines
    cluster.await_(lambda: exported(storage, volume), "the export to end")
    checked = storage.run(f"e2fsck -fn /dev/data/{logical_volume(storage, volume)}", check=False)
    assert checked.code == 0, checked.stdout


def test_without_an_api_server_for_two_minutes_nothing_stops(cluster: Cluster, claims: Claims) -> None:
    claims.claim("data")
    writing(claims, "writer", "data", cluster.compute_machines[0].name)
    cluster.plane.signal("kube-apiserver", signal.SIGSTOP)
    try:
        time.sleep(120)
    finally:
        cluster.plane.signal("kube-apiserver", signal.SIGCONT)
    before = acknowledged(claims, "writer")
    claims.await_("the writer to go on", lambda: None if acknowledged(claims, "writer") > before + 3 else "it waits")
    restarts = claims.get("pod", "writer")["status"]["containerStatuses"][0]["restartCount"]
    assert restarts == 0
    claims.claim("after")
    claims.pod("after", "after")
    claims.await_running("after")
    cluster.await_ready()


def losing(machine: Machine, fate: str) -> tuple[Callable[[], None], Callable[[], None]]:
    if fate == "paused":
        return machine.pause, machine.resume
    return machine.management_down, machine.management_up


def not_ready(cluster: Cluster, machine: Machine) -> bool:
    path = "-ojsonpath={.status.conditions[?(@.type=='Ready')].status}"
    return cluster.plane.kubectl("get", "node", machine.name, path).stdout != "True"


def still_has(machine: Machine) -> str | None:
    found = machine.run("ls /var/lib/aoe-csi/staged /dev/etherd 2>/dev/null | grep -E '^(pvc|e[0-9])'", check=False)
    return found.stdout or None


def exported(storage: Machine, volume: str) -> str | None:
    return storage.run(f"pgrep -af 'vblade.*{volume}'", check=False).stdout or None


def logical_volume(storage: Machine, volume: str) -> str:
    (name,) = storage.run(f"lvs --noheadings -o lv_name data | grep {volume}").stdout.split()
    return name
