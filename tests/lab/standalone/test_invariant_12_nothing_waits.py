"""Invariant 12: nothing waits for ever, and a dead target never blocks the others."""

import threading
import time
from collections.abc import Callable

import grpc
import pytest

from aoe_csi.proto import csi_pb2 as pb
from aoe_lab.evidence import Evidence
from aoe_lab.patience import OUTLASTING_DEADSECS, deadsecs
from aoe_lab.standalone import THICK, Standalone, Workload, capability
from aoe_lab.verifying import Writer

PULLED_S = 30
LONG_DEADSECS = 100
RETRYABLE = {grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION}


def test_unstage_with_dead_targets_while_other_volumes_live(
    cluster: Standalone, workload: Callable[..., Workload], evidence: Evidence
) -> None:
    compute = cluster.compute["compute1"]
    dead = [workload(pool=THICK, size_bytes=64 << 20, storage="storage2") for _ in range(2)]
    for volume in dead:
        volume.create()
        target = volume.attach("compute1")
        compute.machine.run(f"dd if=/dev/zero of={target}/dirty bs=1M count=4 status=none")
    living = workload(pool=THICK, size_bytes=32 << 20, storage="storage1", capability=capability(block=True))
    living.create()
    living_target = living.attach("compute1")
    storage2 = cluster.storage["storage2"]
    codes: list[grpc.StatusCode] = []
    # Longer than the node server waits for an umount: it has to give up on one, and go on with it later.
    with deadsecs(compute.machine, LONG_DEADSECS):
        storage2.machine.power_cut()
        try:
            with Writer(compute.machine, living_target, salt="living", blocks=4000) as writer:
                began, probes, slowest_probe_s = time.monotonic(), 0, 0.0
                letting_go = [
                    threading.Thread(target=let_go, args=(volume, codes, 10 * LONG_DEADSECS)) for volume in dead
                ]
                for thread in letting_go:
                    thread.start()
                while any(thread.is_alive() for thread in letting_go):
                    asked = time.monotonic()
                    compute.identity.Probe(pb.ProbeRequest(), timeout=10)
                    probes, slowest_probe_s = probes + 1, max(slowest_probe_s, time.monotonic() - asked)
                    writer.await_acknowledged(writer.acknowledged() + 5)
                waited_s = time.monotonic() - began
            assert grpc.StatusCode.ABORTED in codes, "no umount was given up on: nothing was dirty, or it waited"
            assert set(codes) <= RETRYABLE
            assert writer.check()["wrong"] == 0
            mounted = compute.machine.run("findmnt -rno TARGET").stdout
            assert not [volume.name for volume in dead if volume.name in mounted]
        finally:
            storage2.boot()
    evidence(
        f"two volumes unstaged {waited_s:.0f} s after their target died (aoe_deadsecs {LONG_DEADSECS}), {len(codes)} "
        f"refusals; meanwhile {probes} Probes, the slowest {slowest_probe_s:.2f} s, and another volume written to"
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
    with (
        deadsecs(machine, OUTLASTING_DEADSECS),
        Writer(machine, target, salt="pulled", blocks=4000) as writer,
    ):
        writer.await_acknowledged(20)
        machine.link_down("main")
        time.sleep(PULLED_S)
        machine.link_up("main")
        writer.await_acknowledged(writer.acknowledged() + 50)
    assert writer.check()["wrong"] == 0


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
    compute.boot()
    # The server answers before it has loaded the driver.
    loaded = "[ -c /dev/etherd/discover ]"
    compute.machine.run(f"for i in $(seq 60); do {loaded} && exit 0; sleep 1; done; exit 1", timeout_s=90)
    devices = compute.machine.run("ls /sys/block | grep etherd", check=False).stdout
    assert devices == "", f"the driver heard somebody before anything was staged: {devices}"
    # Control: it is the rules and options that keep it from hearing; the export is on the wire, and admits this node.
    compute.machine.run(["systemctl", "stop", compute.unit])
    compute.machine.run("nft flush ruleset; echo > /dev/etherd/discover; sleep 2")
    heard = compute.machine.run("ls /sys/block | grep etherd", check=False).stdout
    assert heard, "without the rules nothing was heard either, so this bed cannot show the harm"
    compute.restart()
    address = volume.context["compute1"]["address"]
    compute.machine.run(f"printf '{address}\\0' > /dev/etherd/flush")
    volume.attach("compute1")
    assert compute.machine.run(f"cat {target}/file").stdout.strip() == "before"


def test_unstage_of_what_a_former_boot_staged_succeeds(cluster: Standalone, workload: Callable[..., Workload]) -> None:
    compute = cluster.compute["compute1"]
    volume = workload(pool=THICK, size_bytes=64 << 20)
    volume.create()
    volume.attach("compute1")
    compute.machine.power_cut()
    compute.boot()
    codes: list[grpc.StatusCode] = []
    let_go(volume, codes, 60)  # The watchdog looks at it, too, and whoever comes second is told to ask again.
    assert set(codes) <= {grpc.StatusCode.ABORTED}
    assert volume.volume_id not in compute.machine.run("ls /var/lib/aoe-csi/staged").stdout
    with pytest.raises(grpc.RpcError):
        volume.node_publish("compute1")
