"""A cluster whose node has libvirt, with a guest that runs; every test below this folder is marked `lab` and `long`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from tests.guests.guest_disks import GuestDisks
from tests.pods.claims import Claims

from aoe_lab.guest import Guest
from aoe_lab.kubernetes.cluster import Cluster
from aoe_lab.lab import default_name

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster of a storage machine and two hypervisors, with aoe-csi installed, or the one AOE_LAB_CLUSTER names."""
    if running := os.environ.get("AOE_LAB_CLUSTER"):
        attached = Cluster.attach(running)
        attached.lab.heal()
        yield attached
        return
    name = f"{default_name()}-guests-cluster"
    with Cluster.start(storage=1, compute=0, hypervisors=2, name=name) as started:
        started.install()
        started.await_ready()
        yield started


@pytest.fixture(scope="session")
def running(cluster: Cluster) -> Guest:
    """The guest that serves every test: it takes minutes to boot where it is emulated twice."""
    guest = Guest.define(cluster.hypervisors[0], "g1")
    if guest.state() != "running":
        guest.start()
    return guest


@pytest.fixture
def guest(running: Guest, cluster: Cluster, disks: GuestDisks) -> Iterator[Guest]:
    """The guest, whatever a test that failed has left of it and of its machines."""
    del disks  # They are deleted after the guest listens again.
    cluster.lab.heal()
    running.revive(*cluster.hypervisors)
    yield running
    running.revive(*cluster.hypervisors)


@pytest.fixture
def claims(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Claims]:
    """A namespace of the test's own; when the test has ended, it and all its volumes are gone, on the hosts too."""
    with Claims.of_test(cluster, request.node.name) as made:
        yield made


@pytest.fixture
def disks(claims: Claims) -> Iterator[GuestDisks]:
    """Guests' disks of the test's namespace, deleted before their claims are."""
    made = GuestDisks(claims)
    yield made
    made.delete_all()
