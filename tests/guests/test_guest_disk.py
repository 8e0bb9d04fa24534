"""AoEGuestDisk on a real cluster: real claims, a real libvirt, and what the guest's own kernel sees and writes.

What the roles do when they are killed between any two steps is swept in tests/simulated; here it is sampled.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from aoe_lab.errors import CommandFailed, CommandTimedOut
from aoe_lab.guest import Guest, devices_on, let_move, records_on
from aoe_lab.kubernetes.helm import NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.guests.guest_disks import GuestDisks
    from tests.pods.claims import Claims

    from aoe_lab.evidence import Evidence
    from aoe_lab.guest import SeenDisk
    from aoe_lab.kubernetes.cluster import Cluster

pytestmark = pytest.mark.long
SIZE, SIZE_BYTES = "64Mi", 64 << 20
GROWN = (("96Mi", 96 << 20), ("128Mi", 128 << 20))
ROUNDS = 20


def await_(holds: Callable[[], bool], what: str, timeout_s: float = 300.0) -> None:
    until = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until, f"waited in vain: {what}"
        time.sleep(1)


def left_over(cluster: Cluster, guest: Guest, serial: str) -> str:
    """Return what is left of a disk on its hypervisor."""
    host = cluster.hypervisors[0]
    left = [records_on(host), devices_on(host)]
    left += ["XML" for text in (guest.xml(), guest.xml(inactive=True)) if serial in text]
    left += ["disk"] if guest.find_disk(serial) else []
    return " ".join(one.strip() for one in left if one.strip())


def await_nothing_left(cluster: Cluster, guest: Guest, disk: SeenDisk) -> None:
    await_(lambda: left_over(cluster, guest, disk.serial) == "", "nothing to be left")


def block_claim(claims: Claims) -> None:
    claims.claim("data", size=SIZE, storage_class="thick", block=True)


def test_a_claim_that_nobody_used_yet_becomes_a_disk_of_a_running_guest(
    cluster: Cluster, claims: Claims, disks: GuestDisks, guest: Guest, evidence: Evidence
) -> None:
    """WaitForFirstConsumer: the guest's host is the first consumer."""
    block_claim(claims)
    began = time.monotonic()
    disk = disks.attached("d", "data", guest)
    took_s = time.monotonic() - began
    assert (disk.size_bytes, disk.read_only) == (SIZE_BYTES, False)
    assert f"of domain {guest.name}" in disks.await_said("d", "Attached", "True")
    assert guest.write(disk.name, "first", 3)
    # On the storage machine's own device, past every cache of the hypervisor.
    volume = claims.volume_of("data")
    block = cluster.storage_machines[0].run(
        f"dd if=/dev/data/v-{volume} bs=4096 skip=3 count=1 iflag=direct status=none"
    )
    assert block.stdout.startswith("first 3\nfirst 3\n")
    shown = claims.kubectl("get", "aoeguestdisks").stdout.splitlines()
    assert shown[1].split()[:4] == ["d", "True", "data", f"{cluster.hypervisors[0].name}/{guest.name}"]
    # The claim waits for its guest.
    claims.kubectl("delete", "pvc", "data", "--wait=false")
    assert claims.get("pvc", "data")["metadata"]["deletionTimestamp"]
    assert guest.holds(disk.name, "first", 3)
    began = time.monotonic()
    disks.detach("d")
    detached_s = time.monotonic() - began
    await_nothing_left(cluster, guest, disk)
    evidence(
        f"from kubectl apply to the guest's kernel {took_s:.1f} s, with the claim bound for it; detached after "
        f"{detached_s:.1f} s, nothing left"
    )


def test_rounds_leak_nothing(
    cluster: Cluster, claims: Claims, disks: GuestDisks, guest: Guest, evidence: Evidence
) -> None:
    block_claim(claims)
    for number in range(ROUNDS):
        disk = disks.attached(f"d{number}", "data", guest)
        if number:
            assert guest.holds(disk.name, f"round-{number - 1}", number - 1)
        assert guest.write(disk.name, f"round-{number}", number)
        disks.detach(f"d{number}")
        await_nothing_left(cluster, guest, disk)
        assert claims.holders("data") == ""
    evidence(f"{ROUNDS} rounds of attach and detach: no device, grant, record, link or XML left")


def test_growth_of_the_claim_is_seen_inside_the_guest(
    claims: Claims, disks: GuestDisks, guest: Guest, evidence: Evidence
) -> None:
    """And again: no kubelet says that the first growth is done."""
    block_claim(claims)
    disk = disks.attached("d", "data", guest)
    for size, size_bytes in GROWN:
        last = size_bytes // 4096 - 1
        assert not guest.write(disk.name, "beyond", last)
        claims.kubectl("patch", "pvc", "data", f'-p={{"spec":{{"resources":{{"requests":{{"storage":"{size}"}}}}}}}}')
        guest.await_disk(disk.serial, size_bytes=size_bytes, timeout_s=300)
        assert guest.write(disk.name, "beyond", last)
        assert guest.holds(disk.name, "beyond", last)
        await_(
            lambda size=size: claims.get("pvc", "data")["status"]["capacity"]["storage"] == size,  # type: ignore[misc]
            f"the claim to have {size}",
        )
    sizes = " and ".join(size for size, _ in GROWN)
    evidence(f"a claim grown from {SIZE} to {sizes} under a running guest, which wrote each new end")


def test_a_storage_power_cut_under_a_guest_s_writes_stalls_it_and_loses_nothing(
    cluster: Cluster, claims: Claims, disks: GuestDisks, guest: Guest, evidence: Evidence
) -> None:
    block_claim(claims)
    disk, storage = disks.attached("d", "data", guest), cluster.storage_machines[0]
    guest.start_writer(disk.name, "cut")
    guest.await_acknowledged(10)
    storage.power_cut()
    before = guest.stalled_at()
    storage.boot()
    storage.wait_ready()
    guest.await_acknowledged(before + 10)
    assert guest.state() == "running"
    last = guest.stop_writer()
    assert guest.wrong(disk.name, "cut", last) == 0
    assert guest.wrong(disk.name, "another-salt", 3) == 4, "the check finds nothing wrong with anything"
    evidence(f"storage power cut under a guest's writes: {last + 1} acknowledged blocks, none lost, no I/O error")
    cluster.await_ready()


def test_what_may_not_be_is_refused_with_a_remedy(claims: Claims, disks: GuestDisks, guest: Guest) -> None:
    block_claim(claims)
    # A file system is a pod's, and another namespace's claim has no name here.
    claims.claim("files", size=SIZE, storage_class="thick")
    said = claims.kubectl("apply", "-f-", check=False, stdin=(
        '{"apiVersion": "aoe-csi.dev/v1alpha1", "kind": "AoEGuestDisk", "metadata": {"name": "d"},'
        '"spec": {"claim": "other/data", "libvirt": {"host": "h", "domain": "g1"}}}'
    ))  # fmt: skip
    assert said.code != 0
    assert "spec.claim" in said.stderr
    for name, claim, domain, type_, words in (
        ("forbidden", "data", "db", "Granted", "guests.access"),
        ("missing", "data", "g9", "Attached", "look at virsh list"),
        ("nothing", "nothing", guest.name, "Granted", "does not exist"),
        ("files", "files", guest.name, "Granted", "volumeMode: Block"),
    ):
        disks.attach(name, claim, domain)
        assert words in disks.await_said(name, type_, "False")
        disks.detach(name)
    disks.attach("nowhere", "data", guest.name, host="hypervisor9")
    assert "is no compute node" in disks.await_said("nowhere", "Granted", "False")
    disks.detach("nowhere")


def test_a_pod_and_a_guest_have_a_claim_one_after_the_other(
    cluster: Cluster, claims: Claims, disks: GuestDisks, guest: Guest, evidence: Evidence
) -> None:
    block_claim(claims)
    node = cluster.storage_machines[0].name
    claims.pod("first", "data", block=True, node=node)
    claims.await_running("first")
    disks.attach("d", "data", guest.name)
    assert "remove the pods that use it" in disks.await_said("d", "Granted", "False")
    claims.delete_pod("first")
    assert guest.write(disks.await_attached("d", guest).name, "guest", 0)
    for place in (node, cluster.hypervisors[0].name):
        claims.pod(f"on-{place}", "data", block=True, node=place)
        # Whose turn it is to be refused is drawn by lot, and the waits between grow to two minutes.
        claims.await_event(f"on-{place}", "delete that AoEGuestDisk", timeout_s=600)
    # Else the two would race for it.
    claims.delete_pod(f"on-{cluster.hypervisors[0].name}")
    disks.detach("d")
    claims.await_running(f"on-{node}")
    read = claims.run(f"on-{node}", "dd if=/dev/data bs=4096 count=1 2>/dev/null | head -n 1").stdout
    assert read == "guest 0\n"
    claims.kubectl("delete", "pods", "--all", "--timeout=300s", timeout_s=330)
    evidence("a claim that a pod has is refused to a guest, and the other way round, on its own node too")


def test_roles_killed_while_a_disk_comes_and_goes(
    cluster: Cluster, claims: Claims, disks: GuestDisks, guest: Guest, evidence: Evidence
) -> None:
    block_claim(claims)
    killed = 0
    found: list[str] = []
    for delay_s in (0.5, 2.0, 4.0, 8.0):
        cluster.await_ready()
        disks.attach("d", "data", guest.name)
        time.sleep(delay_s)
        killed += kill_both_roles(cluster)
        found.append(f"attach {delay_s:g} s: {how_far(claims)}")
        disk = disks.await_attached("d", guest, timeout_s=600)
        cluster.await_ready()
        claims.kubectl("delete", "aoeguestdisk", "d", "--wait=false")
        time.sleep(delay_s)
        killed += kill_both_roles(cluster)
        found.append(f"detach {delay_s:g} s: {how_far(claims)}")
        disks.detach("d", timeout_s=600)
        await_nothing_left(cluster, guest, disk)
    cluster.await_ready()
    evidence(
        f"{killed} processes of the roles killed while a disk came and went: attached, and gone with nothing left;"
        f" how far it had come: {', '.join(found)}"
    )


def kill_both_roles(cluster: Cluster) -> int:
    """Kill the guests role's process and the cluster role's; return how many there were.

    Their pods go, too: kubelet waits longer before each further start of the same one.
    """
    killed = [
        int(machine.run("pkill -KILL -c -f 'aoe-operator (guests|cluster)' || true").stdout.strip() or 0)
        for machine in (cluster.control, *cluster.hypervisors)
    ]
    assert all(killed), "a role was not there to be killed"
    # Until they are gone: who then waits for the roles is not shown the former ones.
    chosen = "--selector=app.kubernetes.io/component in (guests,cluster)"
    cluster.plane.kubectl("delete", "pods", f"--namespace={NAMESPACE}", chosen, "--timeout=120s", timeout_s=150)
    return sum(killed)


def how_far(claims: Claims) -> str:
    """Return which conditions of the disk hold, or that it is gone."""
    words = ("get", "aoeguestdisk", "d", "--ignore-not-found", "-ojson")
    said = claims.kubectl(*words).stdout
    conditions = json.loads(said).get("status", {}).get("conditions", []) if said else []
    held = "+".join(one["type"] for one in conditions if one["status"] == "True")
    return held or ("nothing yet" if said else "gone")


def test_a_guest_that_does_not_listen_keeps_its_disk(
    cluster: Cluster, claims: Claims, disks: GuestDisks, guest: Guest
) -> None:
    block_claim(claims)
    disk = disks.attached("d", "data", guest)
    assert guest.write(disk.name, "kept", 0)
    host = cluster.hypervisors[0]

    def trouble() -> str:
        """What the host says after the guest was asked, and did not let go."""
        (entry,) = claims.get("aoeguestdisk", "d")["status"]["hosts"]
        return str(entry.get("trouble", ""))

    host.run(["virsh", "suspend", guest.name])
    try:
        claims.kubectl("delete", "aoeguestdisk", "d", "--wait=false")
        claims.await_("the host to say what it waits for", lambda: None if trouble() else "nothing is said", 600)
        assert "has not let go" in disks.await_said("d", "Released", "False")
        assert disk.serial in guest.xml()
        assert devices_on(host)
    finally:
        host.run(["virsh", "resume", guest.name])
    disks.detach("d")
    await_nothing_left(cluster, guest, disk)


def is_running(guest: Guest) -> bool:
    """Ask a libvirt that may not be there yet, or starts its guests before it answers."""
    try:
        return "running" in guest.machine.run(["virsh", "domstate", guest.name], check=False, timeout_s=300).stdout
    except CommandTimedOut:
        return False


def test_a_host_that_loses_power_has_its_guests_back(
    cluster: Cluster, claims: Claims, disks: GuestDisks, guest: Guest, evidence: Evidence
) -> None:
    """libvirt comes before our pod does, and starts no guest whose device is missing; the role starts it then."""
    block_claim(claims)
    disk, host = disks.attached("d", "data", guest), cluster.hypervisors[0]
    assert guest.write(disk.name, "before", 0)
    host.run(["virsh", "autostart", guest.name])
    try:
        host.run("sync")
        host.power_cut()
        host.boot()
        host.wait_ready()
        await_(lambda: is_running(guest), "the guest to be started", 900)
        guest.await_ready()
        assert guest.holds(guest.await_disk(disk.serial).name, "before", 0)
    finally:
        host.run(["virsh", "autostart", "--disable", guest.name])
    cluster.await_ready()
    evidence("hypervisor's power cut: its guest came up by itself with the volume and what it had written")


def test_pods_of_ours_that_go_take_nothing_from_a_guest(
    cluster: Cluster, claims: Claims, disks: GuestDisks, guest: Guest
) -> None:
    block_claim(claims)
    disk = disks.attached("d", "data", guest)
    before = uids_of_pods(cluster)
    cluster.plane.kubectl("delete", "pods", f"--namespace={NAMESPACE}", "--all", "--wait=false")
    assert guest.write(guest.await_disk(disk.serial).name, "meanwhile", 0)
    await_(lambda: not before & uids_of_pods(cluster), "the former pods to be gone", 600)
    cluster.await_ready()
    assert guest.holds(guest.await_disk(disk.serial).name, "meanwhile", 0)


def uids_of_pods(cluster: Cluster) -> set[str]:
    listed = cluster.plane.kubectl("get", "pods", f"--namespace={NAMESPACE}", "-o=jsonpath={.items[*].metadata.uid}")
    return set(listed.stdout.split())


def test_two_guests_cannot_have_one_claim(
    cluster: Cluster, claims: Claims, disks: GuestDisks, guest: Guest, evidence: Evidence
) -> None:
    """On one host, and on two; also where two hosts may have it, for a guest that moves."""
    claims.claim("data", size=SIZE, storage_class="thick", block=True, mode="ReadWriteMany")
    for number, host in enumerate(cluster.hypervisors):
        other = Guest.define(host, "g2")
        try:
            disk = disks.attached("d", "data", guest)
            assert guest.write(disk.name, "mine", number)
            disks.attach("other", "data", other.name, host=host.name)
            # On one host it is the host that knows of the first one, and the grant is not asked for.
            here = host is guest.machine
            type_, words = ("Attached", f"in domain {guest.name}") if here else ("Granted", "AoEGuestDisk d")
            assert words in disks.await_said("other", type_, "False")
            assert disk.serial not in other.xml(inactive=True)
            assert guest.holds(disk.name, "mine", number)
            # What the first one gives back the second one gets.
            disks.detach("d")
            disks.await_said("other", "Attached", "True")
            assert disk.serial in other.xml(inactive=True)
            disks.detach("other")
        finally:
            other.undefine()
    evidence(
        "two guests, of one host or of two, cannot have one claim; the second one gets what the first one gives back"
    )


def test_a_guest_moves_to_another_host_and_back_while_it_writes(
    cluster: Cluster, claims: Claims, disks: GuestDisks, guest: Guest, evidence: Evidence
) -> None:
    """As docs/guests-kubernetes.md has it."""
    claims.claim("data", size=SIZE, storage_class="thick", block=True, mode="ReadWriteMany")
    here, there = cluster.hypervisors
    let_move(here, there)
    disk = disks.attached("d", "data", guest)
    guest.start_writer(disk.name, "moved")
    guest.await_acknowledged(5)
    # Called off before it began.
    disks.say_where("d", migrateTo=there.name)
    disks.await_said("d", "Migratable", "True")
    disks.say_where("d", migrateTo=None)
    await_(lambda: claims.holders("data") == 2 * here.name, "the other host to let go")
    assert records_on(there) == ""
    guest.await_acknowledged(guest.acknowledged() + 5)
    at = guest
    for source, target in ((here, there), (there, here)):
        disks.say_where("d", migrateTo=target.name)
        assert "virsh migrate" in disks.await_said("d", "Migratable", "True")
        at = at.migrate(target)
        disks.say_where("d", host=target.name, migrateTo=None)
        await_(lambda target=target: claims.holders("data") == 2 * target.name, "the former host to let go")  # type: ignore[misc]
        assert records_on(source) == ""
        await_(lambda source=source: devices_on(source) == "", "the former host's device to go")  # type: ignore[misc]
        at.await_acknowledged(at.acknowledged() + 5)
    last = at.stop_writer()
    assert at.wrong(disk.name, "moved", last) == 0
    disks.detach("d")
    await_nothing_left(cluster, guest, disk)
    evidence(
        f"a guest moved to another host and back while it wrote, after a move that was called off: {last + 1}"
        " acknowledged blocks, none lost"
    )


def test_a_libvirt_that_is_restarted_takes_nothing_from_a_guest(
    cluster: Cluster, claims: Claims, disks: GuestDisks, guest: Guest, evidence: Evidence
) -> None:
    block_claim(claims)
    disk, host = disks.attached("d", "data", guest), guest.machine
    guest.start_writer(disk.name, "libvirt")
    devices = devices_on(host)
    host.run("systemctl restart libvirtd", timeout_s=300)
    guest.await_acknowledged(guest.acknowledged() + 5)
    claims.claim("more", size=SIZE, storage_class="thick", block=True)
    more = disks.attached("more", "more", guest)
    assert guest.write(more.name, "more", 0)
    last = guest.stop_writer()
    assert guest.wrong(disk.name, "libvirt", last) == 0
    assert devices in devices_on(host)
    for name in ("d", "more"):
        disks.detach(name)
    await_nothing_left(cluster, guest, disk)
    evidence("libvirtd restarted under a guest that wrote: another disk came and both went, as ever")


def test_a_guest_that_dies_while_it_gets_a_disk_has_it_when_it_runs_again(
    cluster: Cluster, claims: Claims, disks: GuestDisks, guest: Guest, evidence: Evidence
) -> None:
    block_claim(claims)
    delays_s = (1.0, 3.0, 6.0)
    for delay_s in delays_s:
        disks.attach("d", "data", guest.name)
        time.sleep(delay_s)
        guest.destroy()
        disks.await_said("d", "Attached", "True")
        guest.start()
        disk = disks.await_attached("d", guest)
        assert guest.write(disk.name, f"after-{delay_s:g}", 0)
        disks.detach("d")
        await_nothing_left(cluster, guest, disk)
    evidence(f"a guest destroyed {len(delays_s)} times while it got a disk: it had it when it ran again, nothing left")


def let_go(cluster: Cluster, guest: Guest, volume: str) -> bool:
    """Try once to detach what the cluster knows no more; return whether that was done. Raises: LabError unless what
    kept it from that was that somebody else is at it."""
    try:
        on_host(cluster, guest, "detach", guest.name, volume, "--orphan")
    except CommandFailed as failed:
        if "call again" not in str(failed):
            raise
        return False
    return True


def on_host(cluster: Cluster, guest: Guest, *words: str) -> str:
    """Run `aoe-csi guest` in the pod of a guest's host, as docs/runbooks.md has it; return what it prints."""
    kubectl = cluster.plane.kubectl
    chosen = ("-lapp.kubernetes.io/component=guests", f"--field-selector=spec.nodeName={guest.machine.name}")
    pod = kubectl("get", "pods", f"-n{NAMESPACE}", *chosen, "-oname").stdout.strip()
    here = ("--san-rules", "/etc/aoe-csi-node/sans.toml", "--node-name", guest.machine.name, "--enter-host")
    command = ("exec", f"-n{NAMESPACE}", pod, "--", "aoe-csi", "guest", *words, *here)
    return kubectl(*command, timeout_s=300).stdout


def test_a_host_that_is_lost_for_good_is_given_up_and_keeps_nothing_when_it_returns(
    cluster: Cluster, claims: Claims, disks: GuestDisks, guest: Guest, evidence: Evidence
) -> None:
    block_claim(claims)
    kubectl, host = cluster.plane.kubectl, guest.machine
    disk, volume = disks.attached("d", "data", guest), claims.volume_of("data")
    assert guest.write(disk.name, "lost", 0)
    host.power_cut()
    try:
        kubectl("taint", "node", host.name, "node.kubernetes.io/out-of-service=lost:NoExecute")
        disks.detach("d", timeout_s=600)
        assert claims.holders("data") == ""
        claims.pod("reader", "data", block=True, node=cluster.storage_machines[0].name)
        claims.await_running("reader")
        read = claims.run("reader", "dd if=/dev/data bs=4096 count=1 2>/dev/null | head -n 1").stdout
        assert read == "lost 0\n"
        claims.delete_pod("reader")
    finally:
        host.boot()
        host.wait_ready()
        kubectl("taint", "node", host.name, "node.kubernetes.io/out-of-service-")
    cluster.await_ready()
    # Refused while the role looks once more for the target of what is left, as it does each minute.
    await_(lambda: let_go(cluster, guest, volume), "what is left to be let go of", 600)
    guest.start()
    await_nothing_left(cluster, guest, disk)
    evidence(
        "a hypervisor given up for lost: its grant was revoked, its data was read elsewhere; back again, it let go"
    )


def test_a_guest_keeps_the_disk_whose_definition_goes_until_it_is_cleared_away(
    cluster: Cluster, claims: Claims, disks: GuestDisks, guest: Guest, evidence: Evidence
) -> None:
    """As docs/runbooks.md has it."""
    kubectl, definition = cluster.plane.kubectl, "aoeguestdisks.aoe-csi.dev"
    block_claim(claims)
    disk, volume = disks.attached("d", "data", guest), claims.volume_of("data")
    kubectl("delete", "crd", definition, "--timeout=300s", timeout_s=330)
    assert guest.write(disk.name, "kept", 0)
    assert kubectl("get", "aoevolume", volume, "-ojsonpath={.status.grants[*].node}").stdout == guest.machine.name

    assert volume in on_host(cluster, guest, "list")
    on_host(cluster, guest, "detach", guest.name, volume, "--orphan")
    tickets = '[{"op": "replace", "path": "/spec/tickets", "value": []}]'
    kubectl("patch", "aoevolume", volume, "--type=json", f"-p={tickets}")
    claims.kubectl(
        "patch", "pvc", "data", "--type=merge", '-p={"metadata":{"finalizers":["kubernetes.io/pvc-protection"]}}'
    )
    await_nothing_left(cluster, guest, disk)

    cluster.install()
    cluster.plane.await_defined(f"crd/{definition}")
    again = disks.attached("d", "data", guest)
    assert guest.holds(again.name, "kept", 0)
    evidence(
        "the definition of guests' disks removed under a running guest: it kept its disk until that was cleared away"
    )
