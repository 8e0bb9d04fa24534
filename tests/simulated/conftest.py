"""Ready-made clusters in memory, and what the long tests add to pytest."""

import pytest
from tests.simulated.cluster import Cluster

_BOUNDARIES = pytest.StashKey[dict[str, int]]()


@pytest.fixture
def cluster() -> Cluster:
    """One storage machine and two compute machines, all up, nothing on them."""
    return Cluster()


@pytest.fixture
def count_boundaries(request: pytest.FixtureRequest) -> dict[str, int]:
    """Name → count, shown at the end of the run."""
    return request.config.stash.setdefault(_BOUNDARIES, {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counts = config.stash.get(_BOUNDARIES, {})
    if counts:
        terminalreporter.section("what was killed")
        for name, count in sorted(counts.items()):
            terminalreporter.write_line(f"{count:6d}  {name}")
