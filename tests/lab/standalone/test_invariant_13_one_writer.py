"""Invariant 13: at most one read-write grant, two only for raw block with several writers; decided atomically."""

import threading
from collections.abc import Callable

import grpc
import pytest

from aoe_lab.standalone import THICK, AccessMode, Standalone, Workload, capability


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
