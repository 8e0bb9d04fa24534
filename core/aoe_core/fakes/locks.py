"""Names held between the processes of one machine, in memory. A name ends with the process that holds it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aoe_core.errors import Busy

if TYPE_CHECKING:
    from aoe_core.fakes.world import Process


class FakeHostLocks:
    """`HostLocks` in memory. Taking one is no step: a process that dies with it leaves nothing to find."""

    def __init__(self, process: "Process") -> None:
        self._process = process

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        with self._process.reading() as machine:
            holder = machine.held_names.get(name)
            if holder is not None and holder.alive:
                raise Busy(f"another process is at work on {name}; call again when it has ended")
            machine.held_names[name] = self._process
        try:
            yield
        finally:
            if machine.held_names.get(name) is self._process:
                del machine.held_names[name]
