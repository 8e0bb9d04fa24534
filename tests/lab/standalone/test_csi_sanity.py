"""csi-sanity 5.6 against the real thing: controller on a storage machine, node on a compute machine, over AoE."""

import re

import pytest

from aoe_lab import Machine
from aoe_lab.evidence import Evidence
from aoe_lab.standalone import SOCKET, THICK, THIN, Standalone

# Minutes each on emulated processors.
pytestmark = pytest.mark.long

PARAMETERS = "/run/sanity-parameters.yaml"
CONTROLLER = "/run/sanity-controller.sock"

OVER_AOE = [
    pytest.param("storage1", THIN, "mount", id="thin-mount"),
    pytest.param("storage1", THIN, "block", id="thin-block"),
    pytest.param("storage2", THICK, "mount", id="thick-mount"),
    pytest.param("storage2", THICK, "block", id="thick-block"),
]


@pytest.mark.parametrize(("storage", "pool", "access"), OVER_AOE)
def test_csi_sanity_over_aoe(cluster: Standalone, evidence: Evidence, storage: str, pool: str, access: str) -> None:
    node = cluster.compute["compute1"].machine
    node.run(f"rm -f {CONTROLLER}")
    node.forward_to(cluster.storage[storage].machine.forward_from(SOCKET), CONTROLLER)
    evidence(sanity(node, pool, access, f"--csi.controllerendpoint=unix://{CONTROLLER}"))


@pytest.mark.parametrize("access", ["mount", "block"])
def test_csi_sanity_on_one_machine(cluster: Standalone, evidence: Evidence, access: str) -> None:
    evidence(sanity(cluster.storage["storage2"].machine, THICK, access))


def sanity(node: Machine, pool: str, access: str, *more: str) -> str:
    """Run csi-sanity on a machine and return its verdict. Asserts that nothing failed."""
    node.run(f"printf 'pool: {pool}\\n' > {PARAMETERS}; rm -rf /run/sanity-mount /run/sanity-stage")
    finished = node.run(
        [
            "/opt/aoe-csi/tools/bin/csi-sanity",
            f"--csi.endpoint=unix://{SOCKET}",
            "--csi.mountdir=/run/sanity-mount",
            "--csi.stagingdir=/run/sanity-stage",
            f"--csi.testvolumesize={32 << 20}",
            f"--csi.testvolumeexpandsize={48 << 20}",
            f"--csi.testvolumeaccesstype={access}",
            f"--csi.testvolumeparameters={PARAMETERS}",
            *more,
            "--ginkgo.no-color",
        ],
        check=False,
        timeout_s=1500,
    )
    verdict = re.search(r"(\d+) Passed \| (\d+) Failed \| (\d+) Pending \| (\d+) Skipped", finished.stdout)
    assert verdict is not None, finished.stdout[-4000:] + finished.stderr[-2000:]
    assert finished.code == 0, finished.stdout[-8000:]
    assert int(verdict[1]) > 40, verdict[0]
    assert verdict[2] == "0", finished.stdout[-8000:]
    return verdict[0]
