"""Work that is done again and again beside what kopf calls."""

import logging
import threading
from collections.abc import Callable
from typing import Self

from aoe_core.errors import AoECsiError

log = logging.getLogger(__name__)


def attempt(work: Callable[[], object], name: str) -> None:
    """Do a round of some work; one that fails, or has a bug, is logged. The thread must outlive it."""
    try:
        work()
    except AoECsiError as error:
        log.error("background work failed", extra={"work": name, "error": str(error)})
    except Exception:
        log.exception("background work failed", extra={"work": name})


class Repeated:
    """Rounds of some work, one after the other, in a thread of its own for the block."""

    def __init__(self, *works: Callable[[], object], name: str, every_s: float, stop: threading.Event) -> None:
        """`stop`: ends it, and is set at the end of the block."""
        self._works = works
        self._every_s = every_s
        self._stop = stop
        self._thread = threading.Thread(target=self._repeat, name=name)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _repeat(self) -> None:
        while True:
            for work in self._works:
                attempt(work, self._thread.name)
            if self._stop.wait(self._every_s):
                return
