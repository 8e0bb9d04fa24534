"""CSI calls against scripts of the same host commands, listing at scale, and memory."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aoe_csi.proto import csi_pb2 as pb
from aoe_lab import Machine
from aoe_lab.standalone import THIN, VOLUME_GROUP, Endpoint, Standalone, Workload
from bench import hand
from bench.report import Ratio, Report

STORAGE, COMPUTE = "storage1", "compute1"
THIN_POOL = "thinpool"
SIZE_BYTES = 64 << 20
MANY = 500
HAND_ADDRESS = ("11", "200")
"""On a shelf of the storage machine, at a slot that the engine reaches last."""
MOUNT = "/run/bench-mount"


def create(cluster: Standalone, report: Report, rounds: int) -> None:
    """CreateVolume."""
    storage = cluster.storage[STORAGE].machine
    ours: list[float] = []
    script: list[float] = []
    bare: list[float] = []
    cold = Workload(cluster=cluster, name="bench-cold", size_bytes=SIZE_BYTES)
    cold.create()
    cold.delete()
    for number in range(rounds):
        work = Workload(cluster=cluster, name=f"bench-create-{number}", size_bytes=SIZE_BYTES)
        ours.append(timed(work.create))
        script.append(hand.run(storage, "create-volume.sh", VOLUME_GROUP, THIN_POOL, f"b-s{number}", str(SIZE_BYTES)))
        bare.append(hand.run(storage, "bare-lvcreate.sh", VOLUME_GROUP, THIN_POOL, f"b-b{number}", str(SIZE_BYTES)))
        work.delete()
        storage.run(f"lvremove -qq -y {VOLUME_GROUP}/b-s{number} {VOLUME_GROUP}/b-b{number}")
    report.add(Ratio(what="CreateVolume, thin, to a script of its host commands", ours=ours, theirs=script,
                     unit="ms", bar=1.25))  # fmt: skip
    report.add(Ratio(what="CreateVolume, thin, to a bare lvcreate", ours=ours, theirs=bare, unit="ms"))


def attach(cluster: Standalone, report: Report, rounds: int) -> None:
    """ControllerPublishVolume and NodeStageVolume of a volume that has its file system."""
    storage, compute = cluster.storage[STORAGE].machine, cluster.compute[COMPUTE].machine
    work = Workload(cluster=cluster, name="bench-attach", size_bytes=256 << 20)
    work.create()
    # The first stage makes the file system; every one that is timed mounts it.
    work.publish(COMPUTE)
    work.stage(COMPUTE)
    work.unstage(COMPUTE)
    work.unpublish(COMPUTE)
    device = storage.run(f"readlink -f /dev/{VOLUME_GROUP}/v-{work.volume_id}").stdout.strip()
    ours: list[float] = []
    script: list[float] = []
    bare: list[float] = []
    shelf, slot = HAND_ADDRESS
    for number in range(rounds + 1):
        spent_ms = timed(lambda: work.publish(COMPUTE)) + timed(lambda: work.stage(COMPUTE))
        if number > 0:  # The first warms up what every later one finds warm, by hand too.
            ours.append(spent_ms)
        work.unstage(COMPUTE)
        work.unpublish(COMPUTE)
    card, target = compute.san_interface("main"), storage.san_mac("main")
    with resting(cluster):
        for number in range(rounds + 1):
            with by_hand(cluster, device) as export_ms:
                spent_ms = export_ms + hand.run(compute, "attach.sh", shelf, slot, MOUNT, card, target)
                compute.run(["umount", MOUNT])
            if number > 0:
                script.append(spent_ms)
        for number in range(rounds + 1):
            with by_hand(cluster, device, bare=True) as export_ms:
                spent_ms = export_ms + hand.run(compute, "attach-bare.sh", f"{shelf}.{slot}", MOUNT)
                compute.run(["umount", MOUNT])
            if number > 0:
                bare.append(spent_ms)
    report.add(Ratio(what="publish and stage to a script of their host commands", ours=ours, theirs=script,
                     unit="ms", bar=1.5))  # fmt: skip
    report.add(Ratio(what="publish and stage to unit, discover, mount and nothing else", ours=ours, theirs=bare,
                     unit="ms"))  # fmt: skip
    work.delete()


@contextmanager
def resting(cluster: Standalone, name: str = COMPUTE) -> Iterator[None]:
    """Stop the node server meanwhile: it would flush a device it has no record of, and put its rules back."""
    node = cluster.compute[name]
    node.machine.run(["systemctl", "stop", node.unit])
    try:
        yield
    finally:
        node.machine.run(["systemctl", "start", node.unit])
        node.connect()


@contextmanager
def by_hand(cluster: Standalone, device: str, name: str = COMPUTE, *, bare: bool = False) -> Iterator[float]:
    """Export a device as one would without us; `bare` puts our rules aside, so that whoever answers is attached."""
    storage, compute = cluster.storage[STORAGE].machine, cluster.compute[name].machine
    shelf, slot = HAND_ADDRESS
    if bare:
        compute.run(["nft", "flush", "ruleset"])
    script = "export-bare.sh" if bare else "export.sh"
    facts = (shelf, slot, storage.san_interface("main"), device, compute.san_mac("main"))
    spent_ms = hand.run(storage, script, *facts)
    try:
        yield spent_ms
    finally:
        pins = f"pins_{compute.san_interface('main')}"
        compute.run(["nft", "flush", "set", "netdev", "aoe_csi", pins], check=False)
        compute.run(f"printf 'e{shelf}.{slot}\\0' > /dev/etherd/flush", check=False)
        unit = f"bench-export-{shelf}-{slot}" if bare else f"aoe-csi-export@{shelf}.{slot}"
        storage.run(f"systemctl stop {unit}; rm -f /var/lib/aoe-csi/exports/{shelf}.{slot}")


def many(cluster: Standalone, report: Report) -> None:
    """Capacity and list over MANY volumes, with LVM's processes counted by strace. Leaves the volumes behind."""
    storage = cluster.storage[STORAGE].machine
    first = Workload(cluster=cluster, name="bench-many", size_bytes=4 << 20)
    first.create()
    lv = f"{VOLUME_GROUP}/v-{first.volume_id}"
    tags = storage.run(["lvs", "--noheadings", "-o", "lv_tags", lv]).stdout.strip().split(",")
    lines = []
    for number in range(MANY - 1):
        volume_id = f"{first.volume_id[:-4]}{number:04d}"
        words = " ".join(f"--addtag {tag.replace(first.volume_id, volume_id)}" for tag in tags)
        lines.append(f"lvcreate -qq -y -an -V 4194304b --thinpool {THIN_POOL} -n v-{volume_id} {words} {VOLUME_GROUP}")
    fast = "--config 'backup{backup=0 archive=0} activation{monitoring=0}'"
    print(f"bench: making {MANY} volumes ...", flush=True)
    # Each -an create leaves a pool message for the next activation; lvm's own shell saves a process per volume.
    storage.run("cat > /run/bench-many", stdin="\n".join(line + " " + fast for line in lines) + "\n")
    storage.run("lvm < /run/bench-many > /run/bench-many.log 2>&1", timeout_s=1500)
    controller = cluster.storage[STORAGE].controller
    listed: list[int] = []
    server = cluster.storage[STORAGE]

    def list_volumes() -> None:
        listed.append(len(controller.ListVolumes(pb.ListVolumesRequest(), timeout=120).entries))

    def capacity() -> None:
        controller.GetCapacity(pb.GetCapacityRequest(parameters={"pool": THIN}), timeout=120)

    report_ms = [timed_on(storage, "lvm fullreport --reportformat json") for _ in range(3)]
    for what, call in (("ListVolumes", list_volumes), ("GetCapacity", capacity)):
        # The engine's background rounds look at LVM too, and can only add to what is counted.
        calls = min(lvm_calls(server, call) for _ in range(3))
        report.require(calls == 1, f"{what} over {MANY} volumes asks LVM {calls} time(s)")
        ours = [timed(call) for _ in range(3)]
        report.add(Ratio(what=f"{what} over {MANY} volumes to one `lvm fullreport`", ours=ours, theirs=report_ms,
                         unit="ms"))  # fmt: skip
    report.require(set(listed) == {MANY}, f"ListVolumes returns {listed[0]} of {MANY} volumes")


def lvm_calls(server: Endpoint, call: Callable[[], None]) -> int:
    """Count the lvm processes that the server starts while it answers one call."""
    machine = server.machine
    pid = machine.run(["systemctl", "show", "--property=MainPID", "--value", server.unit]).stdout.strip()
    trace = machine.spawn(["strace", "-f", "-qq", "-e", "trace=execve", "-o", "/run/bench-trace", "-p", pid])
    time.sleep(3)
    call()
    trace.stop()
    text = machine.run(["cat", "/run/bench-trace"]).stdout
    return len(re.findall(r'execve\("\S*/lvm", .* = 0$', text, re.MULTILINE))


def memory(cluster: Standalone, report: Report) -> None:
    """Resident memory of each server, after all of the above."""
    for endpoint in cluster.endpoints():
        unit = endpoint.unit
        text = endpoint.machine.run(
            f"grep -E 'VmRSS|RssAnon' /proc/$(systemctl show --property=MainPID --value {unit})/status"
        ).stdout
        sizes = {name: int(kib) / 1024 for name, kib in re.findall(r"(\w+):\s+(\d+) kB", text)}
        line = f"{unit}: {sizes['VmRSS']:.1f} MiB resident, of which {sizes['RssAnon']:.1f} its own"
        if unit == "aoe-csi-node":
            report.require(sizes["VmRSS"] * (1 << 20) <= 60e6, f"{line} (bar 60 MB)")
        else:
            report.say(line)


def timed(call: Callable[[], object]) -> float:
    """Return the milliseconds a call took."""
    began = time.monotonic()
    call()
    return (time.monotonic() - began) * 1000


def timed_on(machine: Machine, command: str) -> float:
    """Return the milliseconds a command took on its machine, ssh not counted."""
    text = f"began=$(date +%s%N); {command} >/dev/null; echo $((($(date +%s%N) - began) / 1000000))"
    return float(machine.run(text).stdout.split()[-1])
