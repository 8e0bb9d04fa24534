"""The data path: the LV itself, plain `vblade -s`, and our export, with two sizes of Ethernet frame."""

import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aoe_lab import Machine
from aoe_lab.standalone import VOLUME_GROUP, Standalone, Workload, capability
from bench import hand
from bench.control_plane import COMPUTE, HAND_ADDRESS, STORAGE, by_hand, resting
from bench.report import Ratio, Report

SECONDS = 5
MTUS = {9000: "17 sectors", 8700: "16 sectors"}
"""MTU → what fits into a frame: 9000 takes 17 sectors, no multiple of a page; anything from 8228 to 8739 takes 16."""
JOBS = {
    "read 128 KiB": ("read", "128k"),
    "write 128 KiB": ("write", "128k"),
    "random read 4 KiB": ("randread", "4k"),
    "random write 4 KiB": ("randwrite", "4k"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where fio runs: a row of the table."""

    what: str
    kib_s: dict[str, list[float]]


def measure(cluster: Standalone, report: Report, rounds: int) -> str:
    """Run fio everywhere, in turns, and return the table."""
    storage, compute = cluster.storage[STORAGE].machine, cluster.compute[COMPUTE].machine
    work = Workload(
        cluster=cluster, name="bench-data", pool="thick", size_bytes=256 << 20, capability=capability(block=True)
    )
    work.create()
    device = f"/dev/{VOLUME_GROUP}/v-{work.volume_id}"
    places = {"the LV itself, writes synchronous": Place(what="the LV itself, writes synchronous", kib_s={})}
    for _ in range(rounds):
        run_jobs(storage, device, places["the LV itself, writes synchronous"], synchronous=True)
        for mtu, frame in MTUS.items():
            with mtu_of(compute, mtu):
                what = f"vblade -s, MTU {mtu} ({frame})"
                with resting(cluster), by_hand(cluster, device, bare=True):
                    address = ".".join(HAND_ADDRESS)
                    hand.run(compute, "attach-bare.sh", address)
                    run_jobs(compute, f"/dev/etherd/e{address}", places.setdefault(what, Place(what=what, kib_s={})))
                what = f"our export, MTU {mtu} ({frame})"
                target = work.attach(COMPUTE)
                run_jobs(compute, target, places.setdefault(what, Place(what=what, kib_s={})))
                work.detach(COMPUTE)
    work.delete()
    for job in JOBS:
        for mtu, frame in MTUS.items():
            ours = places[f"our export, MTU {mtu} ({frame})"].kib_s[job]
            plain = places[f"vblade -s, MTU {mtu} ({frame})"].kib_s[job]
            speed = Ratio(what=job, ours=ours, theirs=plain, unit="KiB/s")
            report.say(f"{job}, MTU {mtu}: our export has {speed.ratio:.2f} of the speed of plain vblade -s")
    return table(list(places.values()))


def run_jobs(machine: Machine, device: str, place: Place, *, synchronous: bool = False) -> None:
    for job, (kind, block) in JOBS.items():
        finished = machine.run(
            ["fio", "--name=job", f"--filename={device}", f"--rw={kind}", f"--bs={block}", "--direct=1",
             "--ioengine=libaio", "--iodepth=8", "--time_based", f"--runtime={SECONDS}", "--size=200M",
             *(["--sync=1"] if synchronous else []), "--output-format=json"],
            timeout_s=120,
        )  # fmt: skip
        figures = json.loads(finished.stdout[finished.stdout.index("{") :])["jobs"][0]
        speed = figures["read" if "read" in kind else "write"]["bw"]
        place.kib_s.setdefault(job, []).append(float(speed))
        print(f"bench: {place.what}: {job}: {speed} KiB/s", flush=True)


@contextmanager
def mtu_of(machine: Machine, mtu: int) -> Iterator[None]:
    """Give a machine's SAN card another MTU; the driver sees it at the next discovery."""
    card = machine.san_interface("main")
    before = machine.run(["cat", f"/sys/class/net/{card}/mtu"]).stdout.strip()
    machine.run(["ip", "link", "set", card, "mtu", str(mtu)])
    try:
        yield
    finally:
        machine.run(["ip", "link", "set", card, "mtu", before])


def table(places: list[Place]) -> str:
    rows = ["| MiB/s, median | " + " | ".join(JOBS) + " |", "|---|" + "---:|" * len(JOBS)]
    for place in places:
        cells = [f"{statistics.median(place.kib_s[job]) / 1024:.1f}" for job in JOBS]
        rows.append(f"| {place.what} | " + " | ".join(cells) + " |")
    return "\n".join(rows)
