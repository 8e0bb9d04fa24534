"""Invariant 9: nothing left to read: freed thick space is wiped before it is free, and counts as used until then."""

import time
from collections.abc import Callable

from aoe_csi.proto import csi_pb2 as pb
from aoe_lab.standalone import THICK, Standalone, Workload, capability

SIZE_BYTES = 96 << 20
SECRET = "QUITE-SECRET-"


def fill(cluster: Standalone, device: str) -> None:
    secrets = f"yes {SECRET} | tr -d '\\n' | head -c {SIZE_BYTES}"
    write = f"dd of={device} bs=1M iflag=fullblock oflag=direct status=none"
    cluster.storage["storage1"].machine.run(f"{secrets} | {write}", timeout_s=180)


def secrets_on(cluster: Standalone, device: str) -> int:
    said = cluster.storage["storage1"].machine.run(f"grep -c -a {SECRET} {device}", check=False, timeout_s=120).stdout
    return int(said)


def first_extent(cluster: Standalone, lv: str) -> str:
    return cluster.storage["storage1"].machine.run(f"lvs --noheadings -o seg_pe_ranges data/{lv}").stdout.strip()


def test_a_deleted_volumes_data_is_gone_before_its_space_is_free(
    cluster: Standalone, workload: Callable[..., Workload]
) -> None:
    machine = cluster.storage["storage1"].machine
    volume = workload(pool=THICK, size_bytes=SIZE_BYTES, capability=capability(block=True))
    volume.create()
    fill(cluster, f"/dev/data/v-{volume.volume_id}")
    place = first_extent(cluster, f"v-{volume.volume_id}")
    free = capacity(cluster)
    volume.delete()
    deadline = time.monotonic() + 120
    while True:
        given_out = capacity(cluster)
        # Asked afterwards: what is still there now was there when capacity was asked.
        if machine.run("lvs --noheadings -o name data | grep ' d-'", check=False).code != 0:
            break
        assert given_out <= free, "space counted as free before it was wiped"
        assert time.monotonic() < deadline
    assert capacity(cluster) >= free + SIZE_BYTES
    machine.run(f"lvcreate -qqy -Wn -Zn -l {SIZE_BYTES >> 22} -n peek data {place.split(':')[0]}:{place.split(':')[1]}")
    try:
        assert first_extent(cluster, "peek") == place
        assert secrets_on(cluster, "/dev/data/peek") == 0
    finally:
        machine.run("lvremove -qqy data/peek")


def test_control_plain_lvremove_leaves_everything_readable(cluster: Standalone) -> None:
    machine = cluster.storage["storage1"].machine
    machine.run(f"lvcreate -qqy -Wn -Zn -L {SIZE_BYTES}b -n plain data")
    fill(cluster, "/dev/data/plain")
    place = first_extent(cluster, "plain")
    machine.run("lvremove -qqy data/plain")
    machine.run(f"lvcreate -qqy -Wn -Zn -l {SIZE_BYTES >> 22} -n peek data {place.split(':')[0]}:{place.split(':')[1]}")
    assert secrets_on(cluster, "/dev/data/peek") > 0
    machine.run("blkdiscard -z /dev/data/peek; lvremove -qqy data/peek", timeout_s=120)


def test_a_wipe_cut_by_a_power_loss_is_finished(cluster: Standalone, workload: Callable[..., Workload]) -> None:
    storage = cluster.storage["storage1"]
    volume = workload(pool=THICK, size_bytes=1 << 30, capability=capability(block=True))
    volume.create()
    volume.delete()
    storage.machine.power_cut()
    storage.boot()
    storage.machine.run(
        "for i in $(seq 120); do lvs --noheadings -o name data | grep -q ' d-' || exit 0; sleep 1; done; exit 1",
        timeout_s=180,
    )


def capacity(cluster: Standalone) -> int:
    request = pb.GetCapacityRequest(parameters={"pool": THICK})
    return cluster.storage["storage1"].controller.GetCapacity(request, timeout=60).available_capacity
