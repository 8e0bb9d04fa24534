"""Volumes as disks of KubeVirt's guests: at the start, while they run, grown, and after the storage machine's death."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.pods.claims import DEVICE, DIRECTORY, Claims, sleeping

from aoe_lab.kubevirt.boot_disk import FILE
from aoe_lab.kubevirt.virtual_machine import READY_S, ROOT, VirtualMachine
from aoe_lab.tools_disk import MOUNTED_AT
from aoe_lab.topology import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aoe_lab.evidence import Evidence
    from aoe_lab.kubernetes.cluster import Cluster

pytestmark = pytest.mark.long

ROUNDS = 10
QEMU = 107


def fill(claims: Claims, claim: str, *, block: bool = True) -> None:
    """Put the guests' system on a claim: as the disk itself, or as the file that KubeVirt takes for one."""
    target = DEVICE if block else f"{DIRECTORY}/disk.img"
    used = (
        {"volumeDevices": [{"name": "data", "devicePath": DEVICE}]}
        if block
        else {"volumeMounts": [{"name": "data", "mountPath": DIRECTORY}]}
    )
    used["volumeMounts"] = [*used.get("volumeMounts", []), {"name": "tools", "mountPath": "/tools"}]
    spec = sleeping(used)
    volumes = [
        {"name": "data", "persistentVolumeClaim": {"claimName": claim}},
        {"name": "tools", "hostPath": {"path": f"{MOUNTED_AT}/bin"}},
    ]
    claims.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "fill"},
            "spec": {**spec, "volumes": volumes, "securityContext": {} if block else {"fsGroup": QEMU}},
        }
    )
    claims.await_running("fill", timeout_s=READY_S)
    owned = "" if block else f" && chown {QEMU}:{QEMU} {target}"
    claims.run("fill", f"dd if=/tools/{FILE} of={target} bs=1M conv=fsync 2>/dev/null{owned}", timeout_s=600)
    claims.delete_pod("fill")


def has_plug_pods(claims: Claims) -> list[str]:
    """Return the pods by which KubeVirt brings a volume to the node of a running machine."""
    names = claims.kubectl("get", "pods", "--output=name").stdout.split()
    return [name for name in names if name.startswith("pod/hp-volume-")]


def await_no_plug_pods(claims: Claims) -> None:
    claims.await_("the plug pods to be gone", lambda: " ".join(has_plug_pods(claims)) or None, READY_S)


@pytest.fixture
def machine(cluster: Cluster, claims: Claims) -> Iterator[VirtualMachine]:
    """A guest that runs from a block claim."""
    claims.claim(ROOT, size="64Mi", block=True)
    fill(claims, ROOT)
    made = VirtualMachine.create(cluster, claims.name, "vm", {ROOT: ROOT})
    made.await_running()
    yield made
    made.delete()


def test_a_guest_runs_from_a_block_claim(machine: VirtualMachine, evidence: Evidence) -> None:
    assert "<domain type='qemu'" in machine.domain_xml()
    (root,) = machine.disks()
    assert (root.size_bytes, root.serial) == (64 * MIB, ROOT)
    evidence("a VirtualMachine runs from a block claim; its guest sees 64 MiB")


def test_a_guest_runs_from_a_claim_with_a_file_system(cluster: Cluster, claims: Claims, evidence: Evidence) -> None:
    claims.claim("files", size="256Mi")
    fill(claims, "files", block=False)
    made = VirtualMachine.create(cluster, claims.name, "vm", {ROOT: "files"})
    try:
        made.await_running()
        assert [one.serial for one in made.disks()] == [ROOT]
    finally:
        made.delete()
    evidence("a VirtualMachine runs from a file on a claim with a file system")


def test_a_disk_comes_to_a_running_guest_and_goes(machine: VirtualMachine, claims: Claims, evidence: Evidence) -> None:
    claims.claim("hot", size="128Mi", block=True)
    for turn in range(ROUNDS):
        machine.plug("hot", "hot")
        machine.await_phase("hot", "Ready")
        disk = machine.await_disk("hot", size_bytes=128 * MIB)
        if turn:
            assert machine.holds(disk.name, f"round-{turn - 1}", 7)
        assert machine.write(disk.name, f"round-{turn}", 7)
        assert machine.holds(disk.name, f"round-{turn}", 7)
        machine.unplug("hot")
        machine.await_phase("hot", None)
        await_no_plug_pods(claims)
        assert [one.serial for one in machine.disks()] == [ROOT]
    volume = claims.volume_of("hot")

    def held() -> str | None:
        said = claims.cluster.plane.kubectl("get", "aoevolume", volume, "--output=jsonpath={.spec.tickets}").stdout
        return None if said in ("", "[]") else said

    claims.await_("its last ticket to be given back", held, READY_S)
    evidence(f"{ROUNDS} rounds of plug and unplug, each read back what the one before had written; no grant is left")


def test_a_machine_starts_with_what_was_plugged_and_sees_it_grow(
    machine: VirtualMachine, claims: Claims, evidence: Evidence
) -> None:
    claims.claim("hot", size="128Mi", block=True)
    machine.plug("hot", "hot")
    machine.await_phase("hot", "Ready")
    machine.stop()
    machine.start()
    machine.await_phase("hot", "Ready")
    machine.await_disk("hot", size_bytes=128 * MIB)
    assert sorted(one.serial for one in machine.disks()) == ["hot", ROOT]
    claims.kubectl("patch", "pvc", "hot", '--patch={"spec":{"resources":{"requests":{"storage":"192Mi"}}}}')

    def still_small() -> str | None:
        disk = machine.find_disk("hot")
        return None if disk and disk.size_bytes == 192 * MIB else f"the guest sees {disk}"

    claims.await_("the guest to see its disk grown", still_small, READY_S)
    evidence("stopped and started with the plugged disk in its spec; the running guest saw 128 MiB become 192 MiB")


def test_a_guest_goes_on_after_the_storage_machine_was_without_power(
    machine: VirtualMachine, claims: Claims, cluster: Cluster, evidence: Evidence
) -> None:
    claims.claim("hot", size="128Mi", block=True, storage_class="thick")
    machine.plug("hot", "hot")
    machine.await_phase("hot", "Ready")
    disk = machine.await_disk("hot")
    machine.start_writer(disk.name, "durable")
    machine.await_acknowledged(10)
    storage = cluster.storage_machines[0]
    storage.power_cut()
    storage.boot()
    storage.wait_ready()
    before = machine.acknowledged()
    machine.await_acknowledged(before + 10, timeout_s=READY_S)
    last = machine.stop_writer()
    assert machine.wrong(disk.name, "durable", last) == 0
    assert machine.wrong(disk.name, "another-salt", 3) == 4, "the check finds nothing wrong with anything"
    evidence(f"power cut under the guest's writes: {last + 1} acknowledged blocks, none lost")
    cluster.await_ready()
