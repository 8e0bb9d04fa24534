"""Invariant 5: a volume is never silently blank, and mkfs runs only on what is proven blank on both sides."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from aoe_lab import Machine
from aoe_lab.remote_process import runs
from aoe_lab.standalone import THICK, THIN, Standalone, Workload, capability


@pytest.mark.parametrize("filesystem", ["ext4", pytest.param("xfs", marks=pytest.mark.long)])
def test_a_mkfs_killed_half_way_is_done_again_on_another_node(
    cluster: Standalone, workload: Callable[..., Workload], filesystem: str
) -> None:
    volume = workload(pool=THIN, size_bytes=1 << 30, capability=capability(filesystem=filesystem))
    volume.create()
    volume.publish("compute1")
    node1, machine = cluster.node_id("compute1"), cluster.compute["compute1"].machine
    with ThreadPoolExecutor() as beside:
        seen = beside.submit(power_cut_during, machine, f"mkfs.{filesystem}")
        with pytest.raises(grpc.RpcError):
            volume.stage("compute1")
        assert seen.result(), "no mkfs was running when the power was cut"
    volume.unpublish_by_id(node1)
    target = volume.attach("compute2")
    compute2 = cluster.compute["compute2"].machine
    compute2.run(f"echo whole > {target}/file && sync -f {target}")
    label = compute2.run(f"blkid -p -s LABEL -o value /dev/etherd/{volume.context['compute2']['address']}", check=False)
    assert label.stdout.strip() == ""
    cluster.compute["compute1"].boot()


def power_cut_during(machine: Machine, program: str) -> bool:
    """Cut a machine's power as soon as a program is seen running on it. Returns: whether it was."""
    seen = machine.run(f"for i in $(seq 3000); do {runs(program)} && exit 0; done; exit 1", timeout_s=300, check=False)
    machine.power_cut()
    return seen.code == 0


def test_a_volume_that_had_a_file_system_is_not_made_anew(cluster: Standalone, formatted: Workload) -> None:
    """The storage node saw ext4; a device that then looks blank is a wrong disk, not a new one."""
    volume, storage = formatted, cluster.storage["storage1"].machine
    storage.run(f"dd if=/dev/zero of=/dev/data/v-{volume.volume_id} bs=1M oflag=direct status=none", check=False)
    volume.publish("compute1")
    with pytest.raises(grpc.RpcError) as refusal:
        volume.stage("compute1")
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "ext4" in (refusal.value.details() or "")
    assert storage.run(f"tr -d '\\0' < /dev/data/v-{volume.volume_id} | wc -c").stdout.strip() == "0"


def test_control_whoever_believes_a_blank_look_formats_what_was_in_use(
    cluster: Standalone, workload: Callable[..., Workload]
) -> None:
    """The protection off: what most drivers do, mkfs where blkid finds nothing; here after the first MiB was lost."""
    volume = workload(pool=THICK, size_bytes=64 << 20)
    volume.create()
    target = volume.attach("compute1")
    machine = cluster.compute["compute1"].machine
    machine.run(f"for i in $(seq 50); do echo kept > {target}/$i; done; sync -f {target}")
    volume.detach("compute1")
    storage = cluster.storage["storage1"].machine
    device = f"/dev/data/v-{volume.volume_id}"
    listing = f"debugfs -R 'ls -p /' {device} 2>/dev/null | cut -d/ -f6"
    assert "50" in storage.run(listing).stdout.split()
    storage.run(f"dd if=/dev/zero of={device} bs=1M count=1 oflag=direct conv=notrunc status=none")
    storage.run(f"blkid -p {device} || mkfs.ext4 -q {device}")
    left = storage.run(listing).stdout.split()
    assert "lost+found" in left
    assert "50" not in left, "the files outlived mkfs, so this bed cannot show the harm"


def test_control_a_never_formatted_blank_volume_is_formatted(workload: Callable[..., Workload]) -> None:
    volume = workload(pool=THICK, size_bytes=64 << 20)
    volume.create()
    assert volume.publish("compute1")["filesystem"] == ""
    volume.stage("compute1")


def test_foreign_data_is_not_formatted_over(cluster: Standalone, workload: Callable[..., Workload]) -> None:
    volume = workload(pool=THICK, size_bytes=64 << 20)
    volume.create()
    storage = cluster.storage["storage1"].machine
    device = f"/dev/data/v-{volume.volume_id}"
    storage.run(
        f"head -c 4096 /dev/urandom > /run/foreign; dd if=/run/foreign of={device} oflag=direct status=none bs=4096"
    )
    volume.publish("compute1")
    with pytest.raises(grpc.RpcError) as refusal:
        volume.stage("compute1")
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert storage.run(f"cmp -n 4096 /run/foreign {device}", check=False).code == 0


def test_a_lost_volume_is_reported_and_never_made_again(cluster: Standalone, workload: Callable[..., Workload]) -> None:
    volume = workload(pool=THICK, size_bytes=16 << 20, capability=capability(block=True))
    volume.create()
    volume.publish("compute1")
    storage = cluster.storage["storage1"].machine
    unit = f"aoe-csi-export@{volume.context['compute1']['address'][1:]}"
    storage.run(f"systemctl stop {unit}; lvremove -qqy data/v-{volume.volume_id}")
    with pytest.raises(grpc.RpcError) as refusal:
        volume.publish("compute1")
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND
    assert "lost" in (refusal.value.details() or "")
    assert storage.run(f"lvs data/v-{volume.volume_id}", check=False).code != 0
    time.sleep(1)
    volume.unpublish("compute1")
