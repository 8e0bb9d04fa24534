"""The main job, shown: `python -m aoe_lab.demo`.

A volume is created, exported, attached, written, survives its storage machine's sudden death, grows, is snapshotted,
restored and deleted; all through CSI calls, on real LVM, real vblade and the kernel's own AoE initiator. Every claim
the story makes is checked, and one that does not hold ends it with exit code 1.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

import grpc

from aoe_lab import Lab, Topology
from aoe_lab.errors import LabError
from aoe_lab.standalone import OUTLASTING, THIN, VOLUME_GROUP, Standalone, Workload, from_snapshot
from aoe_lab.story import Story, StoryError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aoe_lab import Machine

STORAGE, COMPUTE = "storage1", "compute1"
MIB = 1 << 20


def main() -> int:
    """Tell the story on machines of its own; they are gone afterwards, however it ends."""
    story = Story()
    try:
        with story.step("Boot a storage machine and a compute machine on one Ethernet segment"):
            lab = Lab.start(Topology(storage=1, compute=1, sans=("main",)), name="demo")
        with lab:
            _tell(story, lab)
    except KeyboardInterrupt:
        print("\ninterrupted; the machines are gone", file=sys.stderr)
        return 130
    except (StoryError, LabError, grpc.RpcError) as error:
        said = error.details() if isinstance(error, grpc.Call) else str(error)
        print(f"\nThe story breaks off here: {said}", file=sys.stderr)
        return 1
    return 0


def _tell(story: Story, lab: Lab) -> None:  # noqa: PLR0915 - one story, told in order
    storage, compute = lab.machine(STORAGE), lab.machine(COMPUTE)
    cluster = Standalone(lab, OUTLASTING)
    with story.step("Install aoe-csi on both: configuration, aoe-csi prepare-host, one service each"):
        cluster.install()
        story.tell(storage.run(["aoe-csi", "preflight"], check=False).stdout)
    demo = Workload(cluster=cluster, name="demo", pool=THIN, size_bytes=256 * MIB)
    with story.step("CreateVolume: 256 MiB in thin pool"):
        demo.create()
        story.tell(_lvs(storage))
    with story.step(f"ControllerPublishVolume to {COMPUTE}: an address, an export, a MAC mask"):
        context = demo.publish(COMPUTE)
        story.tell(storage.run("pgrep -ax vblade").stdout)
        story.require(context["address"].startswith("e10."), f"the volume is {context['address']} on the wire")
    with story.step("NodeStageVolume and NodePublishVolume: discover, prove, mkfs, mount"):
        demo.stage(COMPUTE)
        target = demo.node_publish(COMPUTE)
        story.tell(compute.run(f"findmnt -no SOURCE,FSTYPE,SIZE,OPTIONS {target}").stdout)
    _picture(story, cluster, demo)
    with story.step("Write 32 MiB and fsync; then keep writing, one fsync'ed record after the other"):
        compute.run(f"dd if=/dev/urandom of={target}/first bs=1M count=32 conv=fsync status=none", timeout_s=120)
        checksum = compute.run(f"sha256sum < {target}/first").stdout.split()[0]
        story.tell(f"sha256 {checksum}")
        writer = compute.spawn(
            f"i=0; while [ $i -lt 100000 ]; do i=$((i+1)); echo record $i | dd of={target}/log oflag=append,dsync "
            "conv=notrunc status=none && echo $i > /run/acknowledged; done"
        )
        time.sleep(3)
    with story.step(f"Pull the power of {STORAGE} under the writer"):
        storage.power_cut()
        at_death = int(compute.run("cat /run/acknowledged").stdout)
        time.sleep(3)
        stalled = int(compute.run("cat /run/acknowledged").stdout)
        story.require(stalled <= at_death + 1, f"the writer waits at record {stalled}, it gets no error")
    with story.step(f"Power {STORAGE} on again: the export comes back by itself"):
        storage.boot()
        storage.wait_ready()
        cluster.storage[STORAGE].connect()
        _until(lambda: int(compute.run("cat /run/acknowledged").stdout) > stalled + 3, 120, "the writer goes on")
        writer.stop()
        acknowledged = int(compute.run("cat /run/acknowledged").stdout)
        story.tell(f"record {acknowledged} is written")
        kept = compute.run(f"grep -c ^record {target}/log").stdout.strip()
        story.require(int(kept) >= acknowledged, f"all {acknowledged} acknowledged records are there")
        compute.run("sync")
        compute.drop_caches()
        story.require(
            compute.run(f"sha256sum < {target}/first").stdout.split()[0] == checksum, "the first file is whole"
        )
    with story.step("ControllerExpandVolume and NodeExpandVolume: 512 MiB, mounted all the time"):
        demo.expand(512 * MIB)
        demo.node_expand(COMPUTE, 512 * MIB)
        size = compute.run(f"df -h --output=size {target} | tail -1").stdout.strip()
        story.require(
            int(compute.run(f"df -B1 --output=size {target} | tail -1").stdout) > 400 * MIB, f"df says {size}"
        )
    with story.step("CreateSnapshot, then destroy the file"):
        compute.run(f"sync -f {target}")
        snapshot = demo.snapshot("demo-snapshot")
        compute.run(f"dd if=/dev/zero of={target}/first bs=1M count=32 conv=fsync,notrunc status=none", timeout_s=120)
        story.tell(_lvs(storage))
    restored = Workload(cluster=cluster, name="restored", pool=THIN, size_bytes=512 * MIB)
    with story.step("CreateVolume from the snapshot, attached beside the damaged one"):
        restored.create(volume_content_source=from_snapshot(snapshot))
        second = restored.attach(COMPUTE)
        story.require(
            compute.run(f"sha256sum < {second}/first").stdout.split()[0] == checksum, "the restored file is whole"
        )
        story.require(compute.run(f"sha256sum < {target}/first").stdout.split()[0] != checksum, "the other one is not")
    _picture(story, cluster, demo, restored)
    with story.step("Detach and delete everything"):
        for workload in (restored, demo):
            workload.detach(COMPUTE)
            workload.delete()
        from aoe_csi.proto import csi_pb2 as pb  # noqa: PLC0415 - only this step needs a bare call

        demo.controller.DeleteSnapshot(pb.DeleteSnapshotRequest(snapshot_id=snapshot), timeout=60)
        story.require("v-" not in _lvs(storage) and "s-" not in _lvs(storage), "no logical volume of ours is left")
        story.require(storage.run("pgrep -x vblade", check=False).code == 1, "no exporter runs")
        story.require(not compute.run("findmnt -rno SOURCE | grep etherd || true").stdout, "nothing is mounted")
        story.tell(storage.run(["aoe-csi", "status"], check=False).stdout)
    print("\nEvery step above was a CSI call on real LVM, vblade and kernel. Timings:")
    story.sum_up()


def _lvs(machine: Machine) -> str:
    report = machine.run(
        ["lvs", "--reportformat", "json", "-o", "lv_name,lv_size,pool_lv,origin,lv_tags", VOLUME_GROUP]
    ).stdout
    rows = json.loads(report)["report"][0]["lv"]
    return "\n".join(
        f"{row['lv_name']:<22} {row['lv_size']:>9}  {row['lv_tags'].replace('aoe-csi.', '')}"
        for row in rows
        if row["lv_name"] != "thinpool"
    )


def _picture(story: Story, cluster: Standalone, *workloads: Workload) -> None:
    """Draw who exports what to whom, from what the machines themselves say."""
    storage, compute = cluster.storage[STORAGE].machine, cluster.compute[COMPUTE].machine
    exporters = storage.run("pgrep -ax vblade || true").stdout.splitlines()
    print(f"\n     {STORAGE:<30}{'SAN main':^32}{COMPUTE}")
    print(f"     ┌{'─' * 28}┐{'':32}┌{'─' * 34}┐")
    for workload in workloads:
        address = workload.context[COMPUTE]["address"]
        shelf, slot = address[1:].split(".")
        mask = next((line.split(" -m ")[1].split()[0] for line in exporters if f" {shelf} {slot} " in line), "nobody")
        mounted = compute.run(f"findmnt -no FSTYPE,SIZE --source /dev/etherd/{address} | head -1").stdout.split()
        left = f"{VOLUME_GROUP}/v-{workload.volume_id}"
        right = f"/dev/etherd/{address} {' '.join(mounted)}"
        print(f"     │ {left:<27}│─ vblade {address:<6} ══════════════▶ │ {right:<33}│")
        print(f"     │ {'':<27}│  only to {mask:<22}│ {'':<33}│")
    print(f"     └{'─' * 28}┘{'':32}└{'─' * 34}┘")
    story.tell(f"mask: {compute.san_mac('main')} is {COMPUTE}'s card")


def _until(holds: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise StoryError(f"{what}: not within {timeout_s:g} s")
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
