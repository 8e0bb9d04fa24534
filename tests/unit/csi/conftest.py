from collections.abc import Iterator
from pathlib import Path

import pytest

from .memory import MemoryAttacher, MemoryProvisioner
from .plugin import Plugin, serving


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Plugin]:
    with serving(tmp_path / "csi.sock", MemoryProvisioner(), MemoryAttacher()) as running:
        yield running
