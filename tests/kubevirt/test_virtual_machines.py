"""Volumes as disks of KubeVirt's guests: at the start, while they run, grown, and after the storage machine's death."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.guests.guest_disks import GuestDisks
from tests.kubevirt.machines import (
    OWN_CLAIM,
    ROOT,
    await_no_plug_pods,
    documented_disk,
    fill,
    hot_claim,
    left_behind,
    machine_of,
    on_machines,
)

from aoe_core import model
from aoe_core.model import VolumeId
from aoe_lab.guest import devices_on
from aoe_lab.kubevirt.virtual_machine import READY_S, VirtualMachine
from aoe_lab.topology import MIB

if TYPE_CHECKING:
    from tests.pods.claims import Claims

    from aoe_lab.evidence import Evidence
    from aoe_lab.kubernetes.cluster import Cluster

pytestmark = pytest.mark.long

ROUNDS = 10


def test_a_guest_runs_from_a_block_claim(machine: VirtualMachine, evidence: Evidence) -> None:
    assert "<domain type='qemu'" in machine.domain_xml()
    (root,) = machine.disks()
    assert (root.size_bytes, root.serial) == (64 * MIB, ROOT)
    evidence("a VirtualMachine runs from a block claim; its guest sees 64 MiB, and the serial it was given")


def test_a_guest_runs_from_a_claim_with_a_file_system(cluster: Cluster, claims: Claims, evidence: Evidence) -> None:
    claims.claim("files", size="256Mi")
    fill(claims, "files", block=False)
    made = VirtualMachine.create(cluster, claims.name, machine_of("files", "files"))
    try:
        made.await_running()
        assert [one.serial for one in made.disks()] == [ROOT]
    finally:
        made.delete()
    evidence("a VirtualMachine runs from a file on a claim with a file system")


def test_a_disk_comes_to_a_running_guest_and_goes(
    machine: VirtualMachine, claims: Claims, cluster: Cluster, evidence: Evidence
) -> None:
    serial = hot_claim(claims, "hot")
    before = on_machines(cluster)
    for turn in range(ROUNDS):
        machine.plug("hot", "hot", serial)
        machine.await_phase("hot", "Ready")
        disk = machine.await_disk(serial, size_bytes=128 * MIB)
        if turn == 0:
            # With a ReadWriteOnce claim it cannot.
            claims.await_("it to stay", lambda: "it could be moved" if machine.is_migratable() else None, READY_S)
        else:
            assert machine.holds(disk.name, f"round-{turn - 1}", 7)
        assert machine.write(disk.name, f"round-{turn}", 7)
        assert machine.holds(disk.name, f"round-{turn}", 7)
        machine.unplug("hot")
        machine.await_phase("hot", None)
        await_no_plug_pods(claims)
        assert [one.serial for one in machine.disks()] == [ROOT]

    claims.await_("the grant to be given back", lambda: claims.holders("hot") or None, READY_S)
    claims.await_("the machines to be as before", partial(left_behind, cluster, before), READY_S)
    evidence(
        f"{ROUNDS} rounds of plug and unplug, each read back what the one before had written; exports, stage records,"
        " devices, mounts and pins as before, and no grant is left"
    )


def test_a_second_disk_comes_while_the_first_is_written_and_the_first_goes(
    machine: VirtualMachine, claims: Claims, evidence: Evidence
) -> None:
    """Each change of what is plugged is another plug pod, which has all that stays."""
    serials = {name: hot_claim(claims, name) for name in ("first", "second")}
    machine.plug("first", "first", serials["first"])
    machine.await_phase("first", "Ready")
    first = machine.await_disk(serials["first"])
    machine.start_writer(first.name, "swap")
    machine.await_acknowledged(3)
    machine.plug("second", "second", serials["second"])
    machine.await_phase("second", "Ready")
    second = machine.await_disk(serials["second"])
    assert machine.write(second.name, "second", 5)
    machine.await_acknowledged(machine.acknowledged() + 3, timeout_s=READY_S)
    last = machine.stop_writer()
    assert machine.wrong(first.name, "swap", last) == 0
    machine.unplug("first")
    machine.await_phase("first", None)
    claims.await_("the first one's grant to be given back", lambda: claims.holders("first") or None, READY_S)
    assert machine.holds(machine.await_disk(serials["second"]).name, "second", 5)
    evidence(f"a second disk came while one was written ({last + 1} blocks, none lost), and stayed when that went")


def test_a_claim_for_one_pod_alone_is_in_the_way_of_the_next_disk(
    machine: VirtualMachine, claims: Claims, evidence: Evidence
) -> None:
    """What is plugged next comes by another plug pod, which may not have a ReadWriteOncePod claim beside the first."""
    serials = {"alone": hot_claim(claims, "alone", mode="ReadWriteOncePod"), "next": hot_claim(claims, "next")}
    machine.plug("alone", "alone", serials["alone"])
    machine.await_phase("alone", "Ready")
    disk = machine.await_disk(serials["alone"])
    machine.plug("next", "next", serials["next"])

    def unsaid() -> str | None:
        said = claims.kubectl("get", "events", "--output=jsonpath={.items[*].message}").stdout
        return None if "ReadWriteOncePod" in said else said[-1500:]

    claims.await_("an event that says what is in the way", unsaid, READY_S)
    assert machine.write(disk.name, "alone", 1)
    assert machine.holds(disk.name, "alone", 1)
    machine.unplug("alone")
    machine.await_phase("alone", None)
    machine.await_phase("next", "Ready")
    machine.await_disk(serials["next"])
    evidence("a ReadWriteOncePod claim is plugged; until it is unplugged the next disk waits, and an event says why")


def test_a_machine_starts_with_what_was_plugged_and_sees_it_grow(
    machine: VirtualMachine, claims: Claims, evidence: Evidence
) -> None:
    hot_claim(claims, "hot")
    machine.plug("hot", "hot", "hot")
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


def test_an_aoeguestdisk_brings_a_claim_and_takes_it_away(
    machine: VirtualMachine, claims: Claims, cluster: Cluster, evidence: Evidence
) -> None:
    """As docs/guests-kubernetes.md has it: a claim that nobody has used yet, so that it is bound for the machine's
    node; grown; and others, which are refused."""
    before = on_machines(cluster)
    disks = GuestDisks(claims)
    documented = documented_disk()
    late, claim = documented["metadata"]["name"], documented["spec"]["claim"]
    claims.claim(claim, size="128Mi", block=True, storage_class="thick")
    disks.plug("refused", claim, "other")
    assert "may not attach to its virtual machine other" in disks.await_said("refused", "Attached", "False")
    disks.detach("refused")
    claims.apply(documented)
    disks.await_said(late, "Attached", "True", timeout_s=READY_S)
    serial = model.serial_of(VolumeId(claims.volume_of(claim)))
    status = claims.get("aoeguestdisk", late)["status"]
    assert (status["serial"], [one["host"] for one in status["hosts"]]) == (serial, [machine.node().name])
    disk = machine.await_disk(serial, size_bytes=128 * MIB)
    assert machine.write(disk.name, "late", 3)
    disks.plug("second", claim, machine.name)
    assert "two guests have one volume only when both read it" in disks.await_said("second", "Attached", "False")
    disks.detach("second")
    claims.kubectl("patch", "pvc", claim, '--patch={"spec":{"resources":{"requests":{"storage":"192Mi"}}}}')
    machine.await_disk(serial, size_bytes=192 * MIB, timeout_s=READY_S)
    claims.kubectl("delete", "pvc", claim, "--wait=false")
    assert machine.holds(disk.name, "late", 3)
    disks.detach(late, timeout_s=READY_S)
    assert [one.serial for one in machine.disks()] == [ROOT]
    assert machine.own_disks() == (ROOT,)
    await_no_plug_pods(claims)
    claims.await_("the machines to be as before", partial(left_behind, cluster, before), READY_S)
    evidence(
        "an AoEGuestDisk brought an unbound claim to a running machine, which wrote it and saw it grow from 128 to 192"
        " MiB; the claim, deleted meanwhile, stayed until the guest had let go; nothing is left"
    )


def test_a_machine_moves_to_another_node_while_it_writes(
    machine: VirtualMachine, claims: Claims, evidence: Evidence
) -> None:
    """With the disk it runs from, and one that was plugged."""
    serial = hot_claim(claims, "data", mode="ReadWriteMany")
    machine.plug("data", "data", serial)
    machine.await_phase("data", "Ready")
    source, disk = machine.node(), machine.await_disk(serial)
    machine.start_writer(disk.name, "moved")
    machine.await_acknowledged(5)
    before = machine.acknowledged()
    machine.migrate()
    target = machine.node()
    assert target.name != source.name
    arrived = machine.acknowledged()
    machine.await_acknowledged(arrived + 5)
    last = machine.stop_writer()
    assert machine.wrong(disk.name, "moved", last) == 0
    claims.await_("the source to let go", lambda: devices_on(source) or None, READY_S)
    has_let_go = {2 * target.name}

    def held() -> str | None:
        holders = {claims.holders(name) for name in (OWN_CLAIM, "data")}
        return None if holders == has_let_go else str(holders)

    claims.await_("the source's grants to be given back", held, READY_S)
    evidence(
        f"a running machine moved from {source.name} to {target.name} while it wrote: block {before} before the move,"
        f" {arrived} at its end, {last + 1} in all, none lost; the source has no device left"
    )


def test_a_guest_goes_on_after_the_storage_machine_was_without_power(
    machine: VirtualMachine, claims: Claims, cluster: Cluster, evidence: Evidence
) -> None:
    claims.claim("hot", size="128Mi", block=True, storage_class="thick")
    machine.plug("hot", "hot", "hot")
    machine.await_phase("hot", "Ready")
    disk = machine.await_disk("hot")
    machine.start_writer(disk.name, "durable")
    machine.await_acknowledged(10)
    storage = cluster.storage_machines[0]
    storage.power_cut()
    before = machine.stalled_at()
    storage.boot()
    storage.wait_ready()
    machine.await_acknowledged(before + 10, timeout_s=READY_S)
    last = machine.stop_writer()
    assert machine.wrong(disk.name, "durable", last) == 0
    assert machine.wrong(disk.name, "another-salt", 3) == 4, "the check finds nothing wrong with anything"
    evidence(f"power cut under the guest's writes: {last + 1} acknowledged blocks, none lost")
    cluster.await_ready()
