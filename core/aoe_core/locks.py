"""Locks by name that are taken at once or not at all.

A caller that finds its object held is told so (ABORTED) and comes again; a queue would let one stuck volume collect
every thread of the server. Where several processes of one host work on the same objects, a name is held between them
as well: the host does that (host.lock_files), within the time it is held here.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from aoe_core.errors import Busy


class HostLocks(Protocol):
    """Names that one process of a host holds at a time. Each ends with its holder, however that ends."""

    def hold(self, name: str) -> AbstractContextManager[None]:
        """Hold `name` for the block. Raises: Busy at once when another process has it. A process that holds a name
        already must not ask for it again: `Locks` sees to that."""


class Locks:
    """The names now held in this process."""

    def __init__(self, between: HostLocks | None = None) -> None:
        """`between`: holds the names between processes too; without it they are this process's own affair."""
        self._between = between
        self._held: set[str] = set()
        self._guard = threading.Lock()

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Hold `name`, such as `volume/pvc-1`, for the block. Raises: Busy at once when somebody holds it."""
        with self._guard:
            if name in self._held:
                raise Busy(f"another call is at work on {name}; call again when it has ended")
            self._held.add(name)
        try:
            with nullcontext() if self._between is None else self._between.hold(name):
                yield
        finally:
            with self._guard:
                self._held.remove(name)
