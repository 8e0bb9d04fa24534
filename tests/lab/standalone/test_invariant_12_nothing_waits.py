"""Invariant 12: nothing waits for ever, and a dead target never blocks the others."""

import threading
import time
from collections.abc import Callable

import grpc
import pytest

from aoe_csi.proto import csi_pb2 as pb
from aoe_lab.evidence import Evidence
from aoe_lab.standalone import THICK, Standalone, Workload, capability
from aoe_lab.verifying import Writer

PULLED_S = 30
DEADSECS = "/sys/module/aoe/parameters/aoe_deadsecs"
RETRYABLE = {grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION}


def test_unstage_with_a_dead_target_while_other_volumes_live(
    cluster: Standalone, workload: Callable[..., Workload], evidence: Evidence
) -> None:
    compute = cluster.compute["compute1"]
    dead = workload(pool=THICK, size_bytes=64 << 20, storage="storage2")
    dead.create()
    dead_target = dead.attach("compute1")
    compute.machine.run(f"dd if=/dev/zero of={dead_target}/dirty bs=1M count=4 status=none")
    living = workload(pool=THICK, size_bytes=32 << 20, storage="storage1", capability=capability(block=True))
    living.create()
    living_target = living.attach("compute1")
    storage2 = cluster.storage["storage2"]
    storage2.machine.power_cut()
    try:
        with Writer(compute.machine, living_target, salt="living", blocks=4000) as writer:
            began, codes, probes, slowest_probe_s = time.monotonic(), list[grpc.StatusCode](), 0, 0.0
            letting_go = threading.Thread(target=let_go, args=(dead, codes, 20 * cluster.tuning.deadsecs))
            letting_go.start()
            while letting_go.is_alive():
                asked = time.monotonic()
                compute.identity.Probe(pb.ProbeRequest(), timeout=10)
                probes, slowest_probe_s = probes + 1, max(slowest_probe_s, time.monotonic() - asked)
                writer.await_acknowledged(writer.acknowledged() + 5)
            waited_s = time.monotonic() - began
        assert probes > 1, "the dead target was let go at once: nothing was dirty"
        assert set(codes) <= RETRYABLE
        assert writer.check()["wrong"] == 0
        assert dead.name not in compute.machine.run("findmnt -rno TARGET").stdout
    finally:
        storage2.machine.boot()
        storage2.machine.wait_ready()
        storage2.connect()
    evidence(
        f"unstaged {waited_s:.0f} s after its target died, {len(codes)} refusals; meanwhile {probes} Probes, "
        f"the slowest {slowest_probe_s:.2f} s, and another volume written to"
    )


def let_go(volume: Workload, codes: list[grpc.StatusCode], limit_s: float) -> None:
    """Unpublish and unstage as kubelet does: again and again until it succeeds; note every refusal."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            volume.node_unpublish("compute1")
            volume.unstage("compute1")
        except grpc.RpcError as error:
            codes.append(error.code())
            time.sleep(1)
        else:
            return


def test_control_a_plain_umount_of_a_dead_target_cannot_even_be_killed(
    cluster: Standalone, workload: Callable[..., Workload]
) -> None:
    """The protection off: whoever runs umount and waits for it waits with it. Here for as long as aoe_deadsecs says."""
    machine, storage = cluster.compute["compute1"].machine, cluster.storage["storage1"].machine
    volume = workload(pool=THICK, size_bytes=64 << 20)
    volume.create()
    target = volume.attach("compute1")
    unit = f"aoe-csi-export@{volume.context['compute1']['address'][1:]}"
    machine.run(f"dd if=/dev/zero of={target}/dirty bs=1M count=4 status=none")
    machine.run(["systemctl", "stop", "aoe-csi-node"])
    storage.run(["systemctl", "kill", "--signal=STOP", unit])
    try:
        machine.run(f"umount {target}")  # The bind mount; the file system below it is still mounted.
        machine.run(f"systemd-run -q --unit=control-umount umount {volume.staging_path}; sleep 2")
        machine.run("systemctl kill --signal=KILL control-umount; sleep 3")
        state = machine.run("ps -o stat= -C umount", check=False).stdout
        assert state.startswith("D"), f"umount is gone or could be killed ({state!r}): this bed cannot show the harm"
    finally:
        storage.run(["systemctl", "kill", "--signal=CONT", unit])
        machine.run("for i in $(seq 60); do pgrep -x umount || exit 0; sleep 1; done; exit 1", timeout_s=90)
        machine.run(["systemctl", "start", "aoe-csi-node"])
        cluster.compute["compute1"].connect()


def test_a_link_down_for_less_than_deadsecs_resumes(cluster: Standalone, workload: Callable[..., Workload]) -> None:
    machine = cluster.compute["compute1"].machine
    volume = workload(pool=THICK, size_bytes=32 << 20, capability=capability(block=True))
    volume.create()
    target = volume.attach("compute1")
    machine.run(f"echo {2 * PULLED_S} > {DEADSECS}")
    try:
        with Writer(machine, target, salt="pulled", blocks=4000) as writer:
            writer.await_acknowledged(20)
            machine.link_down("main")
            time.sleep(PULLED_S)
            machine.link_up("main")
            writer.await_acknowledged(writer.acknowledged() + 50)
        assert writer.check()["wrong"] == 0
    finally:
        machine.run(f"echo {cluster.tuning.deadsecs} > {DEADSECS}")


def test_a_link_down_for_longer_gives_errors_and_recovers(
    cluster: Standalone, workload: Callable[..., Workload]
) -> None:
    machine = cluster.compute["compute1"].machine
    volume = workload(pool=THICK, size_bytes=32 << 20, capability=capability(block=True))
    volume.create()
    target = volume.attach("compute1")
    holder = machine.spawn(f"exec 5< {target}; sleep 1000")  # Keeps the device open: closewait, not gone.
    machine.link_down("main")
    write = f"dd if=/dev/zero of={target} bs=4k count=1 oflag=direct conv=notrunc status=none"
    failed = machine.run(write, check=False, timeout_s=10 * cluster.tuning.deadsecs)
    assert failed.code != 0
    machine.link_up("main")
    machine.run(f"for i in $(seq 90); do {write} 2>/dev/null && exit 0; sleep 1; done; exit 1", timeout_s=120)
    holder.stop()
    machine.run(f"pkill -f 'exec 5< {target}'", check=False)


def test_a_compute_reboot_leaves_no_stale_device_trusted(
    cluster: Standalone, workload: Callable[..., Workload]
) -> None:
    compute = cluster.compute["compute1"]
    volume = workload(pool=THICK, size_bytes=64 << 20)
    volume.create()
    target = volume.attach("compute1")
    compute.machine.run(f"echo before > {target}/file; sync -f {target}")
    compute.machine.power_cut()
    compute.machine.boot()
    compute.machine.wait_ready()
    compute.connect()
    devices = compute.machine.run("ls /sys/block | grep etherd", check=False).stdout
    assert devices == "", f"the driver heard somebody before anything was staged: {devices}"
    volume.attach("compute1")
    assert compute.machine.run(f"cat {target}/file").stdout.strip() == "before"


def test_unstage_of_what_a_former_boot_staged_succeeds(cluster: Standalone, workload: Callable[..., Workload]) -> None:
    compute = cluster.compute["compute1"]
    volume = workload(pool=THICK, size_bytes=64 << 20)
    volume.create()
    volume.attach("compute1")
    compute.machine.power_cut()
    compute.machine.boot()
    compute.machine.wait_ready()
    compute.connect()
    volume.node_unpublish("compute1")
    volume.unstage("compute1")
    with pytest.raises(grpc.RpcError):
        volume.node_publish("compute1")
