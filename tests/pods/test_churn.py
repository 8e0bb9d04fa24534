"""Everything of ours, and kubelet, killed at random while claims come and go: it converges, and nothing is left."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from aoe_lab.errors import LabError
from aoe_lab.kubernetes.helm import NAMESPACE

from .claims import DEVICE, DIRECTORY, sleeping
from .writer import Writer

if TYPE_CHECKING:
    from aoe_lab.evidence import Evidence
    from aoe_lab.kubernetes.cluster import Cluster

    from .claims import Claims

LOOK_S = 3.0
WRONG = 3
"""How a container ends whose command found something else than it was to, or could not write."""
STORM_S = SETTLE_S = 2400.0
"""At most, in vain. Thirty pods at once are a lot of work for emulated machines: half an hour of processor time."""
VICTIMS = (
    ("aoe-operator storage",),
    ("aoe-csi controller", "csi-attacher", "csi-provisioner", "csi-snapshotter", "csi-resizer"),
    ("aoe-csi node",),
    ("aoe-operator cluster",),
    ("pod",),
    ("kubelet",),
)
"""By command line; of the processes of one pod, the controller's, one in each turn."""


@dataclass(slots=True)
class Killer:
    """Kills one thing after the other until it is stopped, each in its turn; where, and when, is decided by `dice`."""

    cluster: Cluster
    dice: random.Random
    pause_s: tuple[float, float]
    """Before each kill."""
    patience_s: float
    """How long one waits before that for what was killed last to be up again: else no claim comes or goes meanwhile."""
    kills: Counter[str] = field(default_factory=Counter)
    failed: list[Exception] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        try:
            self._run()
        except Exception as error:  # noqa: BLE001 - the test tells of it.
            self.failed.append(error)

    def _run(self) -> None:
        for turn in itertools.cycle([itertools.cycle(group) for group in VICTIMS]):
            what = next(turn)
            patient_until = time.monotonic() + self.patience_s
            while time.monotonic() < patient_until and not self._all_up():
                if self._stop.wait(1):
                    return
            if self._stop.wait(self.dice.uniform(*self.pause_s)):
                return
            try:
                self.kills[what] += self._kill(what)
            except LabError:
                continue  # kubectl and ssh have their bad moments, too; there is always another victim.

    def _all_up(self) -> bool:
        try:
            return self.cluster.missing() is None
        except LabError:
            return False

    def had_all(self) -> bool:
        """Tell whether something of each group was killed."""
        return all(any(self.kills[what] for what in group) for group in VICTIMS)

    def _kill(self, what: str) -> bool:
        if what == "pod":
            return self._kill_pod()
        machines = self.dice.sample(self.cluster.lab.machines, len(self.cluster.lab.machines))
        # The bracket keeps pkill from finding the shell that runs it.
        kill = (
            f"pkill -KILL -f '[{what[0]}]{what[1:]}'" if what != "kubelet" else "systemctl kill --signal=KILL kubelet"
        )
        return any(machine.run(kill, check=False).code == 0 for machine in machines)

    def _kill_pod(self) -> bool:
        """Delete the pod whose containers died most often: its successor is started at once, it only after a while."""
        listed = json.loads(self.cluster.plane.kubectl("get", "pods", f"-n{NAMESPACE}", "-ojson").stdout)["items"]
        pods = self.dice.sample(listed, len(listed))
        if not pods:
            return False
        most = max(pods, key=restarts)
        self.cluster.plane.kubectl("delete", f"-n{NAMESPACE}", f"pod/{most['metadata']['name']}", "--wait=false")
        return True

    def stop(self) -> None:
        self._stop.set()


def restarts(pod: dict[str, Any]) -> int:
    """Return how often a pod's containers were started anew; `aoe-csi controller` is one that begins with the pod."""
    status = pod["status"]
    return sum(one["restartCount"] for kind in ("initC", "c") for one in status.get(f"{kind}ontainerStatuses", ()))


@dataclass(frozen=True, slots=True)
class SeenPod:
    """What a look shows of a pod."""

    phase: str
    exit_codes: frozenset[int]
    """Of the present and the former run of its container, as far as they have ended."""


def has_succeeded(pods: dict[str, SeenPod], name: str) -> bool:
    return name in pods and pods[name].phase == "Succeeded"


@dataclass(slots=True)
class Life:
    """A claim that one pod writes to and another, on the next node, reads."""

    claims: Claims
    name: str
    nodes: tuple[str, str]
    storage_class: str
    block: bool
    """A raw device; else a file system, which costs most of the time there is."""
    stage: str = "new"

    def step(self, pods: dict[str, SeenPod], claims: set[str]) -> None:
        """Go a step further, if what the last one asked for has come."""
        writer, reader = f"{self.name}-w", f"{self.name}-r"
        file = DEVICE if self.block else f"{DIRECTORY}/file"
        if self.stage == "new":
            self.claims.claim(self.name, size="64Mi", storage_class=self.storage_class, block=self.block)
            self._pod(writer, self.nodes[0], f"echo {self.name} > {file} && sync")
            self.stage = "written"
        elif self.stage == "written" and has_succeeded(pods, writer):
            self.claims.kubectl("delete", "pod", writer, "--wait=false")
            self._pod(reader, self.nodes[1], f"head -n 1 {file} | grep -q '^{self.name}$'")
            self.stage = "read"
        elif self.stage == "read" and has_succeeded(pods, reader):
            self.claims.kubectl("delete", f"pod/{reader}", f"pvc/{self.name}", "--wait=false")
            self.stage = "ending"
        elif self.stage == "ending" and not {writer, reader} & pods.keys() and self.name not in claims:
            self.stage = "over"
        for name, lost in ((writer, "could not write"), (reader, "lost what was written")):
            assert name not in pods or WRONG not in pods[name].exit_codes, f"{name} {lost}"

    def _pod(self, name: str, node: str, command: str) -> None:
        """Run a command. A container that does not start, or is killed, says nothing of what it was to do: it is
        started again, and only the command's own failure ends it with WRONG."""
        place = {"devicePath": DEVICE} if self.block else {"mountPath": DIRECTORY}
        used = {"volumeDevices" if self.block else "volumeMounts": [{"name": "data", **place}]}
        spec: dict[str, Any] = sleeping(used)
        spec["containers"][0]["command"] = ["sh", "-c", f"{{ {command}; }} || exit {WRONG}"]
        self.claims.pod(name, self.name, node=node, containers=spec["containers"], restartPolicy="OnFailure")


@dataclass(frozen=True, slots=True)
class Storm:
    """How many claims there are at a time, and how long, and how often, something is killed meanwhile."""

    crowd: int
    seconds: int
    pause_s: tuple[float, float]
    patience_s: float

    def __str__(self) -> str:
        return f"{self.crowd}-{self.seconds}"


@pytest.mark.parametrize(
    "storm",
    [Storm(5, 60, (2.0, 6.0), 0.0), pytest.param(Storm(30, 600, (5.0, 40.0), 180.0), marks=pytest.mark.long)],
    ids=str,
)
def test_whatever_is_killed_claims_come_and_go(
    cluster: Cluster, claims: Claims, evidence: Evidence, storm: Storm
) -> None:
    crowd, seconds = storm.crowd, storm.seconds
    claims.claim("steady")
    steady = Writer.start(claims, "steady", "steady")
    seed = time.time_ns()
    dice = random.Random(seed)
    killer = Killer(cluster, random.Random(seed), storm.pause_s, storm.patience_s)
    killing = threading.Thread(target=killer.run)
    killing.start()
    begin = time.monotonic()
    lives: list[Life] = []
    stormed_s, moved = 0.0, 0
    try:
        while True:
            under_way = [life for life in lives if life.stage != "over"]
            if not stormed_s:
                moved = sum(life.stage not in ("new", "written") for life in lives)
                # The longer storm spares nobody, and is none over a still sea.
                spared = seconds > 300 and (moved < crowd / 3 or not killer.had_all())
                if time.monotonic() - begin > seconds and not spared:
                    killer.stop()
                    stormed_s = time.monotonic() - begin
            if stormed_s and not under_way:
                break
            limit_s = STORM_S if not stormed_s else stormed_s + SETTLE_S
            assert time.monotonic() - begin < limit_s, (killer.kills, [(one.name, one.stage) for one in under_way])
            if not stormed_s and len(under_way) < crowd:
                nodes = dice.sample([machine.name for machine in cluster.compute_machines], 2)
                storage_class = dice.choice(("thin", "thick", "at-once"))
                block = len(lives) % 2 == 0
                under_way.append(Life(claims, f"life-{len(lives)}", (nodes[0], nodes[1]), storage_class, block))
                lives.append(under_way[-1])
            pods, there = look(claims)
            for life in under_way:
                life.step(pods, there)
            time.sleep(LOOK_S)
    finally:
        killer.stop()
        killing.join()
    assert not killer.failed, killer.failed
    assert killer.kills.total() > 3, killer.kills
    settled_s = time.monotonic() - begin - stormed_s
    cluster.await_ready()
    steady.await_more()
    assert (steady.missing(), steady.restarts()) == (0, 0)
    each = ", ".join(f"{name}: {number}" for name, number in killer.kills.items())
    evidence(
        f"seed {seed}: {killer.kills.total()} kills in {stormed_s:.0f} s ({each})"
        f" while {len(lives)} claims, {crowd} at a time, were written, read on the other node and deleted, {moved} of"
        f" them written before the last kill; the last was gone {settled_s:.0f} s after it; nothing is left;"
        f" another pod wrote on undisturbed, {steady.acknowledged()} records"
    )


def look(claims: Claims) -> tuple[dict[str, SeenPod], set[str]]:
    """Return the pods by their names, and the claims: one question for all."""
    items = json.loads(claims.kubectl("get", "pods,pvc", "-o", "json").stdout)["items"]
    pods = {one["metadata"]["name"]: seen(one["status"]) for one in items if one["kind"] == "Pod"}
    return pods, {one["metadata"]["name"] for one in items if one["kind"] == "PersistentVolumeClaim"}


def seen(status: dict[str, Any]) -> SeenPod:
    ended = [
        one[when]["terminated"]["exitCode"]
        for one in status.get("containerStatuses", ())
        for when in ("state", "lastState")
        if "terminated" in one.get(when, {})
    ]
    return SeenPod(phase=status["phase"], exit_codes=frozenset(ended))
