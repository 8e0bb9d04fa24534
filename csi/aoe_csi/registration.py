"""Kubelet's plugin registration, served by the node server itself: who the driver is, and where its socket is.

kubelet watches a directory for sockets and asks each who it is (GetInfo, within a second); then it calls NodeGetInfo
on the driver's own socket and says here what came of it. It asks anew when the socket is made anew.
Source: pluginregistration.proto; Kubernetes, pkg/kubelet/pluginmanager and pkg/volume/csi/csi_plugin.go.
"""
# ruff: noqa: ARG002 - the generated servicers give every method its arguments.

import logging
import threading
from pathlib import Path

import grpc

from aoe_csi.identity import DRIVER_NAME
from aoe_csi.proto import pluginregistration_pb2 as registration
from aoe_csi.proto import pluginregistration_pb2_grpc

log = logging.getLogger(__name__)

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

    @property
    def problem(self) -> str | None:
        """Why the driver is not registered; None once it is."""
        with self._guard:
            return self._problem

    def add_to(self, server: grpc.Server) -> None:
        """Serve it on a server."""
        pluginregistration_pb2_grpc.add_RegistrationServicer_to_server(self, server)

    def GetInfo(self, request: registration.InfoRequest, context: grpc.ServicerContext) -> registration.PluginInfo:
        """Return the driver's name and socket."""
        return registration.PluginInfo(
            type="CSIPlugin", name=DRIVER_NAME, endpoint=str(self._endpoint), supported_versions=_VERSIONS
        )

    def NotifyRegistrationStatus(
        self, request: registration.RegistrationStatus, context: grpc.ServicerContext
    ) -> registration.RegistrationStatusResponse:
        """Take note of what kubelet says; it tries again by itself after a failure."""
        with self._guard:
            self._problem = None if request.plugin_registered else f"kubelet does not register: {request.error}"
        if request.plugin_registered:
            log.info("registered with kubelet")
        else:
            log.error("kubelet refuses to register the driver", extra={"error": request.error})
        return registration.RegistrationStatusResponse()
