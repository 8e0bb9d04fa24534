"""Invariant 10: SIGKILL at any moment of any call, then retry, converges; nothing leaked, nothing lost.

The sweep over every boundary is in tests/simulated; here are samples of it on real LVM, systemd, mkfs and mounts.
"""

import contextlib
import threading
import time
from collections.abc import Callable

import grpc
import pytest

from aoe_lab.evidence import Evidence
from aoe_lab.standalone import THICK, THIN, Endpoint, Standalone, Workload, capability

RETRIED = {
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.FAILED_PRECONDITION,  # The killed server's mkfs may still hold the device.
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


def killed(server: Endpoint, call: Callable[[], object], after_s: float) -> None:
    """Make a call, kill its server meanwhile, and make the call again until it succeeds, as an orchestrator does."""
    first = threading.Thread(target=swallow, args=(call,))
    first.start()
    time.sleep(after_s)
    server.kill()
    first.join()
    deadline = time.monotonic() + 180
    while (refusal := attempt(server, call)) is not None:
        assert refusal.code() in RETRIED, refusal
        assert time.monotonic() < deadline, refusal
        time.sleep(1)


def attempt(server: Endpoint, call: Callable[[], object]) -> grpc.RpcError | None:
    try:
        server.connect()
        call()
    except grpc.RpcError as error:
        return error
    return None


def swallow(call: Callable[[], object]) -> None:
    with contextlib.suppress(grpc.RpcError):
        call()


@pytest.mark.parametrize("rounds", [1, pytest.param(4, marks=pytest.mark.long)])
def test_killed_servers_converge_on_real_machines(
    cluster: Standalone, workload: Callable[..., Workload], evidence: Evidence, rounds: int
) -> None:
    storage, compute = cluster.storage["storage1"], cluster.compute["compute1"]
    kills = 0
    for turn in range(rounds):
        volume = workload(pool=(THICK, THIN)[turn % 2], size_bytes=96 << 20, capability=capability())
        steps: list[tuple[Endpoint, Callable[[], object]]] = [
            (storage, volume.create),
            (storage, lambda volume=volume: volume.publish("compute1")),  # type: ignore[misc]
            (compute, lambda volume=volume: volume.stage("compute1")),  # type: ignore[misc]
            (compute, lambda volume=volume: volume.node_publish("compute1")),  # type: ignore[misc]
            (storage, lambda volume=volume: volume.expand(160 << 20)),  # type: ignore[misc]
            (compute, lambda volume=volume: volume.node_expand("compute1", 160 << 20)),  # type: ignore[misc]
            (compute, lambda volume=volume: volume.node_unpublish("compute1")),  # type: ignore[misc]
            (compute, lambda volume=volume: volume.unstage("compute1")),  # type: ignore[misc]
            (storage, lambda volume=volume: volume.unpublish("compute1")),  # type: ignore[misc]
            (storage, volume.delete),
        ]
        for number, (server, call) in enumerate(steps):
            if number == 4:  # What was written before the later deaths must be there after them.
                compute.machine.run(f"echo kept > {volume.target_path}/file; sync -f {volume.target_path}")
            if number == 6:
                assert compute.machine.run(f"cat {volume.target_path}/file").stdout == "kept\n"
                size = int(compute.machine.run(f"df -B1 --output=size {volume.target_path} | tail -1").stdout)
                assert size > 120 << 20
            killed(server, call, after_s=0.15 + 0.37 * ((turn + number) % 5))
            kills += 1
        left = storage.machine.run(
            f"for i in $(seq 60); do lvs --noheadings -o name data | grep {volume.volume_id} || exit 0; sleep 1; done",
            timeout_s=90,
        ).stdout
        assert not left.split() or volume.volume_id not in storage.machine.run("lvs --noheadings -o name data").stdout
        assert volume.volume_id not in compute.machine.run("ls /var/lib/aoe-csi/staged").stdout
        assert volume.name not in compute.machine.run("findmnt -rno TARGET").stdout
    evidence(f"{kills} calls killed with SIGKILL on real machines, all converged, nothing left")
