"""The demonstrations, as a person runs them: twice in a row, and interrupted; and a cluster to play with.

Nothing of them is left.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aoe_lab.cachedir import CHECKOUT
from aoe_lab.kubernetes.programs import KUBERNETES, ensure_programs

if TYPE_CHECKING:
    from aoe_lab.evidence import Evidence

pytestmark = pytest.mark.long

LIMIT_S = 2400
PLACE = "/var/tmp/aoe-lab"
"""With a lab's name in the command line of whatever it runs."""
PLAYED_WITH = "played-with"
# A step in the middle of each: machines run, volumes are in use.
STEPS = {
    "aoe_lab.demo": "NodeStageVolume",
    "aoe_lab.kubernetes.demo": "Pull the power",
    "aoe_lab.kubernetes.demo_guest": "Pull the power",
}
DEMONSTRATIONS = pytest.mark.parametrize("module", STEPS, ids=["standalone", "kubernetes", "guest"])
BARS_S = {"aoe_lab.kubernetes.demo": 360}
"""How long one may take whose programs and images are in the cache; told, not asserted: machines are noisy."""


def left_over(lab: str = "demo") -> list[str]:
    """Return namespaces, emulators and disk servers that are still there of labs whose names begin so."""
    namespaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    place = f"{PLACE}/{lab}".encode()
    running = [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if place in read(path)]
    return [line for line in namespaces.splitlines() if line.startswith(f"aoe-{lab}")] + running


def read(path: Path) -> bytes:
    """Return a file's content, nothing of a process that has just ended."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


@DEMONSTRATIONS
def test_a_demonstration_works_twice_and_cleans_up(module: str, evidence: Evidence) -> None:
    for turn in ("first", "second"):
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", module], cwd=CHECKOUT, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert left_over() == []
        claims = done.stdout.count("✔")
        steps = len(re.findall(r"^\[ ?\d+\]", done.stdout, re.MULTILINE))
        assert claims > 4
        took_s = time.monotonic() - begin
        bar_s = BARS_S.get(module)
        judged = "" if bar_s is None else f" (bar {bar_s} s: {'holds' if took_s <= bar_s else 'MISSED'})"
        evidence(f"{turn} run: {steps} steps, {claims} claims checked, {took_s:.0f} s{judged}")


@DEMONSTRATIONS
def test_an_interrupted_demonstration_cleans_up(module: str, evidence: Evidence) -> None:
    # As at a terminal: whoever is started in the background is born deaf to this signal, and so are we perhaps.
    step = STEPS[module]
    words = ["env", "--default-signal=INT", sys.executable, "-u", "-m", module]
    interrupted = subprocess.Popen(words, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert interrupted.stdout is not None
    for line in interrupted.stdout:
        if step in line:
            break
    time.sleep(1)
    interrupted.send_signal(signal.SIGINT)
    rest, _ = interrupted.communicate(timeout=300)
    assert interrupted.returncode == 130, rest
    assert left_over() == []
    evidence(f"interrupted at {step!r}: exit 130, no machine, network or server left")


def test_a_cluster_to_play_with_answers_at_the_address_it_tells(evidence: Evidence) -> None:
    command = [sys.executable, "-m", "aoe_lab.kubernetes", f"--name={PLAYED_WITH}"]
    begin = time.monotonic()
    up = subprocess.run([*command, "up"], cwd=CHECKOUT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    took_s = time.monotonic() - begin
    try:
        assert up.returncode == 0, up.stdout[-3000:] + up.stderr[-3000:]
        word, _, said = up.stdout.splitlines()[-1].partition(" ")
        name, _, path = said.partition("=")
        assert (word, name) == ("export", "KUBECONFIG")
        kubectl = ensure_programs((KUBERNETES,))["kubectl"]
        nodes = subprocess.run(
            [kubectl, "get", "aoenodes", "--no-headers"],
            env={**os.environ, name: path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert nodes.startswith("storage1 "), nodes
    finally:
        subprocess.run([*command, "down"], cwd=CHECKOUT, check=True)
    assert left_over(PLAYED_WITH) == []
    evidence(f"make cluster: {took_s:.0f} s until its KUBECONFIG was told; kubectl asked with it, nothing left after")
