"""`python -m bench.resources`: the storage role with ten thousand AoEVolumes on a real API server and a host of fakes.

Prints its memory, what it does while idle, how long a restart takes, and how often it asks for lists; writes
docs/evidence/resources.md. Exit 1 when a bar is missed.
"""

import argparse
import re
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aoe_core.model import VolumeId, serial_of
from aoe_core.resources.fields import ObjectMeta
from aoe_core.resources.kubernetes import KubernetesStore
from aoe_core.resources.node import AoENode, AoENodeSpec, PoolSpec, SanSpec, ShelfRange
from aoe_core.resources.volume import AoEVolume, AoEVolumeSpec, AoEVolumeStatus
from aoe_lab import Lab, Topology, evidence, progress
from aoe_lab.cachedir import CHECKOUT
from aoe_lab.kubernetes.control_plane import ControlPlane
from aoe_operator.finalizer import FINALIZER
from bench.storage_on_fakes import SIZE_BYTES

MEMORY_MB, IDLE_PERCENT, STEADY_S = 150, 1.0, 60.0
IDLE_FOR_S = 120.0
METRICS = "127.0.0.1:19811"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.resources")
    parser.add_argument("--volumes", type=int, default=10_000)
    options = parser.parse_args()
    with Lab.start(Topology(storage=0, compute=0, sans=()), name="resources") as lab, ControlPlane.start(lab) as plane:
        plane.define_resources()
        few = options.volumes // 10
        _make_node(plane)
        _make(plane, range(few))
        lists_of_few = _lists_of_restart(plane, lab.directory, few)
        _make(plane, range(few, options.volumes))
        lines, missed = _measure(plane, lab.directory, options.volumes, few, lists_of_few)
    sys.stdout.write("\n".join(lines) + "\n")
    verdict = "a bar is missed" if missed else "every bar holds"
    evidence.write("resources", f"python -m bench.resources --volumes {options.volumes}", lines, verdict)
    return 1 if missed else 0


def _make_node(plane: ControlPlane) -> None:
    with KubernetesStore(plane.kubeconfig) as store:
        spec = AoENodeSpec(
            pools=(PoolSpec(name="thin", volume_group="vg0", thin_pool="tp0"),),
            sans=(SanSpec(name="main", interface="san0", shelves=(ShelfRange(first=10, last=10),)),),
        )
        store.create(AoENode(metadata=ObjectMeta(name="storage1"), spec=spec))


def _make(plane: ControlPlane, numbers: range) -> None:
    with KubernetesStore(plane.kubeconfig) as store, progress.step(f"making {len(numbers)} AoEVolumes"):

        def make(number: int) -> None:
            name = f"v{number}"
            made = store.create(
                AoEVolume(
                    metadata=ObjectMeta(name=name, finalizers=(FINALIZER,)),
                    spec=AoEVolumeSpec(size=str(SIZE_BYTES), pool="thin", node="storage1"),
                )
            )
            status = AoEVolumeStatus(
                observed_generation=made.metadata.generation, phase="Ready", node="storage1", size=str(SIZE_BYTES),
                device_size=str(SIZE_BYTES), sans=("main",), serial=serial_of(VolumeId(name)),
            )  # fmt: skip
            store.update_status(AoEVolume(metadata=made.metadata, spec=made.spec, status=status))

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(make, numbers))


def _lists_of_restart(plane: ControlPlane, place: Path, count: int) -> int:
    """Return how many lists a storage role asks for that comes back to volumes it knows."""
    first = _Role(plane, place, count)
    first.await_steady()
    first.end()
    before = _lists(plane)
    again = _Role(plane, place, count)
    again.await_steady()
    again.end()
    return _lists(plane) - before


def _measure(plane: ControlPlane, place: Path, count: int, few: int, lists_of_few: int) -> tuple[list[str], bool]:
    lines: list[str] = []
    missed = False

    def judge(what: str, figure: float, bar: float, unit: str) -> None:
        nonlocal missed
        missed |= figure > bar
        lines.append(f"{what}: {figure:.1f} {unit} (bar: {bar:g}), {'holds' if figure <= bar else 'MISSED'}")

    first = _Role(plane, place, count)
    lines.append(f"first start, with each volume new to kopf: steady after {first.await_steady():.1f} s")
    first.end()

    def restart(which: str) -> tuple[_Role, int]:
        before = _lists(plane)
        role = _Role(plane, place, count)
        judge(f"{which} restart to steady", role.await_steady(), STEADY_S, "s")
        return role, _lists(plane) - before

    again, lists = restart("first")
    again.end()
    again, other_lists = restart("second")
    lines.append(f"lists asked for by a restart, of all our kinds and of definitions: {lists}")
    judge("the second restart's differ from that by", abs(other_lists - lists), 0, "lists")
    judge(f"those of a restart with {few} volumes differ from that by", abs(lists_of_few - lists), 0, "lists")
    before, cpu_s = _lists(plane), again.cpu_s()
    time.sleep(IDLE_FOR_S)
    judge("processor while idle", (again.cpu_s() - cpu_s) / IDLE_FOR_S * 100, IDLE_PERCENT, "%")
    judge(f"lists asked for in {IDLE_FOR_S:g} s of idleness", _lists(plane) - before, 0, "lists")
    judge("memory (RSS)", again.memory_mb(), MEMORY_MB, "MB")
    again.end()
    return lines, missed


class _Role:
    """The process under measurement."""

    def __init__(self, plane: ControlPlane, place: Path, count: int) -> None:
        self._count = count
        self._begin = time.monotonic()
        log = (place / f"role-{time.monotonic_ns()}.log").open("wb")
        argv = [sys.executable, "-m", "bench.storage_on_fakes", str(plane.kubeconfig), str(count), str(place / "seen")]
        self._child = subprocess.Popen([*argv, METRICS], stderr=log, cwd=CHECKOUT)
        log.close()

    def await_steady(self) -> float:
        """Return after how many seconds every volume had been looked at."""
        while (done := _looked_at()) < self._count:
            if self._child.poll() is not None:
                raise SystemExit("the storage role has ended")
            if time.monotonic() - self._begin > 1800:
                raise SystemExit(f"{done} of {self._count} volumes after half an hour")
            time.sleep(0.5)
        return time.monotonic() - self._begin

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self._child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def memory_mb(self) -> float:
        match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self._child.pid}/status").read_text())
        assert match is not None
        return int(match[1]) * 1024 / 1e6

    def end(self) -> None:
        self._child.send_signal(signal.SIGTERM)
        self._child.wait(120)


def _looked_at() -> int:
    try:
        with urllib.request.urlopen(f"http://{METRICS}/metrics", timeout=5) as reply:
            text = reply.read().decode()
    except OSError:
        return 0
    found = re.findall(r'aoe_csi_reconcile_seconds_count\{kind="aoevolumes",result="done"\} (\S+)', text)
    return int(sum(float(one) for one in found))


def _lists(plane: ControlPlane) -> int:
    """Return how many lists of our kinds, and of definitions, the API server has been asked for."""
    text = plane.kubectl("get", "--raw=/metrics", timeout_s=60).stdout
    asked = re.findall(r"^apiserver_request_total\{([^}]*)\} (\S+)$", text, re.MULTILINE)
    lists = ((labels, count) for labels, count in asked if 'verb="LIST"' in labels)
    kinds = re.compile(r'group="(aoe-csi\.dev|apiextensions\.k8s\.io)"')
    return int(sum(float(count) for labels, count in lists if kinds.search(labels)))


if __name__ == "__main__":
    sys.exit(main())
