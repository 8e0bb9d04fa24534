"""A storage machine's CSI controller as a client sees it: what `aoe-csi guest` asks for grants and growth.

Only local sockets are spoken to, as only they are served; ssh brings another machine's here. Status codes become the
project's errors again, by the interceptor's table the other way round.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from aoe_core import errors
from aoe_core.guests.records import Origin
from aoe_core.model import AccessMode, Attachment, NodeIdentity, NodeName, VolumeId
from aoe_csi import requests
from aoe_csi.capabilities import access_mode
from aoe_csi.endpoint import parse_endpoint
from aoe_csi.identity import MANIFEST_NODE
from aoe_csi.proto import csi_pb2 as csi
from aoe_csi.proto import csi_pb2_grpc

CALL_S = 120.0
WHO_S = 15.0
"""To say who one is touches nothing; only the way there may be long."""
_KINDS: dict[grpc.StatusCode, type[errors.AoECsiError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.Invalid,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.Conflict,
    grpc.StatusCode.OUT_OF_RANGE: errors.OutOfRange,
    grpc.StatusCode.FAILED_PRECONDITION: errors.InUse,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.NoSpace,
    grpc.StatusCode.ABORTED: errors.Busy,
    grpc.StatusCode.UNAVAILABLE: errors.Unreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.Unreachable,
    grpc.StatusCode.UNIMPLEMENTED: errors.Unsupported,
}
# ABORTED is what a publish answers while the export is starting; grpc asks again by itself.
_SERVICE = {
    "methodConfig": [
        {
            "name": [{"service": "csi.v1.Controller"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "1s",
                "maxBackoff": "5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["ABORTED"],
            },
        }
    ]
}


class StorageMachine:
    """The controller behind a local socket."""

    def __init__(self, endpoint: str) -> None:
        """Raises: Invalid when it is no unix socket. Connects when it is first asked."""
        self._endpoint = endpoint
        self._channel = grpc.insecure_channel(
            f"unix:{parse_endpoint(endpoint)}", options=[("grpc.service_config", json.dumps(_SERVICE))]
        )
        self._controller = csi_pb2_grpc.ControllerStub(self._channel)
        self._identity = csi_pb2_grpc.IdentityStub(self._channel)

    def close(self) -> None:
        """Drop the connection."""
        self._channel.close()

    def origin(self) -> Origin:
        """Return who answers here. Raises: Unreachable."""
        with self._asking():
            info = self._identity.GetPluginInfo(csi.GetPluginInfoRequest(), timeout=WHO_S)
        return Origin(node=info.manifest.get(MANIFEST_NODE, ""), endpoint=self._endpoint)

    def publish(self, volume_id: VolumeId, node: NodeIdentity, mode: AccessMode) -> Attachment:
        """Grant a node a volume as a block device; a grant it has is returned. Raises: what the controller answers."""
        capability = csi.VolumeCapability(
            block=csi.VolumeCapability.BlockVolume(),
            access_mode=csi.VolumeCapability.AccessMode(mode=access_mode(mode)),
        )
        request = csi.ControllerPublishVolumeRequest(
            volume_id=volume_id, node_id=str(node), volume_capability=capability, readonly=not mode.writes
        )
        with self._asking():
            reply = self._controller.ControllerPublishVolume(request, timeout=CALL_S)
        return requests.parse_attachment(dict(reply.publish_context), volume_id)

    def holders(self, volume_id: VolumeId) -> frozenset[NodeName]:
        """Return the nodes that a volume is published on. Raises: what the controller answers."""
        with self._asking():
            reply = self._controller.ControllerGetVolume(
                csi.ControllerGetVolumeRequest(volume_id=volume_id), timeout=CALL_S
            )
        return frozenset(NodeIdentity.parse(one).name for one in reply.status.published_node_ids)

    def unpublish(self, volume_id: VolumeId, node: NodeName) -> None:
        """Take a volume away from a node. By its name alone: a node whose card is gone must not keep a grant."""
        request = csi.ControllerUnpublishVolumeRequest(volume_id=volume_id, node_id=node)
        with self._asking():
            self._controller.ControllerUnpublishVolume(request, timeout=CALL_S)

    def expand(self, volume_id: VolumeId, size_bytes: int) -> int:
        """Grow a volume to at least so many bytes; return what it has."""
        request = csi.ControllerExpandVolumeRequest(
            volume_id=volume_id, capacity_range=csi.CapacityRange(required_bytes=size_bytes)
        )
        with self._asking():
            return self._controller.ControllerExpandVolume(request, timeout=CALL_S).capacity_bytes

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            kind = _KINDS.get(error.code(), errors.CommandFailed)
            where = f" (asked at {self._endpoint})" if kind is errors.Unreachable else ""
            raise kind(f"{error.details()}{where}") from error
