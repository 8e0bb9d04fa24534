"""Ready-made clusters in memory."""

import pytest
from tests.simulated.cluster import Cluster


@pytest.fixture
def cluster() -> Cluster:
    """One storage machine and two compute machines, all up, nothing on them."""
    return Cluster()
