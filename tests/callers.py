"""Several callers at once: what became of a call, and whether callers wait where they should."""

import time
from collections.abc import Callable

from aoe_core.errors import AoECsiError
from aoe_core.host.batches import Batches, Outcome, Wish


def outcome(call: Callable[[], None]) -> str:
    """Make a call. Returns: done, or the name of its error."""
    try:
        call()
    except AoECsiError as error:
        return type(error).__name__
    return "done"


def await_gathered(batches: Batches[Wish, Outcome], count: int) -> None:
    """Wait until so many wishes wait for the next batch; nothing tells of it from outside."""
    deadline = time.monotonic() + 30
    while (gathering := batches._gathering) is None or len(gathering.wishes) < count:  # noqa: SLF001
        assert time.monotonic() < deadline, "they never gathered"
        time.sleep(0.001)
