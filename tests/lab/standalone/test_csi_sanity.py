"""csi-sanity 5.6 against the real thing: controller on a storage machine, node on a compute machine, over AoE.

A run takes minutes on emulated processors and keeps two machines busy one at a time, so two run at once, each with a
storage machine of its own.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from aoe_lab.evidence import Evidence
from aoe_lab.standalone import SOCKET, THICK, THIN, Standalone

PARAMETERS = "/run/sanity-parameters.yaml"
CONTROLLER = "/run/sanity-controller.sock"
REPORT = "/run/sanity-report.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of the suite."""

    pool: str
    access: str
    storage: str
    node: str

    def __str__(self) -> str:
        where = "on one machine" if self.storage == self.node else f"{self.storage} to {self.node} over AoE"
        return f"{self.pool} {self.access}, {where}"


SHORT = (
    (Run(pool=THIN, access="mount", storage="storage1", node="compute1"),),
    (Run(pool=THICK, access="block", storage="storage2", node="compute2"),),
)
LONG = (
    (Run(pool=THIN, access="block", storage="storage1", node="compute1"),),
    (
        Run(pool=THICK, access="mount", storage="storage2", node="compute2"),
        Run(pool=THICK, access="mount", storage="storage2", node="storage2"),
        Run(pool=THICK, access="block", storage="storage2", node="storage2"),
    ),
)


@pytest.mark.parametrize(
    "lanes",
    [pytest.param(SHORT, id="thin-mount-and-thick-block"), pytest.param(LONG, id="the-others", marks=pytest.mark.long)],
)
def test_csi_sanity(cluster: Standalone, evidence: Evidence, lanes: tuple[tuple[Run, ...], ...]) -> None:
    def follow(lane: tuple[Run, ...]) -> list[str]:
        return [f"{run}: {sanity(cluster, run)}" for run in lane]

    with ThreadPoolExecutor(len(lanes)) as pool:
        for verdicts in pool.map(follow, lanes):
            for verdict in verdicts:
                evidence(verdict)


def sanity(cluster: Standalone, run: Run) -> str:
    """Run csi-sanity and return its verdict. Asserts that nothing failed."""
    node = next(one.machine for one in cluster.endpoints() if one.machine.name == run.node)
    node.run(f"printf 'pool: {run.pool}\\n' > {PARAMETERS}; rm -rf /run/sanity-mount /run/sanity-stage")
    elsewhere = []
    if run.node != run.storage:
        node.run(["rm", "-f", CONTROLLER])
        node.forward_to(cluster.storage[run.storage].machine.forward_from(SOCKET), CONTROLLER)
        elsewhere = [f"--csi.controllerendpoint=unix://{CONTROLLER}"]
    finished = node.run(
        [
            "/opt/aoe-csi/tools/bin/csi-sanity",
            f"--csi.endpoint=unix://{SOCKET}",
            "--csi.mountdir=/run/sanity-mount",
            "--csi.stagingdir=/run/sanity-stage",
            f"--csi.testvolumesize={32 << 20}",
            f"--csi.testvolumeexpandsize={48 << 20}",
            f"--csi.testvolumeaccesstype={run.access}",
            f"--csi.testvolumeparameters={PARAMETERS}",
            *elsewhere,
            "--ginkgo.no-color",
            f"--ginkgo.json-report={REPORT}",
        ],
        check=False,
        timeout_s=1800,
    )
    verdict = re.search(r"(\d+) Passed \| (\d+) Failed \| (\d+) Pending \| (\d+) Skipped", finished.stdout)
    assert verdict is not None, f"{run}: {finished.stdout[-4000:]}{finished.stderr[-2000:]}"
    assert finished.code == 0, f"{run}: {finished.stdout[-8000:]}"
    assert int(verdict[1]) > 40, verdict[0]
    assert verdict[2] == "0", f"{run}: {finished.stdout[-8000:]}"
    return f"{verdict[0]}; skipped: {'; '.join(skipped(node.run(['cat', REPORT]).stdout))}"


def skipped(report: str) -> list[str]:
    """Return the names of the specs that Ginkgo's JSON report shows as skipped or pending."""
    return sorted(
        " ".join((*(spec["ContainerHierarchyTexts"] or ()), spec["LeafNodeText"]))
        for suite in json.loads(report)
        for spec in suite["SpecReports"]
        if spec["State"] in ("skipped", "pending") and spec["LeafNodeType"] == "It"
    )
