"""Handles on the verifying writer of aoe_lab.sequence, running on a lab machine."""

import json
import time
from types import TracebackType
from typing import Self

from aoe_lab.machine import Machine

STUCK_S = 120.0

_number = 0


class Writer:
    """Writes on a machine until the block ends; counts what was acknowledged from the machine's own file."""

    def __init__(self, machine: Machine, path: str, *, salt: str, blocks: int, rounds: int = 1000) -> None:
        global _number  # noqa: PLW0603 - one file name per writer
        _number += 1
        self._machine, self._path, self._salt, self._blocks = machine, path, salt, blocks
        self._log = f"/run/writer-{_number}"
        self._process = machine.spawn(
            f"exec aoe-python -m aoe_lab.sequence write {path} {salt} {blocks} {rounds} > {self._log}"
        )
        self._last = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Note the last acknowledged write and stop the writer (one that waits for I/O ends when that does)."""
        if self._last < 0:
            self._machine.run(["pkill", "-KILL", "-f", f"sequence write {self._path} {self._salt} "], check=False)
            self._last = self._read()
            # A write whose target is silent keeps the process until aoe_deadsecs have passed.
            self._process.stop(timeout_s=STUCK_S)

    def acknowledged(self) -> int:
        """Return the number of the newest acknowledged write, -1 before the first."""
        return self._last if self._last >= 0 else self._read()

    def await_acknowledged(self, number: int, timeout_s: float = 120.0) -> None:
        """Wait until a write is acknowledged."""
        deadline = time.monotonic() + timeout_s
        while self.acknowledged() < number:
            assert time.monotonic() < deadline, f"stuck at write {self.acknowledged()}, waiting for {number}"
            time.sleep(0.5)

    def check(self, machine: Machine | None = None, path: str = "") -> dict[str, int]:
        """Compare all places written in the last round but the newest (which may have been under way when stopped)."""
        last = self.acknowledged()
        first = max(0, last - self._blocks + 2)
        assert last >= first, "nothing was acknowledged"
        verdict = (machine or self._machine).run(
            f"aoe-python -m aoe_lab.sequence check {path or self._path} {self._salt} {first} {last} {self._blocks}",
            timeout_s=120,
        )
        return {key: value or 0 for key, value in json.loads(verdict.stdout).items()}

    def _read(self) -> int:
        line = self._machine.run(f"tail -n 1 {self._log}", check=False).stdout.strip()
        return int(line) if line.isdigit() else -1
