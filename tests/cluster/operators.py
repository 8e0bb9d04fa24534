"""A role's kopf in a thread of a test."""

import asyncio
import selectors
import threading
import time

from aoe_operator import handlers

# For TLS connections to be closed by both sides; a machine at its limit takes seconds.
_CLOSING_S = 30.0


def operator_thread(told: handlers.Handlers, stop: threading.Event) -> threading.Thread:
    """Return a thread, not begun, that calls handlers until `stop` is set."""

    def work() -> None:
        selector = selectors.DefaultSelector()
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
            runner.get_loop()
            own = len(selector.get_map())
            runner.run(handlers.operator(told, stop=stop, liveness=None))
            # aiohttp closes TLS connections a while after it was told to, if the loop still runs.
            deadline = time.monotonic() + _CLOSING_S
            while len(selector.get_map()) > own and time.monotonic() < deadline:
                runner.run(asyncio.sleep(0.1))
            runner.run(asyncio.sleep(0.1))

    return threading.Thread(target=work, name=told.role)
