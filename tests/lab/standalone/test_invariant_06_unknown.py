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


def test_control_an_absent_volume_is_deleted(cluster: Standalone) -> None:
    cluster.storage["storage1"].controller.DeleteVolume(pb.DeleteVolumeRequest(volume_id="never-there"), timeout=60)
