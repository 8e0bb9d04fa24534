"""Machines for the tests that need real ones; every test below this folder is marked `lab`.

A session boots its own lab, or, if AOE_LAB_ATTACH names a running one, uses that: then a run starts in seconds.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from aoe_lab import Lab, Topology
from aoe_lab.lab import default_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aoe_lab import Machine


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    if running := os.environ.get("AOE_LAB_ATTACH"):
        attached = Lab.attach(running)
        attached.heal()
        attached.push_code()
        yield attached
    else:
        with Lab.start(Topology(storage=2, compute=2, sans=("main",)), name=f"{default_name()}-test") as started:
            yield started


@pytest.fixture(autouse=True)
def _sound_machines(lab: Lab) -> None:
    """What the test before did to cables and machines is undone."""
    lab.heal()


@pytest.fixture
def storage1(lab: Lab) -> Machine:
    return lab.machine("storage1")


@pytest.fixture
def storage2(lab: Lab) -> Machine:
    return lab.machine("storage2")


@pytest.fixture
def compute1(lab: Lab) -> Machine:
    return lab.machine("compute1")


@pytest.fixture
def compute2(lab: Lab) -> Machine:
    return lab.machine("compute2")
