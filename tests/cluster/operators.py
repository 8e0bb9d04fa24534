"""A role's kopf in a thread of a test."""

import asyncio
import threading

from aoe_operator import handlers


def operator_thread(told: handlers.Handlers, stop: threading.Event) -> threading.Thread:
    """Return a thread, not begun, that calls handlers until `stop` is set."""

    async def run() -> None:
        await handlers.operator(told, stop=stop, liveness=None)
        # aiohttp closes TLS connections a moment after it was told to, if the loop still runs.
        await asyncio.sleep(0.5)

    return threading.Thread(target=lambda: asyncio.run(run()), name=told.role)
