"""csi-sanity 5.6 against the real thing: controller on a storage machine, node on a compute machine, over AoE.

A run takes minutes on emulated processors and keeps two machines busy one at a time, so two lanes run at once, each
with a storage machine of its own.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from aoe_lab.csi_sanity import run_csi_sanity
from aoe_lab.evidence import Evidence
from aoe_lab.standalone import SOCKET, THICK, THIN, Standalone

pytestmark = pytest.mark.long

CONTROLLER = "/run/sanity-controller.sock"


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


SHORT = ((Run(pool=THIN, access="mount", storage="storage1", node="compute1"),),)
LONG = (
    (Run(pool=THIN, access="block", storage="storage1", node="compute1"),),
    (
        Run(pool=THICK, access="block", storage="storage2", node="compute2"),
        Run(pool=THICK, access="mount", storage="storage2", node="compute2"),
        Run(pool=THICK, access="mount", storage="storage2", node="storage2"),
        Run(pool=THICK, access="block", storage="storage2", node="storage2"),
    ),
)


@pytest.mark.parametrize(
    "lanes",
    [pytest.param(SHORT, id="thin-mount"), pytest.param(LONG, id="the-others")],
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
    elsewhere = None
    if run.node != run.storage:
        elsewhere = CONTROLLER
        node.run(["rm", "-f", CONTROLLER])
        node.forward_to(cluster.storage[run.storage].machine.forward_from(SOCKET), CONTROLLER)
    verdict = run_csi_sanity(node, SOCKET, controller=elsewhere, pool=run.pool, access=run.access)
    assert verdict.failed == 0, f"{run}: {verdict.output[-8000:]}"
    assert verdict.passed > 40, verdict.summary
    return str(verdict)
