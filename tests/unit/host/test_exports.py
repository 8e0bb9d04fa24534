"""HostExportUnits reads an export's lock without standing in anybody's way."""

import fcntl
from collections.abc import Sequence
from pathlib import Path

import pytest

from aoe_core.errors import CommandFailed
from aoe_core.host.contracts import Finished
from aoe_core.host.exports import HostExportUnits
from aoe_core.model import Address

ADDRESS = Address(100, 3)


class Systemctl:
    """Answers every command the same."""

    def __init__(self, code: int = 0, stderr: str = "") -> None:
        self._code, self._stderr = code, stderr

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,  # noqa: ARG002
        stdin: bytes | None = None,  # noqa: ARG002
    ) -> Finished:
        return Finished(argv=tuple(argv), code=self._code, stdout="", stderr=self._stderr, seconds=0)


@pytest.mark.parametrize(
    ("held", "locked"),
    [(fcntl.LOCK_UN, False), (fcntl.LOCK_SH, False), (fcntl.LOCK_EX, True)],
    ids=["nobody", "another-looker", "an-exporter"],
)
def test_only_an_exporter_locks_an_address(tmp_path: Path, held: int, locked: bool) -> None:
    path = tmp_path / ADDRESS.instance
    with path.open("w") as holder:
        fcntl.flock(holder, held)
        states = HostExportUnits(Systemctl(), lock_directory=tmp_path).states()
    assert (ADDRESS in states) == locked


def test_a_failing_systemctl_is_quoted(tmp_path: Path) -> None:
    units = HostExportUnits(Systemctl(1, "Failed to list units: Connection timed out\n"), lock_directory=tmp_path)
    with pytest.raises(CommandFailed, match="Connection timed out"):
        units.states()
