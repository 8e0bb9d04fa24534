"""One process of a kind at a time on this host, by a lock on a file (flock(2)) that ends with its holder.

Locks inside a process, such as the engine's on the allocation of addresses, mean nothing to a second one beside it.
"""

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from aoe_core.errors import Busy, Invalid

_LOOK_S = 0.5


class ProcessLock:
    """The lock on one file; entered once."""

    def __init__(self, path: Path, what: str, *, wait_s: float = 0.0) -> None:
        """`what`: what its holder does, for the sentence that refuses. `wait_s`: how long a former holder may take."""
        self._path = path
        self._what = what
        self._wait_s = wait_s
        self._descriptor: int | None = None

    def take(self) -> None:
        """Take it. Raises: Busy when another process has it, Invalid when its file cannot be."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Invalid(
                f"lock file {self._path} cannot be opened ({error.strerror}); create its directory first"
            ) from error
        deadline = time.monotonic() + self._wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if time.monotonic() < deadline:
                    time.sleep(_LOOK_S)
                    continue
                os.close(descriptor)
                raise Busy(f"{self._what} by another process, which holds {self._path}; stop that one first") from error
            self._descriptor = descriptor
            return

    def release(self) -> None:
        """Give it back, now and not when the process ends: a thread stuck in the kernel may keep that from ending."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def engine_lock(state_directory: Path, *, wait_s: float = 0.0) -> ProcessLock:
    """Return the lock of the one process that gives out this host's volumes and addresses."""
    state_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return ProcessLock(state_directory / "engine.lock", "this host's volumes are given out", wait_s=wait_s)


def guests_lock(state_directory: Path, *, wait_s: float = 0.0) -> ProcessLock:
    """Return the lock of the one process that sees to this host's guests for a cluster."""
    state_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return ProcessLock(state_directory / "guests.lock", "this host's guests are seen to", wait_s=wait_s)
