"""The real host passes the very tests that the fakes pass: run inside a throwaway machine of its own."""

import re

import pytest

from aoe_lab import DataDisk, Lab, Topology
from aoe_lab.evidence import Evidence
from aoe_lab.lab import default_name


@pytest.fixture(autouse=True)
def _sound_machines() -> None:
    """Those of the session stay off: these tests boot their own."""


@pytest.mark.long
def test_the_real_host_and_the_fakes_keep_one_contract(evidence: Evidence) -> None:
    with Lab.start(Topology(storage=1, compute=0, sans=("main",)), name=f"{default_name()}-contract") as lab:
        # Not the lab's main machines: the tests take the disks, and the driver, for themselves.
        finished = lab.machine("storage1").run(
            "cd /opt/aoe-csi/src && aoe-python -m pytest tests/contract --host=real -q -p no:cacheprovider --tb=short",
            check=False,
            timeout_s=1500,
        )
    assert finished.code == 0, finished.stdout[-8000:] + finished.stderr[-2000:]
    passed = re.search(r"(\d+) passed", finished.stdout)
    assert passed is not None, finished.stdout
    evidence(f"{passed[1]} contract tests passed on real LVM, systemd, aoe driver, nftables and file systems")


@pytest.mark.long
def test_libvirt_and_its_fake_keep_one_contract(evidence: Evidence) -> None:
    topology = Topology(storage=0, compute=0, hypervisors=1, disks_of={"hypervisor1": (DataDisk(), DataDisk())})
    with Lab.start(topology, name=f"{default_name()}-libvirt") as lab:
        finished = lab.machine("hypervisor1").run(
            "cd /opt/aoe-csi/src && aoe-python -m pytest tests/contract/test_hypervisor.py --host=real -q "
            "-p no:cacheprovider --tb=short",
            check=False,
            timeout_s=2400,
        )
    assert finished.code == 0, finished.stdout[-8000:] + finished.stderr[-2000:]
    passed = re.search(r"(\d+) passed", finished.stdout)
    assert passed is not None, finished.stdout
    assert "skipped" not in finished.stdout
    evidence(f"{passed[1]} contract tests passed on real libvirt with a running guest")
