"""Invariant 7: data outlives us: no process of ours is in the I/O path, and a storage reboot brings exports back."""

import time
from collections.abc import Callable

import pytest

from aoe_lab.evidence import Evidence
from aoe_lab.patience import OUTLASTING_DEADSECS, deadsecs
from aoe_lab.standalone import THICK, Standalone, Workload, capability
from aoe_lab.verifying import Writer


def test_killing_and_stopping_our_servers_stops_no_io(cluster: Standalone, workload: Callable[..., Workload]) -> None:
    storage, compute = cluster.storage["storage1"], cluster.compute["compute1"]
    volume = workload(pool=THICK, size_bytes=32 << 20, capability=capability(block=True))
    volume.create()
    target = volume.attach("compute1")
    exporter = storage.machine.run("pgrep -x vblade").stdout
    with Writer(compute.machine, target, salt="alone", blocks=4000) as writer:
        for endpoint in (storage, compute):
            endpoint.kill()
        writer.await_acknowledged(writer.acknowledged() + 50)
        for endpoint in (storage, compute):
            endpoint.machine.run(["systemctl", "stop", endpoint.unit])
        writer.await_acknowledged(writer.acknowledged() + 50)
        for endpoint in (storage, compute):
            endpoint.machine.run(["systemctl", "start", endpoint.unit])
            endpoint.connect()
        writer.await_acknowledged(writer.acknowledged() + 50)
    assert writer.check()["wrong"] == 0
    assert storage.machine.run("pgrep -x vblade").stdout == exporter


def test_control_an_exporter_that_is_our_child_ends_with_us(
    cluster: Standalone, workload: Callable[..., Workload]
) -> None:
    """The protection off: the same vblade as a child of the server, as most drivers would have it."""
    storage, compute = cluster.storage["storage1"].machine, cluster.compute["compute1"].machine
    volume = workload(pool=THICK, size_bytes=32 << 20, capability=capability(block=True))
    volume.create()
    target = volume.attach("compute1")
    address, serial = volume.context["compute1"]["address"][1:], volume.context["compute1"]["serial"]
    shelf, slot = address.split(".")
    vblade = f"vblade -s -m {compute.san_mac('main')} {shelf} {slot} {storage.san_interface('main')}"
    storage.run(["systemctl", "stop", f"aoe-csi-export@{address}"])
    child = f"hostname {serial}; {vblade} /dev/data/v-{volume.volume_id} & exec sleep 1000"
    storage.run(["systemd-run", "-q", "--unit=control-server", "unshare", "--uts", "sh", "-c", child])
    with (
        deadsecs(compute, OUTLASTING_DEADSECS),
        Writer(compute, target, salt="child", blocks=4000) as writer,
    ):
        writer.await_acknowledged(50)
        storage.run(["systemctl", "kill", "--signal=KILL", "--kill-whom=main", "control-server"])
        time.sleep(2)
        stalled_at = writer.acknowledged()
        time.sleep(5)
        assert writer.acknowledged() == stalled_at, "I/O went on without its server, so this bed cannot show the harm"
        storage.run(["systemctl", "start", f"aoe-csi-export@{address}"])
        writer.await_acknowledged(stalled_at + 20)


@pytest.mark.long
@pytest.mark.parametrize("exports", [8, 50])
def test_a_storage_reboot_brings_every_export_back_without_us(
    cluster: Standalone, workload: Callable[..., Workload], evidence: Evidence, exports: int
) -> None:
    storage, compute = cluster.storage["storage1"], cluster.compute["compute1"].machine
    small = {"pool": THICK, "size_bytes": 4 << 20, "capability": capability(block=True)}
    crowd = [workload(**small) for _ in range(exports - 1)]
    node1 = cluster.node_id("compute1")
    for volume in crowd:
        volume.create()
        volume.publish_by_id(node1)
    open_one = workload(pool=THICK, size_bytes=32 << 20, capability=capability(block=True))
    open_one.create()
    target = open_one.attach("compute1")
    storage.machine.run(["systemctl", "disable", "-q", storage.unit])
    try:
        with (
            deadsecs(compute, OUTLASTING_DEADSECS),
            Writer(compute, target, salt="reboot", blocks=4000) as writer,
        ):
            writer.await_acknowledged(20)
            storage.machine.reboot()
            writer.await_acknowledged(writer.acknowledged() + 50)
        assert writer.check()["wrong"] == 0
        deadline = time.monotonic() + 120
        while int(storage.machine.run("pgrep -xc vblade", check=False).stdout) < exports:
            assert time.monotonic() < deadline, storage.machine.run("systemctl list-units 'aoe-csi*'").stdout
            time.sleep(2)
        active = storage.machine.run(["systemctl", "is-active", storage.unit], check=False).stdout.strip()
        assert active == "inactive", "the exports came back with our server's help"
        order = storage.machine.run(
            "systemctl show -p ActiveEnterTimestampMonotonic --value aoe-csi-ingress aoe-csi-exports"
        ).stdout.split()
        assert int(order[0]) < int(order[1]), "exports started before the ingress rules stood"
        evidence(f"{exports} exports back after a reboot with our server disabled; a writer on one of them went on")
    finally:
        storage.machine.run(["systemctl", "enable", "-q", storage.unit])
        storage.machine.run(["systemctl", "start", storage.unit])
        storage.connect()
