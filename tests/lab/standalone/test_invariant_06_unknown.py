"""Invariant 6: absent is not unknown: a failed command proves nothing."""

from collections.abc import Callable

import grpc
import pytest

from aoe_csi.proto import csi_pb2 as pb
from aoe_lab.standalone import THICK, Standalone, Workload


def test_deleting_while_lvm_fails_is_no_success(cluster: Standalone, workload: Callable[..., Workload]) -> None:
    volume = workload(pool=THICK, size_bytes=16 << 20)
    volume.create()
    storage = cluster.storage["storage1"].machine
    storage.run("mount --bind /bin/false /usr/sbin/lvm")
    try:
        with pytest.raises(grpc.RpcError) as refusal:
            volume.delete()
        assert refusal.value.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)
        with pytest.raises(grpc.RpcError) as listing:
            volume.controller.ListVolumes(pb.ListVolumesRequest(), timeout=60)
        assert listing.value.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)
    finally:
        storage.run("umount /usr/sbin/lvm")
    volume.delete()
    assert storage.run(f"lvs data/v-{volume.volume_id}", check=False).code != 0


def test_a_volume_out_of_sight_is_not_absent(cluster: Standalone, workload: Callable[..., Workload]) -> None:
    """Control: to whoever asks for the one volume, LVM says the very same of it as of one that never was."""
    volume = workload(pool=THICK, size_bytes=16 << 20)
    volume.create()
    storage = cluster.storage["storage1"].machine
    hidden = "--config 'devices { global_filter=[\"r|.*|\"] }'"
    lost = storage.run(f"lvs {hidden} data/v-{volume.volume_id}", check=False)
    never = storage.run(f"lvs {hidden} data/v-never-there", check=False)
    absent = storage.run("lvs other/v-never-there", check=False)
    assert lost.code == never.code == absent.code != 0, "LVM tells absent from out of sight: nothing to protect from"
    filtered = "/etc/lvm/lvmlocal.conf"
    storage.run(f"cp {filtered} /run/lvmlocal.conf; echo 'devices {{ global_filter=[\"r|.*|\"] }}' > {filtered}")
    try:
        with pytest.raises(grpc.RpcError) as refusal:
            volume.delete()
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        storage.run(f"cp /run/lvmlocal.conf {filtered}")
    assert storage.run(f"lvs data/v-{volume.volume_id}").code == 0


def test_control_an_absent_volume_is_deleted(cluster: Standalone) -> None:
    cluster.storage["storage1"].controller.DeleteVolume(pb.DeleteVolumeRequest(volume_id="never-there"), timeout=60)
