"""What probes and Prometheus ask over HTTP: /healthz, /readyz, /metrics.

Alive is who answers Probe on their own socket; a restart helps against nothing else. Ready is who could take the next
volume. Neither waits for a device: a dead target must not have the process killed that still serves the others.
"""

import http.server
import logging
import socket
import sys
import threading
from collections.abc import Callable
from typing import Self

import grpc
import prometheus_client

from aoe_core.errors import Invalid
from aoe_csi.proto import csi_pb2 as csi
from aoe_csi.proto import csi_pb2_grpc

log = logging.getLogger(__name__)

Check = Callable[[], str | None]
"""Returns what is wrong, None when nothing is."""
_PROBE_S = 5.0


def probe(path: str) -> str | None:
    """Ask a driver's socket whether anybody is there."""
    with grpc.insecure_channel(f"unix:{path}") as channel:
        try:
            reply = csi_pb2_grpc.IdentityStub(channel).Probe(csi.ProbeRequest(), timeout=_PROBE_S)
        except grpc.RpcError as error:
            return f"{path} does not answer: {error.details()}"
    return None if reply.ready.value else f"{path} says that it is not ready"


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT. Raises: Invalid."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or not 0 <= int(port) < 1 << 16:
        raise Invalid(f"health address {text!r} is not HOST:PORT; write for example 127.0.0.1:9808")
    return host.strip("[]"), int(port)


class Health:
    """The HTTP server, in threads of its own."""

    def __init__(self, address: tuple[str, int], *, alive: Check, ready: Check) -> None:
        checks = {"/healthz": alive, "/readyz": ready}

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    self._answer(200, prometheus_client.generate_latest(), prometheus_client.CONTENT_TYPE_LATEST)
                elif path in checks:
                    wrong = checks[path]()
                    self._answer(200 if wrong is None else 503, f"{wrong or 'ok'}\n".encode(), "text/plain")
                else:
                    self._answer(404, b"there are /healthz, /readyz and /metrics\n", "text/plain")

            def _answer(self, code: int, body: bytes, content_type: str) -> None:
                self.send_response(code)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name.
                log.debug("http", extra={"request": format % args})

        class Server(http.server.ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET

            def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - socketserver's.
                error = sys.exception()
                if isinstance(error, ConnectionError):
                    log.info("whoever asked did not wait for the answer")
                else:
                    log.error("bug", exc_info=error)

        try:
            self._server = Server(address, Handler)
        except OSError as error:
            raise Invalid(
                f"health address {address[0]}:{address[1]} cannot be served ({error.strerror}); choose a free port"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        log.info("serving probes", extra={"port": self.port})
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
