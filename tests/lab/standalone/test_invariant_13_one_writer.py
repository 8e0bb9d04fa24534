"""Invariant 13: at most one read-write grant, two only for raw block with several writers; decided atomically."""

import threading
from collections.abc import Callable

import grpc
import pytest

from aoe_lab.evidence import Evidence
from aoe_lab.standalone import THICK, AccessMode, Standalone, Workload, capability

CONTROL = "999 9"
"""Shelf and slot that nobody's configuration has."""


def test_a_second_writer_is_refused_by_name(workload: Callable[..., Workload]) -> None:
    volume = workload(pool=THICK, size_bytes=16 << 20)
    volume.create()
    volume.publish("compute1")
    with pytest.raises(grpc.RpcError) as refusal:
        volume.publish("compute2")
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "compute1" in (refusal.value.details() or "")


def test_of_callers_at_once_for_two_nodes_one_wins(cluster: Standalone, workload: Callable[..., Workload]) -> None:
    nodes = [cluster.node_id(name) for name in ("compute1", "compute2")]
    for _ in range(5):
        volume = workload(pool=THICK, size_bytes=4 << 20, capability=capability(block=True))
        volume.create()
        won: list[str] = []

        def race(node: str, volume: Workload = volume, won: list[str] = won) -> None:
            try:
                volume.publish_by_id(node)
            except grpc.RpcError:
                return
            won.append(node)

        threads = [threading.Thread(target=race, args=(node,)) for node in nodes * 3]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(won)) == 1, won


def test_control_a_second_writer_ruins_a_file_system(
    cluster: Standalone, workload: Callable[..., Workload], evidence: Evidence
) -> None:
    """The protection off: the volume that compute1 has mounted is served to compute2, too, by a vblade of nobody's."""
    storage = cluster.storage["storage1"].machine
    one, two = (cluster.compute[name].machine for name in ("compute1", "compute2"))
    volume = workload(pool=THICK, size_bytes=64 << 20)
    volume.create()
    target = volume.attach("compute1")
    one.run(f"touch {target}/first; sync -f {target}")
    device, interface = f"/dev/data/v-{volume.volume_id}", storage.san_interface("main")
    second = storage.spawn(f"exec vblade -s -m {two.san_mac('main')} {CONTROL} {interface} {device}")
    disk = f"/dev/etherd/e{CONTROL.replace(' ', '.')}"
    two.run(["systemctl", "stop", "aoe-csi-node"])  # Its rules keep out what nobody staged.
    two.run(["nft", "flush", "ruleset"])
    try:
        two.run(f"for i in $(seq 30); do echo > /dev/etherd/discover; [ -b {disk} ] && exit 0; sleep 1; done; exit 1")
        two.run(f"mkdir -p /run/two; mount {disk} /run/two; for i in $(seq 200); do echo two > /run/two/two-$i; done")
        one.run(f"for i in $(seq 200); do echo one > {target}/one-$i; done; sync -f {target}")
        two.run("umount /run/two")  # All that it wrote, it was told, is there.
        volume.node_unpublish("compute1")
        volume.unstage("compute1")
        broken = storage.run(f"e2fsck -fn {device}", check=False).code != 0
        names = storage.run(f"debugfs -R 'ls -p /' {device} 2>/dev/null | cut -d/ -f6").stdout.split()
        lost = 400 - sum(name.startswith(("one-", "two-")) for name in names)
        assert broken or lost, "two writers did no harm, so this bed cannot show it"
        evidence(
            f"control: of 400 files that two writers were told are there {lost} are gone, e2fsck finds faults: {broken}"
        )
    finally:
        second.stop()
        two.run(["systemctl", "start", "aoe-csi-node"])
        cluster.compute["compute2"].connect()


def test_raw_block_with_several_writers_goes_to_two_nodes_and_no_third(
    cluster: Standalone, workload: Callable[..., Workload]
) -> None:
    shared = capability(block=True, mode=AccessMode.MULTI_NODE_MULTI_WRITER)
    volume = workload(pool=THICK, size_bytes=16 << 20, capability=shared)
    volume.create()
    one, two = (volume.attach(name) for name in ("compute1", "compute2"))
    machines = [cluster.compute[name].machine for name in ("compute1", "compute2")]
    machines[0].run(f"echo from-one | dd of={one} bs=4k conv=sync,notrunc oflag=direct status=none")
    assert machines[1].run(f"dd if={two} bs=4k count=1 iflag=direct status=none | head -c 8").stdout == "from-one"
    assert volume.context["compute1"]["address"] != volume.context["compute2"]["address"]
    with pytest.raises(grpc.RpcError) as refusal:
        volume.publish_by_id("compute3|00000000|main=525400000199")
    assert refusal.value.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)
