"""Invariant 10: SIGKILL at any moment of any call, then retry, converges; nothing leaked, nothing lost.

The sweep over every boundary is in tests/simulated; here are samples of it on real LVM, systemd, mkfs and mounts.
"""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable

import grpc
import pytest

from aoe_lab.evidence import Evidence
from aoe_lab.remote_process import runs
from aoe_lab.standalone import THICK, THIN, Endpoint, Standalone, Workload

WATCH_S = {"lvcreate": 60, "mkfs": 60}
"""How long a program is looked out for that must be seen."""
SHORT_WATCH_S = 12
"""As long as the others, which may be over too soon."""
RETRIED = {
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.FAILED_PRECONDITION,  # The killed server's mkfs may still hold the device.
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


def killed(server: Endpoint, call: Callable[[], object], program: str) -> bool:
    """Make a call, kill its server as soon as a program of it runs, and make the call again until it succeeds, as an
    orchestrator does. Returns: whether that program was seen in time; a short one may not be."""
    seen: list[str] = []
    watching = threading.Thread(target=lambda: seen.append(kill_at(server, program)))
    watching.start()
    time.sleep(1)  # Until the watcher is there.
    swallow(call)
    watching.join()
    deadline = time.monotonic() + 180
    while (refusal := attempt(server, call)) is not None:
        assert refusal.code() in RETRIED, refusal
        assert time.monotonic() < deadline, refusal
        time.sleep(1)
    return seen == ["hit"]


def kill_at(server: Endpoint, program: str) -> str:
    """Kill a server on its machine at the first sight of a program; return `hit`, or `missed` after some seconds."""
    kill = f"systemctl kill --signal=KILL --kill-whom=main {server.unit}"
    watch_s = WATCH_S.get(program, SHORT_WATCH_S)
    until = f"end=$(($(date +%s) + {watch_s})); while [ $(date +%s) -lt $end ]"
    watch = f"{until}; do {runs(program)} && {kill} && echo hit && exit; done; echo missed"
    return server.machine.run(watch, timeout_s=watch_s + 60).stdout.strip()


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
    hits: Counter[str] = Counter()
    for turn in range(rounds):
        hits += killed_through_its_life(cluster, workload(pool=(THICK, THIN)[turn % 2], size_bytes=96 << 20))
    assert hits["lvcreate"], "no lvcreate was running when its server was killed"
    assert hits["mkfs"], "no mkfs was running when its server was killed"
    if rounds > 1:
        assert hits.total() >= 20, hits
    told = ", ".join(f"{program}: {count}" for program, count in hits.items())
    evidence(f"{hits.total()} servers killed with SIGKILL while a command of theirs ran ({told}), all converged")


def killed_through_its_life(cluster: Standalone, volume: Workload) -> Counter[str]:
    """Return the programs at whose sight a server was killed."""
    storage, compute = cluster.storage["storage1"], cluster.compute["compute1"]
    steps: list[tuple[Endpoint, Callable[[], object], str]] = [
        (storage, volume.create, "lvcreate"),
        (storage, lambda: volume.publish("compute1"), "systemctl start aoe-csi-export"),
        (compute, lambda: volume.stage("compute1"), "mkfs"),
        (compute, lambda: volume.node_publish("compute1"), "mount --"),
        (storage, lambda: volume.expand(160 << 20), "lvextend"),
        (compute, lambda: volume.node_expand("compute1", 160 << 20), "resize2fs"),
        (compute, lambda: volume.node_unpublish("compute1"), "umount"),
        (compute, lambda: volume.unstage("compute1"), "umount"),
        (storage, lambda: volume.unpublish("compute1"), "systemctl stop aoe-csi-export"),
        (storage, volume.delete, "lvremove" if volume.pool == THIN else "lvrename"),
    ]
    hits: Counter[str] = Counter()
    for number, (server, call, program) in enumerate(steps):
        if number == 4:  # What was written before the later deaths must be there after them.
            compute.machine.run(f"echo kept > {volume.target_path}/file; sync -f {volume.target_path}")
        if number == 6:
            assert compute.machine.run(f"cat {volume.target_path}/file").stdout == "kept\n"
            size = int(compute.machine.run(f"df -B1 --output=size {volume.target_path} | tail -1").stdout)
            assert size > 120 << 20
        hits[program] += killed(server, call, program)
    left = storage.machine.run(
        f"for i in $(seq 60); do lvs --noheadings -o name data | grep {volume.volume_id} || exit 0; sleep 1; done",
        timeout_s=90,
    ).stdout
    assert not left.split() or volume.volume_id not in storage.machine.run("lvs --noheadings -o name data").stdout
    assert volume.volume_id not in compute.machine.run("ls /var/lib/aoe-csi/staged").stdout
    assert volume.name not in compute.machine.run("findmnt -rno TARGET").stdout
    return +hits
