"""Invariant 11: in use is in use: no flush, stop or removal under an opener, and a flush forgets exactly one device."""

import time
from collections.abc import Callable

import grpc
import pytest

from aoe_lab.standalone import THICK, VOLUME_GROUP, Standalone, Workload, capability

FLUSH = "/dev/etherd/flush"


def test_unstage_is_refused_while_a_file_is_open(cluster: Standalone, workload: Callable[..., Workload]) -> None:
    volume = workload(pool=THICK, size_bytes=64 << 20)
    volume.create()
    target = volume.attach("compute1")
    machine = cluster.compute["compute1"].machine
    holder = machine.spawn(f"exec 5> {target}/held; sleep 1000")
    time.sleep(1)
    with pytest.raises(grpc.RpcError) as refusal:
        volume.node_unpublish("compute1")
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert machine.run(f"echo still >> {target}/held && cat {target}/held").stdout.strip() == "still"
    holder.stop()
    machine.run(f"fuser -k {target}/held 2>/dev/null; true", check=False)
    volume.detach("compute1")


def test_deleting_a_published_volume_is_refused(workload: Callable[..., Workload]) -> None:
    volume = workload(pool=THICK, size_bytes=16 << 20, capability=capability(block=True))
    volume.create()
    volume.publish("compute1")
    with pytest.raises(grpc.RpcError) as refusal:
        volume.delete()
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "compute1" in (refusal.value.details() or "")


def test_udev_does_not_look_into_a_volume_where_it_is_stored(cluster: Standalone, formatted: Workload) -> None:
    """So that nobody opens it but who uses it. Control: it does so with anybody else's."""
    storage = cluster.storage["storage1"].machine
    other = f"/dev/{VOLUME_GROUP}/by-hand"
    storage.run(f"lvcreate -qq -y -L 64m -n by-hand {VOLUME_GROUP} && mkfs.ext4 -q {other}")
    try:
        for device, looked_into in ((f"/dev/{VOLUME_GROUP}/v-{formatted.volume_id}", False), (other, True)):
            assert storage.run(["blkid", "-p", "-s", "TYPE", "-o", "value", device]).stdout == "ext4\n"
            storage.run(["udevadm", "trigger", "--settle", "--action=change", device], timeout_s=60)
            seen = storage.run(["udevadm", "info", "--query=property", device]).stdout
            assert ("ID_FS_TYPE=ext4" in seen) is looked_into
    finally:
        storage.run(["lvremove", "-qq", "-y", f"{VOLUME_GROUP}/by-hand"])


def test_the_sweeper_forgets_detached_devices_and_no_others(
    cluster: Standalone, workload: Callable[..., Workload]
) -> None:
    machine = cluster.compute["compute1"].machine
    kept = workload(pool=THICK, size_bytes=16 << 20, capability=capability(block=True))
    gone = workload(pool=THICK, size_bytes=16 << 20, capability=capability(block=True))
    for volume in (kept, gone):
        volume.create()
        volume.attach("compute1")
    gone_address, kept_address = (one.context["compute1"]["address"] for one in (gone, kept))
    gone.detach("compute1")
    machine.run(
        f"for i in $(seq 90); do [ -e /sys/block/etherd!{gone_address} ] || exit 0; sleep 1; done; exit 1",
        timeout_s=120,
    )
    assert machine.run(f"cat /sys/block/etherd!{kept_address}/state").stdout.strip() == "up"


def test_control_a_flush_by_prefix_takes_a_device_from_under_its_opener(
    cluster: Standalone, workload: Callable[..., Workload]
) -> None:
    """The protection off: a flush without its NUL, as aoe-flush writes it, of another device's shorter name."""
    machine = cluster.compute["compute1"].machine
    volume = workload(pool=THICK, size_bytes=16 << 20, capability=capability(block=True))
    volume.create()
    volume.attach("compute1")
    address = volume.context["compute1"]["address"]
    opener = machine.spawn(f"exec 5< {volume.target_path}; sleep 1000")
    exact, prefix = f"printf 'e9.9\\0' > {FLUSH}", f"printf %s {address[:-1]} > {FLUSH}"
    there = f"test -e '/sys/block/etherd!{address}'"
    machine.run(f"{exact}; sleep 1; {there}")
    assert machine.run(f"{prefix}; sleep 1; {there}", check=False).code != 0, "nothing was flushed under an opener"
    opener.stop()
    machine.run(f"pkill -f 'exec 5< {volume.target_path}'", check=False)
