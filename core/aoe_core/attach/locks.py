"""Locks by name that are taken at once or not at all.

The CSI calls, the sweeper and the watchdog meet here. Nothing waits for a lock: one volume whose host command is stuck
must not collect threads. They hold within one process; the node server is the only one on its machine.
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
        """Hold `name`, such as `volume pvc-1` or `address e10.3`. Raises: Busy at once when somebody holds it."""
        with self._guard:
            if name in self._held:
                raise Busy(f"{name} is being worked on by another call on this node; call again when it has ended")
            self._held.add(name)
        try:
            yield
        finally:
            with self._guard:
                self._held.remove(name)
