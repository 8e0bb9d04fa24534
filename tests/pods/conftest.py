"""A real cluster with real kubelets; every test below this folder is marked `lab`.

A session starts its own, or uses the running one that AOE_LAB_CLUSTER names.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aoe_lab.kubernetes.cluster import Cluster
from aoe_lab.lab import default_name

from .claims import Claims

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster of one storage and two compute machines and two SANs, with aoe-csi installed by its chart.

    AOE_LAB_COMPUTE says how many compute machines otherwise: the tests of `make test-main-pods` do with one, since the
    storage machine is a node, too.
    """
    if running := os.environ.get("AOE_LAB_CLUSTER"):
        attached = Cluster.attach(running)
        attached.lab.heal()
        yield attached
        return
    compute = int(os.environ.get("AOE_LAB_COMPUTE", "2"))
    with Cluster.start(storage=1, compute=compute, sans=("main", "second"), name=f"{default_name()}-pods") as started:
        started.install()
        started.await_ready()
        yield started


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cheap and telling first; what turns the whole cluster upside down comes last."""
    order = {"test_first_path.py": 0, "test_volumes.py": 1, "test_topology.py": 2, "test_releases.py": 4}
    order |= {"test_churn.py": 5, "test_restored_etcd.py": 6}
    places = [at for at, item in enumerate(items) if item.path.parent == Path(__file__).parent]
    ours = sorted((items[at] for at in places), key=lambda item: order.get(item.path.name, 3))
    for at, item in zip(places, ours, strict=True):
        items[at] = item


@pytest.fixture
def claims(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Claims]:
    """A namespace of the test's own; when the test has ended, it and all its volumes are gone, on the hosts too."""
    with Claims.of_test(cluster, request.node.name) as made:
        yield made
