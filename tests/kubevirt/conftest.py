"""A real KubeVirt on a cluster of the lab; every test below this folder is marked `lab` and `long`.

One machine runs for all tests that can share it: emulated twice, it takes minutes to boot. KubeVirt brings a machine
the claims of its own namespace alone, so that this is the tests', too; each gives back what it made there.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from tests.kubevirt.machines import OWN_CLAIM, ROOT, documented_claim, documented_machine, fill, shape
from tests.pods.claims import Claims

from aoe_lab.kubernetes.cluster import Cluster
from aoe_lab.kubevirt import installation
from aoe_lab.kubevirt.virtual_machine import READY_S, VirtualMachine
from aoe_lab.lab import default_name

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMESPACE = "machines"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster of one storage and two compute machines with aoe-csi and KubeVirt, or the one AOE_LAB_CLUSTER names."""
    if running := os.environ.get("AOE_LAB_CLUSTER"):
        attached = Cluster.attach(running)
        attached.lab.heal()
        yield attached
        return
    name = f"{default_name()}-kubevirt"
    more = installation.additions()
    with Cluster.start(storage=1, compute=2, name=name, more=more) as started:
        started.install()
        started.await_ready()
        installation.install(started)
        yield started


@pytest.fixture(scope="session")
def home(cluster: Cluster) -> Iterator[Claims]:
    """The machine's namespace; in the end it and all its volumes are gone, on the hosts too."""
    with Claims.of_test(cluster, NAMESPACE) as made:
        yield made


@pytest.fixture(scope="session")
def running(cluster: Cluster, home: Claims) -> Iterator[VirtualMachine]:
    """The machine that serves every test, as docs/guests-kubernetes.md has it: from a block claim that two nodes may
    have, so that it can move."""
    home.apply(documented_claim())
    fill(home, OWN_CLAIM)
    made = VirtualMachine.create(cluster, home.name, documented_machine())
    made.await_running()
    yield made
    made.delete()


@pytest.fixture
def claims(cluster: Cluster, home: Claims) -> Iterator[Claims]:
    """The namespace; what a test made in it is gone when it has ended, on the hosts too."""
    before = shape(cluster)
    yield home
    found = home.kubectl("get", "pvc", "--output=name").stdout.split()
    if others := [name for name in found if not name.endswith(f"/{OWN_CLAIM}")]:
        home.kubectl("delete", *others, f"--timeout={READY_S:g}s", timeout_s=READY_S + 30)

    def more() -> str | None:
        return "\n".join((shape(cluster) - before).elements()) or None

    home.await_("what was made to be gone", more, READY_S)


@pytest.fixture
def machine(running: VirtualMachine, claims: Claims) -> Iterator[VirtualMachine]:
    """The machine, with no disk but its own, before and after."""
    yield running
    # First: what one of these wants is put in again.
    claims.kubectl("delete", "aoeguestdisks", "--all", f"--timeout={READY_S:g}s", timeout_s=READY_S + 30)
    for disk in running.own_disks():
        if disk != ROOT:
            running.unplug(disk)
            running.await_phase(disk, None)
