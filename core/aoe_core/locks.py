"""Locks by name that are taken at once or not at all.

A caller that finds its object held is told so (ABORTED) and comes again; a queue would let one stuck volume collect
every thread of the server. Locks live in one process; what must hold between processes is the host's to hold.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from aoe_core.errors import Busy


class Locks:
    """The names now held."""

    def __init__(self) -> None:
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
            yield
        finally:
            with self._guard:
                self._held.remove(name)
