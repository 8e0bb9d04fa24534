"""A real control plane; every test below this folder is marked `lab`, since it needs a lab's network."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from aoe_lab import Lab, Topology
from aoe_lab.kubernetes.control_plane import ControlPlane
from aoe_lab.lab import default_name

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """A control plane without machines, with our custom resources defined; one for each process that tests share."""
    topology = Topology(storage=0, compute=0, sans=())
    name = f"{default_name()}-api{os.environ.get('PYTEST_XDIST_WORKER', '')}"
    with Lab.start(topology, name=name) as lab, ControlPlane.start(lab) as started:
        started.define_resources()
        yield started


@pytest.fixture
def clean(plane: ControlPlane) -> Iterator[ControlPlane]:
    """The control plane, without any resource of ours once the test has ended."""
    yield plane
    for plural in ("aoevolumes", "aoesnapshots", "aoenodes", "aoeshelves"):
        # As one collection: kubectl delete --all asks for each, ten in a second.
        plane.kubectl("delete", f"--raw=/apis/aoe-csi.dev/v1alpha1/{plural}")
