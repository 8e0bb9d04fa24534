"""What happens to a pod's data when machines, links and the API server fail under it."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from aoe_lab.kubernetes.helm import NAMESPACE

from .writer import Writer, longest_gap_s

if TYPE_CHECKING:
    from collections.abc import Callable

    from aoe_lab.kubernetes.cluster import Cluster
    from aoe_lab.machine import Machine

    from .claims import Claims

LEADERS = ("aoe-csi-dev", "external-attacher-leader-aoe-csi-dev")
"""Leases of the external-provisioner and the external-attacher."""
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"


def test_a_storage_machine_that_reboots_or_loses_power_is_waited_for(cluster: Cluster, claims: Claims) -> None:
    (storage,) = cluster.storage_machines
    claims.claim("data", storage_class="thick")
    writer = Writer.start(claims, "writer", "data", cluster.compute_machines[0].name)
    for fail in (storage.reboot, lambda: lose_power(storage)):
        fail()
        writer.await_more()
        assert writer.missing() == 0
    assert writer.restarts() == 0
    cluster.await_ready()


def lose_power(machine: Machine) -> None:
    """Cut a machine's power, with what its disks' caches hold, and start it again."""
    machine.power_cut()
    machine.boot()
    machine.wait_ready()


@pytest.mark.parametrize("fate", ["paused", "cut-from-management"])
def test_a_lost_node_s_writer_is_fenced(cluster: Cluster, claims: Claims, fate: str) -> None:
    """Cut from management, it writes on over the SAN until its grant is revoked; paused, it wakes up and tries."""
    other, lost = cluster.compute_machines  # The first one has the controllers.
    lose, regain = losing(lost, fate)
    claims.claim("data", storage_class="thick")
    first = Writer.start(claims, "lost", "data", lost.name)
    before = first.acknowledged()
    lose()
    try:
        cluster.await_(lambda: None if not_ready(cluster, lost) else "it is Ready", f"{lost.name} to be missed", 300)
        cluster.plane.kubectl("taint", "node", lost.name, OUT_OF_SERVICE)
        claims.kubectl("delete", "pod", "lost", "--force", "--grace-period=0", "--wait=false")
        second = Writer.start(claims, "next", "data", other.name)
        taken = first.seen_by("next")
        # It wrote on unseen, unless it was paused.
        assert taken > before if fate == "cut-from-management" else taken >= before
        second.await_more(20)
    finally:
        regain()
        cluster.plane.kubectl("taint", "node", lost.name, f"{OUT_OF_SERVICE}-", check=False)
    cluster.await_(lambda: "not Ready" if not_ready(cluster, lost) else None, f"{lost.name} to be back", 300)
    cluster.await_(lambda: still_has(lost), f"{lost.name} to let go of the volume", 400)
    other.drop_caches()
    assert first.seen_by("next") == taken
    assert second.missing() == 0
    written = second.acknowledged()
    volume = claims.volume_of("data")
    claims.delete_pod("next")
    # Back on the node that was lost, where the volume's old device was: it has what was written elsewhere meanwhile.
    third = Writer.start(claims, "again", "data", lost.name)
    assert first.seen_by("again") == taken
    assert second.seen_by("again") >= written
    assert third.missing() == 0
    claims.delete_pod("again")
    (storage,) = cluster.storage_machines
    cluster.await_(lambda: exported(storage, volume), "the export to end")
    checked = storage.run(f"e2fsck -fn /dev/data/{logical_volume(storage, volume)}", check=False)
    assert checked.code == 0, checked.stdout


def test_without_an_api_server_for_two_minutes_nothing_stops(cluster: Cluster, claims: Claims) -> None:
    claims.claim("data")
    writer = Writer.start(claims, "writer", "data", cluster.compute_machines[0].name)
    compute = cluster.compute_machines[0]
    cluster.plane.signal("kube-apiserver", signal.SIGSTOP)
    try:
        begin_s = uptime_s(compute)
        time.sleep(120)
        end_s = uptime_s(compute)
    finally:
        cluster.plane.signal("kube-apiserver", signal.SIGCONT)
    writer.await_more()
    meanwhile = [at_s for at_s in writer.times_s() if begin_s < at_s < end_s]
    assert longest_gap_s((begin_s, *meanwhile, end_s)) < 60, "the writer stood still while the API server was away"
    assert writer.missing() == 0
    assert writer.restarts() == 0
    claims.claim("after")
    claims.pod("after", "after")
    claims.await_running("after")
    cluster.await_ready()


def test_a_second_storage_role_of_a_node_gives_out_nothing(cluster: Cluster, claims: Claims) -> None:
    """As when a pod that was deleted by force lives on beside its successor, or the other way about."""
    (storage,) = cluster.storage_machines
    chosen = ("--selector=app.kubernetes.io/component=storage", "-ojsonpath={.items[0].metadata.name}")
    pod = cluster.plane.kubectl("get", "pods", f"-n{NAMESPACE}", *chosen).stdout
    role = ("aoe-operator", "storage", f"--node={storage.name}", f"--namespace={NAMESPACE}", "--enter-host")
    second = cluster.plane.kubectl("exec", f"-n{NAMESPACE}", pod, "--", *role, check=False, timeout_s=300)
    assert second.code != 0
    assert "given out by another process" in second.stderr, second.stderr
    claims.claim("data")
    claims.pod("user", "data")
    claims.await_running("user")


def test_the_controller_that_stands_by_takes_over(cluster: Cluster, claims: Claims) -> None:
    """As many of them as the chart has unless it is told otherwise; the lab does with one, to save its processors."""
    controller = ("deployment/aoe-csi-controller", f"-n{NAMESPACE}")
    cluster.plane.kubectl("scale", *controller, "--replicas=2")
    try:
        cluster.await_ready()
        before = {lease: leader(cluster, lease) for lease in LEADERS}
        lost = before[LEADERS[0]]
        claims.claim("data", storage_class="at-once")
        cluster.plane.kubectl("delete", "pod", lost, f"-n{NAMESPACE}", "--force", "--grace-period=0")
        claims.pod("user", "data")
        claims.await_running("user")
        now = {lease: leader(cluster, lease) for lease in LEADERS}
        assert lost not in now.values(), (before, now)
        claims.delete_pod("user")
        claims.kubectl("delete", "pvc", "data", "--timeout=300s", timeout_s=330)
    finally:
        cluster.plane.kubectl("scale", *controller, "--replicas=1")
        cluster.await_ready()


def leader(cluster: Cluster, lease: str) -> str:
    """Return the pod whose sidecar holds a lease."""
    return cluster.plane.kubectl("get", "lease", lease, f"-n{NAMESPACE}", "-ojsonpath={.spec.holderIdentity}").stdout


def uptime_s(machine: Machine) -> float:
    return float(machine.run("cat /proc/uptime").stdout.split()[0])


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
    of_volume = (
        f"cd /var/lib/aoe-csi/exports; grep -lx 'VOLUME={volume}' * | xargs -r grep -lE '^STATE=(live|revoking)'"
    )
    return storage.run(of_volume, check=False).stdout or None


def logical_volume(storage: Machine, volume: str) -> str:
    (name,) = storage.run(f"lvs --noheadings -o lv_name data | grep {volume}").stdout.split()
    return name
