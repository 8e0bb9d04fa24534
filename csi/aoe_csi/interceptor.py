"""The edge of every call: secrets off, deadline checked, errors to status codes, one line in the log.

The table below is the only place that knows gRPC's codes for our errors; it is looked up along the class hierarchy.
No secret passes: the driver uses none, so fields that csi.proto marks `csi_secret` are cleared before anything can see
them. An unexpected exception is a bug: it is logged with its traceback, the caller gets a sentence, the server goes on.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from aoe_core import errors
from aoe_csi import metrics
from aoe_csi.proto import csi_pb2 as csi
from aoe_csi.requests import shown

log = logging.getLogger(__name__)

_CODES: dict[type[errors.AoECsiError], grpc.StatusCode] = {
    errors.Invalid: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Conflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.InUse: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NoSpace: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Busy: grpc.StatusCode.ABORTED,
    errors.Unfinished: grpc.StatusCode.ABORTED,
    errors.Unreachable: grpc.StatusCode.UNAVAILABLE,
    errors.Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    errors.CommandFailed: grpc.StatusCode.INTERNAL,
    errors.AoECsiError: grpc.StatusCode.INTERNAL,
}
_QUICK = frozenset(
    ("GetPluginInfo", "GetPluginCapabilities", "Probe", "NodeGetCapabilities", "NodeGetInfo"),
)
"""Methods that touch no volume: they get threads of their own, and answer while every other thread is stuck."""
_QUICK_WORKERS = 4
_UNEVENTFUL = frozenset(("GetCapacity", "Probe"))
"""Methods that sidecars call all the time: what they answer well is no news."""
_MAX_SENTENCE_BYTES = 1024
"""gRPC percent-encodes the sentence into a trailer, and peers refuse trailers above 8 KiB."""

_NAMING = ("volume_id", "name", "source_volume_id", "snapshot_id")
"""Request fields that say what a call is about, in the order the log prefers."""

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in its stubs alone


def code_of(error: errors.AoECsiError) -> grpc.StatusCode:
    """Return the status code of an error."""
    return next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)


def clear_secrets(message: Message) -> None:
    """Empty every field of a message, however deep, that csi.proto marks as secret."""
    for field, value in message.ListFields():
        if field.GetOptions().Extensions[csi.csi_secret]:
            message.ClearField(field.name)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for part in _messages(field, value):
                clear_secrets(part)


def _messages(field: FieldDescriptor, value: Any) -> list[Message]:
    if not field.is_repeated:
        return [value]
    parts = list(value.values()) if isinstance(value, Mapping) else list(value)
    return [part for part in parts if isinstance(part, Message)]


def _sentence(text: str) -> str:
    return text.encode()[:_MAX_SENTENCE_BYTES].decode(errors="ignore")


class Edge(grpc.ServerInterceptor):
    """The interceptor, and the count of calls now running."""

    def __init__(self) -> None:
        self._quick = ThreadPoolExecutor(max_workers=_QUICK_WORKERS, thread_name_prefix="quick")
        self._running = 0
        self._changed = threading.Condition()

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[_Request, _Response] | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[_Request, _Response] | None":
        """Wrap a method's handler; a method nobody serves gets one that says so."""
        method = handler_call_details.method
        handler = continuation(handler_call_details)
        call = _Call(
            edge=self,
            method=method,
            handler=handler,
            threads=self._quick if method.rpartition("/")[2] in _QUICK else None,
        )
        serializer = handler.response_serializer if handler is not None else None
        return grpc.unary_unary_rpc_method_handler(call, response_serializer=serializer)

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no call runs; say whether that came to pass."""
        with self._changed:
            return self._changed.wait_for(lambda: self._running == 0, timeout_s)

    def stop(self) -> None:
        """Let the own threads go."""
        self._quick.shutdown(wait=False)

    def count(self, change: int) -> None:
        """Note that a call began (1) or ended (-1)."""
        with self._changed:
            self._running += change
            self._changed.notify_all()


class _Call:
    """One method's behaviour, wrapped. It takes the request as bytes, so that a malformed one is answered here too."""

    def __init__(
        self, *, edge: Edge, method: str, handler: "_Handler | None", threads: ThreadPoolExecutor | None
    ) -> None:
        self._edge = edge
        self._method = method
        self._handler = handler
        # grpc's own name for "run this on other threads than the server's" (grpc/_server.py).
        self.experimental_thread_pool = threads

    def __call__(self, raw: bytes, context: grpc.ServicerContext) -> Any:
        started = time.monotonic()
        facts: dict[str, object] = {"method": self._method}
        self._edge.count(1)
        try:
            code, answer = self._answer(raw, context, facts)
        finally:
            self._edge.count(-1)
        seconds = time.monotonic() - started
        name = self._method.rpartition("/")[2]
        metrics.CALLS.labels(name, code.name).observe(seconds)
        facts |= {"code": code.name, "ms": round(seconds * 1000)}
        if code is not grpc.StatusCode.OK:
            log.info("call", extra={**facts, "error": answer})
            context.abort(code, answer)
        log.log(logging.DEBUG if name in _UNEVENTFUL else logging.INFO, "call", extra=facts)
        return answer

    def _answer(
        self, raw: bytes, context: grpc.ServicerContext, facts: dict[str, object]
    ) -> tuple[grpc.StatusCode, Any]:
        """Return OK with the response, or another code with its sentence; adds what the call is about to `facts`."""
        handler = self._handler
        if handler is None or handler.unary_unary is None or handler.request_deserializer is None:
            return grpc.StatusCode.UNIMPLEMENTED, f"{self._method} is not offered; see the plugin's capabilities"
        try:
            request = handler.request_deserializer(raw)
        except DecodeError:
            return grpc.StatusCode.INVALID_ARGUMENT, f"the request is no message of {self._method}; use CSI 1.13"
        clear_secrets(request)
        facts |= _about(request)
        if not context.is_active():
            return grpc.StatusCode.CANCELLED, "the caller has gone; nothing was begun"
        left_s: float | None = context.time_remaining()
        if left_s is not None and left_s <= 0:
            return grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the call began; allow it more time"
        try:
            return grpc.StatusCode.OK, handler.unary_unary(request, context)
        except errors.AoECsiError as error:
            return code_of(error), _sentence(str(error))
        except NotImplementedError:
            # What the generated servicers raise for a method that is not written.
            return grpc.StatusCode.UNIMPLEMENTED, f"{self._method} is not offered; see the plugin's capabilities"
        except Exception:
            log.exception("bug", extra=facts)
            return grpc.StatusCode.INTERNAL, f"{self._method} failed by a fault of the driver; its log has the details"


def _about(request: Message) -> dict[str, object]:
    fields = request.DESCRIPTOR.fields_by_name
    for name in _NAMING:
        if name in fields and getattr(request, name):
            return {"volume" if "volume" in name else "object": shown(getattr(request, name))}
    return {}
