"""aoe-csi without Kubernetes on the session's lab: installed once, shared by all tests, each with its own volumes."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator

import grpc
import pytest

from aoe_lab import Lab
from aoe_lab.standalone import THICK, Standalone, Tuning, Workload

_RUN = f"{int(time.time()) & 0xFFFFF:x}"
"""Tells this run's volumes from those that an earlier one on the same machines may have left behind."""
_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cheap and telling first: machines with nothing on them yet, the plain path, the invariants, the foreign suite."""
    order = {"test_lab_machines.py": -1, "test_first_path.py": 0, "test_csi_sanity.py": 2}
    items.sort(key=lambda item: order.get(item.path.name, 1))


@pytest.fixture(scope="session")
def installed(lab: Lab) -> Iterator[Standalone]:
    cluster = Standalone(lab, Tuning())
    cluster.install()
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(installed: Standalone) -> Standalone:
    """The cluster with every server answering: a test before may have killed machines."""
    for endpoint in installed.endpoints():
        try:
            endpoint.identity  # noqa: B018 - connects when it is not
            endpoint.connect()
        except grpc.RpcError:
            endpoint.connect()
    return installed


@pytest.fixture
def workload(cluster: Standalone, request: pytest.FixtureRequest) -> Iterator[Callable[..., Workload]]:
    """Make volumes that are taken away again, however the test ends."""
    made: list[Workload] = []
    stem = request.node.name.removeprefix("test_").replace("_", "-").partition("[")[0][:24].strip("-")

    def make(**more: object) -> Workload:
        one = Workload(cluster=cluster, name=f"{stem}-{_RUN}-{next(_numbers)}", **more)  # type: ignore[arg-type]
        made.append(one)
        return one

    yield make
    for one in reversed(made):
        clean_up(one)


@pytest.fixture
def formatted(workload: Callable[..., Workload]) -> Workload:
    """A thick volume of 64 MiB that has been given its file system, and that nobody holds."""
    made = workload(pool=THICK, size_bytes=64 << 20)
    made.create()
    made.attach("compute1")
    made.detach("compute1")
    return made


def clean_up(one: Workload) -> None:
    """Take a volume away from everybody and delete it; what a test did already is found done."""
    if not one.volume_id:
        return
    for compute in list(one.context):
        for undo in (one.node_unpublish, one.unstage, one.unpublish):
            with contextlib.suppress(grpc.RpcError):
                undo(compute)
    one.delete()
