"""Invariant 3: no wrong disk. Two targets for an address are never used; the proven one is pinned while staged. Nor the
right one as it was: what a node still has of a revoked grant is no volume any more."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import pytest

from aoe_lab.evidence import Evidence
from aoe_lab.standalone import THICK, Standalone, Workload, capability
from aoe_lab.verifying import Writer

SIZE_BYTES = 32 << 20
IMPOSTER_FILE = "/var/tmp/imposter"
XFS_BYTES = 320 << 20
GIVEN_UP_S = 300.0
"""At most, in vain."""


@contextmanager
def imposter(cluster: Standalone, volume: Workload, *, serial: str = "") -> Iterator[None]:
    """Serve another disk at the volume's address from storage2, to whoever asks, by a plain vblade."""
    machine = cluster.storage["storage2"].machine
    shelf, slot = volume.context["compute1"]["address"][1:].split(".")
    machine.run(
        f"truncate -s {SIZE_BYTES} {IMPOSTER_FILE}; tr '\\0' 'X' < /dev/zero | head -c {SIZE_BYTES} > {IMPOSTER_FILE}"
    )
    name = serial or volume.context["compute1"]["serial"]
    vblade = f"vblade {shelf} {slot} {machine.san_interface('main')} {IMPOSTER_FILE}"
    served = machine.spawn(f"unshare --uts sh -c 'hostname {name}; exec {vblade}'")
    try:
        machine.run(f"for i in $(seq 60); do pgrep -fx '{vblade}' && exit 0; sleep 1; done; exit 1", timeout_s=90)
        yield
    finally:
        served.stop()


def imposter_was_written(cluster: Standalone) -> bool:
    machine = cluster.storage["storage2"].machine
    return machine.run(f"tr -d 'X' < {IMPOSTER_FILE} | wc -c").stdout.strip() != "0"


def targets(cluster: Standalone, volume: Workload) -> str:
    """Return what the driver on compute1 knows of the address, all its targets included."""
    address = volume.context["compute1"]["address"]
    return cluster.compute["compute1"].machine.run(f"cat /sys/kernel/debug/aoe/{address}", check=False).stdout


@pytest.mark.parametrize("serial", ["", "other"])
def test_an_imposter_before_stage_is_found_out(
    cluster: Standalone, workload: Callable[..., Workload], serial: str
) -> None:
    volume = workload(pool=THICK, size_bytes=SIZE_BYTES, capability=capability(block=True))
    volume.create()
    volume.publish("compute1")
    with imposter(cluster, volume, serial=serial):
        with pytest.raises(grpc.RpcError) as refusal:
            volume.stage("compute1")
        assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        imposter_mac = cluster.storage["storage2"].machine.san_mac("main")
        assert imposter_mac in (refusal.value.details() or ""), refusal.value.details()
        assert not imposter_was_written(cluster)
    volume.stage("compute1")


def test_an_imposter_alone_with_another_serial_is_refused(
    cluster: Standalone, workload: Callable[..., Workload]
) -> None:
    volume = workload(pool=THICK, size_bytes=SIZE_BYTES, capability=capability(block=True))
    volume.create()
    volume.publish("compute1")
    storage = cluster.storage["storage1"].machine
    unit = f"aoe-csi-export@{volume.context['compute1']['address'][1:]}"
    storage.run(["systemctl", "stop", unit])
    with imposter(cluster, volume, serial="other"):
        with pytest.raises(grpc.RpcError) as refusal:
            volume.stage("compute1")
        assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    storage.run(["systemctl", "start", unit])


def test_an_imposter_that_appears_during_stage_is_never_read_or_written(
    cluster: Standalone, workload: Callable[..., Workload]
) -> None:
    """At whatever moment it comes: the stage is refused, or the device has its one right target."""
    compute = cluster.compute["compute1"].machine
    volume = workload(pool=THICK, size_bytes=SIZE_BYTES, capability=capability(block=True))
    volume.create()
    staged = 0
    for tenths in range(0, 12, 2):
        volume.publish("compute1")
        refused: list[grpc.RpcError] = []
        staging = threading.Thread(target=stage_into, args=(volume, refused))
        staging.start()
        time.sleep(tenths / 10)
        with imposter(cluster, volume):
            staging.join()
            compute.run("echo > /dev/etherd/discover; sleep 1")
            if not refused:
                staged += 1
                target = volume.node_publish("compute1")
                compute.run(f"dd if=/dev/zero of={target} bs=1M count=4 oflag=direct conv=notrunc status=none")
                assert compute.run(f"tr -d '\\0' < {target} | wc -c").stdout.strip() == "0"
                volume.node_unpublish("compute1")
            assert not imposter_was_written(cluster)
        assert {error.code() for error in refused} <= {grpc.StatusCode.FAILED_PRECONDITION}
        volume.unstage("compute1")
        volume.unpublish("compute1")
    assert staged, "the imposter always came in time to be refused: wait longer before it comes"


def stage_into(volume: Workload, refused: list[grpc.RpcError]) -> None:
    try:
        volume.stage("compute1")
    except grpc.RpcError as error:
        refused.append(error)


def test_an_imposter_after_stage_is_never_read_or_written(
    cluster: Standalone, workload: Callable[..., Workload]
) -> None:
    compute = cluster.compute["compute1"].machine
    volume = workload(pool=THICK, size_bytes=SIZE_BYTES, capability=capability(block=True))
    volume.create()
    target = volume.attach("compute1")
    with imposter(cluster, volume), Writer(compute, target, salt="proven", blocks=2000) as writer:
        for _ in range(3):
            compute.run("echo > /dev/etherd/discover")
            writer.await_acknowledged(writer.acknowledged() + 100)
        assert cluster.storage["storage2"].machine.san_mac("main").replace(":", "") not in targets(
            cluster, volume
        ).replace(":", "")
        assert writer.check()["wrong"] == 0
        assert not imposter_was_written(cluster)


def test_control_without_the_rules_the_imposter_is_written(
    cluster: Standalone, workload: Callable[..., Workload]
) -> None:
    """The protection off: the ingress table is flushed, as somebody's `nft flush ruleset` would."""
    compute = cluster.compute["compute1"].machine
    volume = workload(pool=THICK, size_bytes=SIZE_BYTES, capability=capability(block=True))
    volume.create()
    target = volume.attach("compute1")
    compute.run(["systemctl", "stop", "aoe-csi-node"])  # Its watchdog would put the rules back.
    compute.run(["nft", "flush", "ruleset"])
    try:
        with imposter(cluster, volume), Writer(compute, target, salt="harm", blocks=2000) as writer:
            compute.run("echo > /dev/etherd/discover")
            writer.await_acknowledged(writer.acknowledged() + 200)
            assert imposter_was_written(cluster), "the imposter was not written, so this bed cannot show the harm"
    finally:
        compute.run(["systemctl", "start", "aoe-csi-node"])
        cluster.compute["compute1"].connect()


@pytest.mark.parametrize(("filesystem", "size_bytes"), [("ext4", SIZE_BYTES), ("xfs", XFS_BYTES)])
def test_a_node_that_was_given_up_does_not_give_a_pod_the_past(
    cluster: Standalone, workload: Callable[..., Workload], evidence: Evidence, filesystem: str, size_bytes: int
) -> None:
    """As kubelet does it: it sees the volume mounted there, and publishes it without staging it."""
    compute1, compute2 = cluster.compute["compute1"].machine, cluster.compute["compute2"].machine
    volume = workload(pool=THICK, size_bytes=size_bytes, capability=capability(filesystem=filesystem))
    volume.create()
    former = volume.attach("compute1")
    compute1.run(f"echo past > {former}/file && sync")
    node1 = cluster.node_id("compute1")
    volume.unpublish_by_id(node1)
    elsewhere = volume.attach("compute2")
    compute2.run(f"echo since > {elsewhere}/file && sync")
    volume.detach("compute2")
    volume.publish_by_id(node1)
    assert compute1.run(["cat", f"{former}/file"]).stdout == "past\n", "the harm cannot be shown here"

    successor = f"{former}-successor"
    with pytest.raises(grpc.RpcError, match="a grant that was revoked"):
        volume.node_publish("compute1", target_path=successor)
    # What is still written fails once the driver has given up its target, and xfs has shut down then.
    compute1.run(f"echo late > {former}/late && sync -f {former}", check=False, timeout_s=GIVEN_UP_S)
    volume.node_unpublish("compute1")
    waited_s = publish_when_given_up(volume, successor)
    try:
        assert compute1.run(["cat", f"{successor}/file"]).stdout == "since\n"
    finally:
        volume.node_unpublish("compute1", target_path=successor)
    evidence(
        f"{filesystem}: a former mount showed what was there before; published anew after {waited_s:.0f} s, it shows"
        " what is"
    )


def publish_when_given_up(volume: Workload, target_path: str) -> float:
    """Publish on compute1 once the driver has given up the former target; return how long that took."""
    began = time.monotonic()
    while True:
        try:
            volume.node_publish("compute1", target_path=target_path)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.ABORTED or time.monotonic() - began > GIVEN_UP_S:
                raise
            time.sleep(1)
        else:
            return time.monotonic() - began


def test_flushed_rules_are_put_back_with_their_pins(cluster: Standalone, workload: Callable[..., Workload]) -> None:
    compute = cluster.compute["compute1"].machine
    volume = workload(pool=THICK, size_bytes=SIZE_BYTES, capability=capability(block=True))
    volume.create()
    volume.attach("compute1")
    pinned = cluster.storage["storage1"].machine.san_mac("main")
    compute.run(["nft", "flush", "ruleset"])
    compute.run(
        f"for i in $(seq 60); do nft list ruleset | grep -qi {pinned} && exit 0; sleep 1; done; exit 1", timeout_s=90
    )


def test_a_smaller_device_than_granted_is_refused(cluster: Standalone, workload: Callable[..., Workload]) -> None:
    volume = workload(pool=THICK, size_bytes=SIZE_BYTES, capability=capability(block=True))
    volume.create()
    context = volume.publish("compute1")
    volume.context["compute1"] = context | {"size_bytes": str(2 * SIZE_BYTES)}
    with pytest.raises(grpc.RpcError) as refusal:
        volume.stage("compute1")
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    status = json.loads(cluster.compute["compute1"].machine.run(["aoe-csi", "status", "--json"], check=False).stdout)
    assert volume.volume_id not in [row["volume"] for row in status["staged"]]
