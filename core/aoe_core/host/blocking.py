"""Calls into the kernel that may not come back, made so that nobody waits for ever.

Opening or reading a device whose AoE target is silent can sleep uninterruptibly until aoe_deadsecs have passed, and no
signal ends that. Such a call runs in a thread of its own. When its limit passes, the thread is abandoned and the caller
told; while it is stuck, further calls under the same key are refused at once, so that one dead target costs one thread
and not one for each try.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

from aoe_core.errors import Unfinished

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")


class BlockingCalls:
    """The calls now under way."""

    def __init__(self) -> None:
        self._stuck: set[str] = set()
        self._guard = threading.Lock()

    def run(self, key: str, call: Callable[[], _Result], *, timeout_s: float) -> _Result:
        """Return what `call` returns, or raise what it raises.

        `key` names what it may be stuck on, such as a device's path. Raises: Unfinished when the limit passes, or
        when an earlier call of this key is still stuck.
        """
        with self._guard:
            if key in self._stuck:
                raise Unfinished(
                    f"{key} still holds an earlier call in the kernel; it ends when its target answers or "
                    "aoe_deadsecs have passed"
                )
        future: Future[_Result] = Future()

        def work() -> None:
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is.
                future.set_exception(error)
            finally:
                with self._guard:
                    self._stuck.discard(key)

        threading.Thread(target=work, name=f"blocking {key}", daemon=True).start()
        try:
            return future.result(timeout_s)
        except FutureTimeoutError as expired:
            with self._guard:
                if not future.done():
                    self._stuck.add(key)
            if future.done():
                return future.result()
            log.error("call is stuck in the kernel", extra={"key": key, "timeout_s": timeout_s})
            raise Unfinished(
                f"{key} did not answer within {timeout_s:g} s; its target may be dead, try again after it is back or "
                "aoe_deadsecs have passed"
            ) from expired

    def stuck(self) -> frozenset[str]:
        """Return the keys whose calls are abandoned and have not come back."""
        with self._guard:
            return frozenset(self._stuck)
