"""Invariant 2: one address, one volume, fresh each time; frozen frames of a fenced host never land."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import grpc
import pytest

from aoe_lab.evidence import Evidence
from aoe_lab.standalone import THICK, Standalone, Workload, capability
from aoe_lab.verifying import Writer

SIZE_BYTES = 32 << 20


@contextmanager
def frozen_with_writes_in_flight(cluster: Standalone, volume: Workload) -> Iterator[None]:
    """Write from compute1 and take the machine away in the middle: its export stops first, so frames are unanswered."""
    storage, compute1 = cluster.storage["storage1"].machine, cluster.compute["compute1"].machine
    writer = Writer(compute1, volume.target_path, salt="old", blocks=SIZE_BYTES // 4096)
    writer.await_acknowledged(50)
    shelf_slot = volume.context["compute1"]["address"][1:]
    storage.run(["systemctl", "kill", "--signal=STOP", f"aoe-csi-export@{shelf_slot}"])
    time.sleep(1)
    compute1.pause()
    try:
        yield
    finally:
        compute1.resume()
        writer.stop()


def test_a_fenced_nodes_writes_never_land(cluster: Standalone, workload: Callable[..., Workload]) -> None:
    storage, compute1, compute2 = (
        cluster.storage["storage1"].machine,
        cluster.compute["compute1"].machine,
        cluster.compute["compute2"].machine,
    )
    volume = workload(pool=THICK, size_bytes=SIZE_BYTES, capability=capability(block=True))
    volume.create()
    volume.attach("compute1")
    node1 = cluster.node_id("compute1")
    first_address = volume.context["compute1"]["address"]
    with frozen_with_writes_in_flight(cluster, volume):
        shelf_slot = first_address[1:]
        storage.run(["systemctl", "kill", "--signal=CONT", f"aoe-csi-export@{shelf_slot}"])

        # Revoking needs nothing from the frozen node.
        volume.unpublish_by_id(node1)
        target = volume.attach("compute2")
        assert volume.context["compute2"]["address"] != first_address
        compute2.run(
            f"tr '\\0' 'B' < /dev/zero | dd of={target} bs=1M count=32 iflag=fullblock oflag=direct status=none"
        )
        volume.detach("compute2")
        fresh = volume.publish_by_id(node1)
        assert fresh["address"] not in (first_address, volume.context["compute2"]["address"])

        compute1.resume()
        time.sleep(8)  # Long enough for several retransmissions (aoe_maxout starts below a second).
        device = f"/dev/data/v-{volume.volume_id}"
        differing = storage.run(f"tr -d 'B' < {device} | wc -c", timeout_s=120).stdout.strip()
        assert differing == "0", f"{differing} bytes of the fenced node's writes landed"


def test_control_reusing_the_address_lets_old_writes_land(
    cluster: Standalone, workload: Callable[..., Workload], evidence: Evidence
) -> None:
    """The protection off: the same address is served to the node again, as a plain vblade setup would."""
    storage, compute1 = cluster.storage["storage1"].machine, cluster.compute["compute1"].machine
    volume = workload(pool=THICK, size_bytes=SIZE_BYTES, capability=capability(block=True))
    volume.create()
    volume.attach("compute1")
    node1 = cluster.node_id("compute1")
    shelf, slot = volume.context["compute1"]["address"][1:].split(".")
    with frozen_with_writes_in_flight(cluster, volume):
        storage.run(["systemctl", "kill", "--signal=KILL", f"aoe-csi-export@{shelf}.{slot}"], check=False)
        volume.unpublish_by_id(node1)
        device = f"/dev/data/v-{volume.volume_id}"
        storage.run(
            f"tr '\\0' 'B' < /dev/zero | dd of={device} bs=1M count=32 iflag=fullblock oflag=direct status=none"
        )
        serial, interface = volume.context["compute1"]["serial"], storage.san_interface("main")
        reused = storage.spawn(
            f"unshare --uts sh -c 'hostname {serial}; exec vblade -s -m {compute1.san_mac('main')} {shelf} {slot} "
            f"{interface} {device}'"
        )
        compute1.resume()
        time.sleep(8)
        landed = int(storage.run(f"tr -d 'B' < {device} | wc -c", timeout_s=120).stdout)
        reused.stop()
        assert landed > 0, "no old write landed, so this bed cannot show the harm"
        evidence(f"control: {landed} bytes of a fenced node's writes landed on the reused address")


@pytest.mark.parametrize("count", [12, pytest.param(50, marks=pytest.mark.long)])
def test_a_crowd_of_calls_at_once_gets_an_address_each(cluster: Standalone, evidence: Evidence, count: int) -> None:
    """Concurrent calls of each kind for different volumes: none refused, no address twice."""
    volumes = [
        Workload(
            cluster=cluster, name=f"crowd-{number}", pool=THICK, size_bytes=4 << 20, capability=capability(block=True)
        )
        for number in range(count)
    ]
    node1 = cluster.node_id("compute1")
    try:
        assert in_parallel([volume.create for volume in volumes]) == []
        assert in_parallel([partial(volume.publish_by_id, node1) for volume in volumes]) == []
        addresses = [context["address"] for volume in volumes for context in volume.context.values()]
        assert len(set(addresses)) == count
    finally:
        refused = in_parallel([partial(volume.unpublish_by_id, node1) for volume in volumes])
        refused += in_parallel([volume.delete for volume in volumes])
    assert refused == []
    evidence(f"{count} concurrent CreateVolume, publish, unpublish and DeleteVolume calls: none refused")


def test_ten_callers_of_one_name_make_one_volume(cluster: Standalone, workload: Callable[..., Workload]) -> None:
    volume = workload(pool=THICK, size_bytes=8 << 20)
    refusals = in_parallel([volume.create] * 10)
    assert {error.code() for error in refusals} <= {grpc.StatusCode.ABORTED}
    volume.create()
    storage = cluster.storage["storage1"].machine
    assert storage.run(f"lvs --noheadings -o name data | grep -c {volume.volume_id}").stdout.strip() == "1"


def in_parallel(calls: list[Callable[[], object]]) -> list[grpc.RpcError]:
    """Make all calls at once; return the errors of those that were refused."""
    errors: list[grpc.RpcError] = []

    def guarded(call: Callable[[], object]) -> None:
        try:
            call()
        except grpc.RpcError as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors
