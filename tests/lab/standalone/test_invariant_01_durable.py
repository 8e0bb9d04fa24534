"""Invariant 1: what fsync acknowledged survives a storage machine's sudden death."""

import time
from collections.abc import Callable

import pytest

from aoe_lab.evidence import Evidence
from aoe_lab.patience import OUTLASTING_DEADSECS, deadsecs
from aoe_lab.standalone import THICK, THIN, Standalone, Workload, capability
from aoe_lab.verifying import Writer

BLOCKS = 2000


@pytest.mark.parametrize(("pool", "cuts"), [(THICK, 1), pytest.param(THIN, 1, marks=pytest.mark.long)])
def test_nothing_acknowledged_is_lost_by_power_cuts(
    cluster: Standalone, workload: Callable[..., Workload], evidence: Evidence, pool: str, cuts: int
) -> None:
    volume = workload(pool=pool, size_bytes=64 << 20, capability=capability(block=True))
    evidence(f"{pool} pool: {lost_power(cluster, volume, cuts)}")


@pytest.mark.long
@pytest.mark.parametrize(("pool", "cuts"), [(THICK, 12), (THIN, 10)])
def test_nothing_acknowledged_is_lost_by_many_power_cuts(
    cluster: Standalone, workload: Callable[..., Workload], evidence: Evidence, pool: str, cuts: int
) -> None:
    volume = workload(pool=pool, size_bytes=64 << 20, capability=capability(block=True))
    evidence(f"{pool} pool: {lost_power(cluster, volume, cuts)}")


def lost_power(cluster: Standalone, volume: Workload, cuts: int) -> str:
    """Cut the storage machine's power again and again under a verifying writer; return the figures."""
    storage, compute = cluster.storage["storage1"], cluster.compute["compute1"].machine
    volume.create()
    target = volume.attach("compute1")
    total = 0
    for cut in range(cuts):
        with (
            deadsecs(compute, OUTLASTING_DEADSECS),
            Writer(compute, target, salt=f"cut{cut}", blocks=BLOCKS) as writer,
        ):
            writer.await_acknowledged(50)
            storage.machine.power_cut()
            time.sleep(1)
            before = writer.acknowledged()
            storage.machine.boot()
            storage.machine.wait_ready()
            # The writer was never given an error: it goes on by itself once the export is back.
            writer.await_acknowledged(before + 20)
        verdict = writer.check()
        assert verdict["wrong"] == 0, f"cut {cut}: {verdict}"
        total += verdict["checked"]
        # The same on the storage machine's own device, past every cache of the compute machine.
        device = f"/dev/data/v-{volume.volume_id}"
        assert writer.check(storage.machine, device)["wrong"] == 0
    storage.connect()
    return f"{cuts} power cuts, {total} acknowledged writes of 4 KiB, none lost"


def test_what_lvm_was_told_survives_a_power_cut_at_once(
    cluster: Standalone, workload: Callable[..., Workload], evidence: Evidence
) -> None:
    """Volumes made, grown and deleted, the power cut right after the answer. Control: one made by hand, which lvm2
    leaves in the disk's cache; in a group of its own, for the wipe of what was deleted has its disk flushed."""
    storage = cluster.storage["storage1"]
    deleted = workload(pool=THICK, size_bytes=4 << 20, capability=capability(block=True))
    deleted.create()
    made = {pool: workload(pool=pool, size_bytes=8 << 20, capability=capability(block=True)) for pool in (THICK, THIN)}
    for volume in made.values():
        volume.create()
        volume.expand(16 << 20)
    storage.machine.run("vgcreate -qq other /dev/disk/by-id/virtio-data1")
    deleted.delete()
    storage.machine.run("lvcreate -qqy -Wn -Zn -an -L 4m -n by-hand other")
    storage.machine.power_cut()
    storage.boot()
    names = storage.machine.run("lvs --noheadings -o name").stdout.split()
    storage.machine.run("vgremove -qqy other", check=False)
    assert "by-hand" not in names, "this disk loses nothing, so the bed cannot show a missing flush"
    assert f"v-{deleted.volume_id}" not in names
    for volume in made.values():
        assert volume.expand(16 << 20) == 16 << 20
        size = storage.machine.run(f"lvs --noheadings --units b --nosuffix -o size data/v-{volume.volume_id}").stdout
        assert int(size) == 16 << 20
    evidence("two volumes made and grown, one deleted, power cut at once: all as answered; one made by hand is gone")


def test_a_host_that_was_prepared_stays_prepared_by_a_power_cut(cluster: Standalone, evidence: Evidence) -> None:
    """Without its units no export would come back. Control: a file that nobody has flushed is gone or empty."""
    storage = cluster.storage["storage1"]
    units, programs = "/etc/systemd/system/aoe-csi-ex*", "/usr/local/lib/aoe-csi"
    storage.machine.run(f"rm -r {units} /etc/systemd/system/*.wants/aoe-csi-ex* {programs}; sync")
    # Last, and at once: the kernel writes out by itself what is half a minute old.
    storage.machine.run("aoe-csi prepare-host; code=$?; echo unflushed > /root/control; exit $code", timeout_s=180)
    storage.machine.power_cut()
    storage.machine.boot()
    storage.machine.wait_ready()
    assert not storage.machine.run("cat /root/control 2>/dev/null || true").stdout
    assert not storage.machine.run(f"find {units} {programs} -empty").stdout
    finished = storage.machine.run(["aoe-csi", "prepare-host", "--check"], check=False)
    assert finished.code == 0, finished.stdout
    assert storage.machine.run("systemctl is-enabled aoe-csi-exports.service").stdout == "enabled\n"
    assert storage.machine.run("vgs --noheadings -o systemid data").stdout.strip()
    storage.connect()
    evidence("units and programs written, power cut at once: all there; a file not flushed beside them is not")


def test_control_plain_vblade_loses_acknowledged_writes(
    cluster: Standalone, workload: Callable[..., Workload], evidence: Evidence
) -> None:
    """The protection off: the same volume served by vblade without -s."""
    storage, compute = cluster.storage["storage1"], cluster.compute["compute1"].machine
    volume = workload(pool=THICK, size_bytes=64 << 20, capability=capability(block=True))
    volume.create()
    target = volume.attach("compute1")
    shelf, slot = volume.context["compute1"]["address"][1:].split(".")
    unit, serial = f"aoe-csi-export@{shelf}.{slot}", volume.context["compute1"]["serial"]
    storage.machine.run(["systemctl", "stop", unit])
    interface, mac = storage.machine.san_interface("main"), compute.san_mac("main")
    plain = storage.machine.spawn(
        f"unshare --uts sh -c 'hostname {serial}; exec vblade -m {mac} {shelf} {slot} {interface} "
        f"/dev/data/v-{volume.volume_id}'"
    )
    with Writer(compute, target, salt="control", blocks=BLOCKS) as writer:
        writer.await_acknowledged(200)
        storage.machine.power_cut()
    plain.stop()
    storage.boot()
    verdict = writer.check(storage.machine, f"/dev/data/v-{volume.volume_id}")
    assert verdict["wrong"] > 0, "plain vblade lost nothing, so this bed cannot show a missing flush"
    evidence(f"control: plain vblade lost {verdict['wrong']} of {verdict['checked']} acknowledged writes")
