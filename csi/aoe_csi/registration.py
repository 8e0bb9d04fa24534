"""Kubelet's plugin registration, served by the node server itself: who the driver is, and where its socket is.

kubelet watches a directory for sockets and asks each who it is (GetInfo, within a second); then it calls NodeGetInfo
on the driver's own socket and says here what came of it. It asks anew when the socket is made anew; before 1.36 it does
so only then, and remembers what failed as done (kubernetes/kubernetes#133335).
Source: pluginregistration.proto; Kubernetes, pkg/kubelet/pluginmanager and pkg/volume/csi/csi_plugin.go.
"""
# ruff: noqa: ARG002 - the generated servicers give every method its arguments.

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import grpc

from aoe_core.errors import AoECsiError
from aoe_csi.identity import DRIVER_NAME
from aoe_csi.proto import pluginregistration_pb2 as registration
from aoe_csi.proto import pluginregistration_pb2_grpc

log = logging.getLogger(__name__)

AGAIN_S = 30.0
"""After which kubelet is asked anew."""
_VERSIONS = ("1.0.0",)
"""Of the protocol between kubelet and driver, which kubelet compares; not CSI's own version."""


def socket_in(directory: Path) -> Path:
    """Return where the socket has to be in kubelet's plugins_registry directory."""
    return directory / f"{DRIVER_NAME}-reg.sock"


class Registration(pluginregistration_pb2_grpc.RegistrationServicer):
    """Answers kubelet, and remembers what kubelet made of it."""

    def __init__(self, endpoint: Path) -> None:
        """`endpoint`: the driver's socket, as kubelet sees the path."""
        self._endpoint = endpoint
        self._guard = threading.Lock()
        self._problem: str | None = "kubelet has not asked for this driver yet"
        self._is_refused = False

    @property
    def problem(self) -> str | None:
        """Why the driver is not registered; None once it is."""
        with self._guard:
            return self._problem

    @property
    def is_refused(self) -> bool:
        """Whether kubelet has refused, and has not asked since."""
        with self._guard:
            return self._is_refused

    def add_to(self, server: grpc.Server) -> None:
        """Serve it on a server."""
        pluginregistration_pb2_grpc.add_RegistrationServicer_to_server(self, server)

    def GetInfo(self, request: registration.InfoRequest, context: grpc.ServicerContext) -> registration.PluginInfo:
        """Return the driver's name and socket."""
        with self._guard:
            self._is_refused = False
        return registration.PluginInfo(
            type="CSIPlugin", name=DRIVER_NAME, endpoint=str(self._endpoint), supported_versions=_VERSIONS
        )

    def NotifyRegistrationStatus(
        self, request: registration.RegistrationStatus, context: grpc.ServicerContext
    ) -> registration.RegistrationStatusResponse:
        """Take note of what kubelet says."""
        with self._guard:
            self._problem = None if request.plugin_registered else f"kubelet does not register: {request.error}"
            self._is_refused = not request.plugin_registered
        if request.plugin_registered:
            log.info("registered with kubelet")
        else:
            log.error("kubelet refuses to register the driver", extra={"error": request.error})
        return registration.RegistrationStatusResponse()


class Stoppable(Protocol):
    """A server of the registration."""

    def start(self) -> None:
        """Serve."""

    def stop(self) -> bool:
        """Serve no more."""


class Registrar:
    """Serves the registration, and anew as long as kubelet refuses."""

    def __init__(
        self,
        registered: Registration,
        open_server: Callable[[], Stoppable],
        *,
        takes_part: Callable[[], bool] = lambda: True,
        again_s: float = AGAIN_S,
    ) -> None:
        """`takes_part`: whether there is anything to register; else a refusal is as it should be."""
        self._registered = registered
        self._open_server = open_server
        self._takes_part = takes_part
        self._again_s = again_s
        self._server = open_server()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look, name="registration", daemon=True)

    def start(self) -> None:
        """Serve, and look now and then what has become of it. Raises: Busy, Invalid, Unreachable."""
        self._server.start()
        self._thread.start()

    def stop(self) -> bool:
        """Serve no more; say whether running calls ended."""
        self._ending.set()
        self._thread.join()
        return self._server.stop()

    def _look(self) -> None:
        while not self._ending.wait(self._again_s):
            if not self._registered.is_refused or not self._takes_part():
                continue
            log.info("asks kubelet anew", extra={"why": self._registered.problem})
            self._server.stop()
            self._server = self._open_server()
            try:
                self._server.start()
            except AoECsiError as error:
                log.error("registration is not served", extra={"error": str(error)})
