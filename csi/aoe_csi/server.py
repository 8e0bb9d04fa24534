"""The gRPC server on its unix socket.

Owns the socket's life. grpcio unlinks whatever is at its path, when it binds (even a live server's socket) and again
when it stops (even one that a newer process has bound since). So it is given a private path, and this module moves
the socket to its real place and takes it away again, under a lock file and only if it is still the same socket.
"""

import logging
import os
import socket
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc

from aoe_core.errors import Busy, Invalid, Unreachable
from aoe_core.host.process_lock import ProcessLock
from aoe_csi.endpoint import parse_endpoint, private_path
from aoe_csi.interceptor import Edge
from aoe_csi.proto import csi_pb2_grpc

log = logging.getLogger(__name__)

MAX_WORKERS = 128
"""Calls at work at once. A volume holds two at most (see locks), the others wait their turn and are not refused."""
GRACE_S = 25.0
"""How long running calls may take to end: within Kubernetes' 30 s between SIGTERM and SIGKILL."""
_ANSWER_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What a server serves; None for a service it does not have."""

    identity: csi_pb2_grpc.IdentityServicer
    controller: csi_pb2_grpc.ControllerServicer | None = None
    node: csi_pb2_grpc.NodeServicer | None = None

    def add_to(self, server: grpc.Server) -> None:
        """Serve them on a server."""
        csi_pb2_grpc.add_IdentityServicer_to_server(self.identity, server)
        if self.controller is not None:
            csi_pb2_grpc.add_ControllerServicer_to_server(self.controller, server)
        if self.node is not None:
            csi_pb2_grpc.add_NodeServicer_to_server(self.node, server)


class Served(Protocol):
    """What can be put on a server."""

    def add_to(self, server: grpc.Server) -> None:
        """Serve it there."""


class Server:
    """One server on one socket: `start`, then `stop` once."""

    def __init__(self, endpoint: str, services: Served) -> None:
        self._path = parse_endpoint(endpoint)
        self._services = services
        self._edge = Edge()
        self._workers = ThreadPoolExecutor(max_workers=MAX_WORKERS, thread_name_prefix="call")
        self._server: grpc.Server | None = None
        lock = self._path.with_name(self._path.name + ".lock")
        self._lock = ProcessLock(lock, f"socket {self._path} is served")
        self._bound: tuple[int, int] | None = None

    def start(self) -> None:
        """Serve. Raises: Busy when another process serves there; Invalid or Unreachable when the socket cannot be."""
        self._lock.take()
        try:
            _refuse_live(self._path)
            self._server = self._bind()
        except BaseException:
            self._lock.release()
            raise
        log.info("serving", extra={"endpoint": str(self._path)})

    def _bind(self) -> grpc.Server:
        private = private_path(self._path)
        private.unlink(missing_ok=True)
        server = grpc.server(self._workers, interceptors=[self._edge])
        self._services.add_to(server)
        # The process's umask, for the one moment in which the socket appears: nobody else may connect, ever.
        umask = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix:{private}")
        except RuntimeError as error:
            raise Unreachable(f"socket {self._path} cannot be made ({error}); check its directory") from error
        finally:
            os.umask(umask)
        server.start()
        found = private.stat()
        self._bound = (found.st_dev, found.st_ino)
        private.rename(self._path)
        return server

    def stop(self, grace_s: float = GRACE_S) -> bool:
        """Take no more calls, let running ones end within `grace_s`, and say whether they did."""
        self._remove_own_socket()
        ended = True
        if self._server is not None:
            until = time.monotonic() + grace_s
            self._server.stop(grace_s).wait()
            # To grpc a call ends when its client gives up; the thread at work on it may need longer.
            ended = self._edge.wait_idle(max(0.0, until - time.monotonic()))
        self._edge.stop()
        self._workers.shutdown(wait=False)
        self._lock.release()
        log.info("stopped", extra={"all_calls_ended": ended})
        return ended

    def _remove_own_socket(self) -> None:
        try:
            found = self._path.lstat()
        except FileNotFoundError:
            return
        if (found.st_dev, found.st_ino) == self._bound:
            self._path.unlink(missing_ok=True)
        else:
            log.warning("socket is another process's now and stays", extra={"endpoint": str(self._path)})


def _refuse_live(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise Invalid(f"{path} exists and is no socket; move it away or choose another endpoint")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(_ANSWER_S)
        try:
            caller.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError as error:
            raise Busy(f"socket {path} may be another process's ({error}); stop that one first") from error
    raise Busy(f"socket {path} is served by another process; stop that one first")
