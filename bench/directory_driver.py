"""The least that csi-provisioner takes for a driver: a volume is a directory. What the sidecars alone cost.

Runs in our image, as `python3 directory_driver.py SOCKET DIRECTORY`.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from google.protobuf.wrappers_pb2 import BoolValue

from aoe_csi.proto import csi_pb2 as pb
from aoe_csi.proto import csi_pb2_grpc as rpc

NAME = "directory.bench.aoe-csi.dev"


class Identity(rpc.IdentityServicer):
    """A driver with a controller."""

    def GetPluginInfo(
        self, request: pb.GetPluginInfoRequest, context: grpc.ServicerContext
    ) -> pb.GetPluginInfoResponse:
        return pb.GetPluginInfoResponse(name=NAME, vendor_version="1")

    def GetPluginCapabilities(
        self, request: pb.GetPluginCapabilitiesRequest, context: grpc.ServicerContext
    ) -> pb.GetPluginCapabilitiesResponse:
        service = pb.PluginCapability.Service(type=pb.PluginCapability.Service.CONTROLLER_SERVICE)
        return pb.GetPluginCapabilitiesResponse(capabilities=[pb.PluginCapability(service=service)])

    def Probe(self, request: pb.ProbeRequest, context: grpc.ServicerContext) -> pb.ProbeResponse:
        return pb.ProbeResponse(ready=BoolValue(value=True))


class Controller(rpc.ControllerServicer):
    """Makes and removes directories."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def ControllerGetCapabilities(
        self, request: pb.ControllerGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> pb.ControllerGetCapabilitiesResponse:
        kind = pb.ControllerServiceCapability.RPC(type=pb.ControllerServiceCapability.RPC.CREATE_DELETE_VOLUME)
        return pb.ControllerGetCapabilitiesResponse(capabilities=[pb.ControllerServiceCapability(rpc=kind)])

    def CreateVolume(self, request: pb.CreateVolumeRequest, context: grpc.ServicerContext) -> pb.CreateVolumeResponse:
        (self._place / request.name).mkdir(exist_ok=True)
        size = request.capacity_range.required_bytes
        return pb.CreateVolumeResponse(volume=pb.Volume(volume_id=request.name, capacity_bytes=size))

    def DeleteVolume(self, request: pb.DeleteVolumeRequest, context: grpc.ServicerContext) -> pb.DeleteVolumeResponse:
        if (self._place / request.volume_id).is_dir():
            (self._place / request.volume_id).rmdir()
        return pb.DeleteVolumeResponse()


def main() -> None:
    socket, place = sys.argv[1:]
    server = grpc.server(ThreadPoolExecutor(64))
    rpc.add_IdentityServicer_to_server(Identity(), server)
    rpc.add_ControllerServicer_to_server(Controller(Path(place)), server)
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
