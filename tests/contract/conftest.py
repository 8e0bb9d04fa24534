"""The host the contract tests run on: `--host=fake` (default, in memory) or `--host=real` (inside a lab machine)."""

from collections.abc import Iterator

import pytest
from tests.contract.beds import Bed
from tests.contract.fake_bed import FakeBed
from tests.contract.lab_bed import RealBed


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--host",
        choices=("fake", "real"),
        default="fake",
        help="what the contract tests run on: in memory, or the throwaway lab machine this is (needs root)",
    )


@pytest.fixture(scope="session")
def real_bed(request: pytest.FixtureRequest) -> RealBed | None:
    """The lab machine, prepared once; None when the tests run in memory."""
    # Run from the tests' root, pytest reads this file too late to know its option.
    return RealBed() if request.config.getoption("--host", default="fake") == "real" else None


@pytest.fixture
def bed(real_bed: RealBed | None) -> Iterator[Bed]:
    """A host with nothing on it."""
    if real_bed is None:
        yield FakeBed()
        return
    real_bed.clear()
    yield real_bed
    real_bed.clear()
