"""CSI's Identity service: who the plugin is. It touches nothing, so it answers whatever else is stuck."""
# ruff: noqa: ARG002 - the generated servicers give every method its arguments.

import grpc
from google.protobuf.wrappers_pb2 import BoolValue

from aoe_csi import __version__
from aoe_csi.proto import csi_pb2 as csi
from aoe_csi.proto import csi_pb2_grpc

DRIVER_NAME = "aoe-csi.dev"

_Service = csi.PluginCapability.Service
_Expansion = csi.PluginCapability.VolumeExpansion


MANIFEST_NODE = "node"
"""Key of GetPluginInfo's manifest: the storage machine behind this controller."""


class Identity(csi_pb2_grpc.IdentityServicer):
    """Answers for the whole plugin, whichever of its services this process serves."""

    def __init__(self, node: str = "") -> None:
        """`node`: the machine whose own volumes are served; empty where they are a cluster's."""
        self._manifest = {MANIFEST_NODE: node} if node else {}

    def GetPluginInfo(
        self, request: csi.GetPluginInfoRequest, context: grpc.ServicerContext
    ) -> csi.GetPluginInfoResponse:
        """Return the driver's name, this build's version, and which machine this is."""
        return csi.GetPluginInfoResponse(name=DRIVER_NAME, vendor_version=__version__, manifest=self._manifest)

    def GetPluginCapabilities(
        self, request: csi.GetPluginCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi.GetPluginCapabilitiesResponse:
        """Return what the plugin offers: a controller, topology, and growing in use."""
        return csi.GetPluginCapabilitiesResponse(
            capabilities=[
                csi.PluginCapability(service=_Service(type=_Service.CONTROLLER_SERVICE)),
                csi.PluginCapability(service=_Service(type=_Service.VOLUME_ACCESSIBILITY_CONSTRAINTS)),
                csi.PluginCapability(volume_expansion=_Expansion(type=_Expansion.ONLINE)),
            ]
        )

    def Probe(self, request: csi.ProbeRequest, context: grpc.ServicerContext) -> csi.ProbeResponse:
        """Say that this process answers; the host's fitness is preflight's to judge."""
        return csi.ProbeResponse(ready=BoolValue(value=True))
