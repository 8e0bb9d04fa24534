"""A real KubeVirt on a cluster of the lab; every test below this folder is marked `lab` and `long`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from tests.pods.claims import Claims

from aoe_lab.kubernetes.cluster import OUTLASTING_DEAD_S, Cluster
from aoe_lab.kubevirt import installation
from aoe_lab.lab import default_name

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster of one storage and two compute machines with aoe-csi and KubeVirt, or the one AOE_LAB_CLUSTER names."""
    if running := os.environ.get("AOE_LAB_CLUSTER"):
        attached = Cluster.attach(running, dead_s=OUTLASTING_DEAD_S)
        attached.lab.heal()
        yield attached
        return
    name = f"{default_name()}-kubevirt"
    more = installation.additions()
    with Cluster.start(storage=1, compute=2, name=name, more=more, dead_s=OUTLASTING_DEAD_S) as started:
        started.install(**installation.VALUES)
        started.await_ready()
        installation.install(started)
        yield started


@pytest.fixture
def claims(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Claims]:
    """A namespace of the test's own; when the test has ended, it and all its volumes are gone, on the hosts too."""
    with Claims.of_test(cluster, request.node.name) as made:
        yield made
