"""The real gRPC server on a real socket, around the in-memory protocols, and a client of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from aoe_csi.attacher import Attacher
from aoe_csi.controller import Controller
from aoe_csi.identity import Identity
from aoe_csi.node import Node
from aoe_csi.proto import csi_pb2 as csi
from aoe_csi.proto import csi_pb2_grpc
from aoe_csi.provisioner import Provisioner
from aoe_csi.server import Server, Services

from .memory import NODE, MemoryAttacher, MemoryProvisioner

GIB = 1024**3
MODES = csi.VolumeCapability.AccessMode


@dataclass
class Stubs:
    """A client of every service at one socket."""

    channel: grpc.Channel
    identity: csi_pb2_grpc.IdentityStub = field(init=False)
    controller: csi_pb2_grpc.ControllerStub = field(init=False)
    node: csi_pb2_grpc.NodeStub = field(init=False)

    def __post_init__(self) -> None:
        self.identity = csi_pb2_grpc.IdentityStub(self.channel)
        self.controller = csi_pb2_grpc.ControllerStub(self.channel)
        self.node = csi_pb2_grpc.NodeStub(self.channel)


@dataclass
class Plugin(Stubs):
    provisioner: MemoryProvisioner
    attacher: MemoryAttacher

    @property
    def changes(self) -> int:
        return self.provisioner.changes + self.attacher.changes

    def volume(self, name: str = "pvc-1") -> csi.Volume:
        return self.controller.CreateVolume(create(name=name)).volume

    def published(self, name: str = "pvc-1", capability: csi.VolumeCapability | None = None) -> dict[str, str]:
        self.volume(name)
        reply = self.controller.ControllerPublishVolume(
            csi.ControllerPublishVolumeRequest(
                volume_id=name, node_id=str(NODE), volume_capability=capability or mount()
            )
        )
        return dict(reply.publish_context)


@contextmanager
def serving(socket: Path, provisioner: MemoryProvisioner, attacher: MemoryAttacher) -> Iterator[Plugin]:
    with connected(socket, provisioner, attacher) as channel:
        yield Plugin(channel, provisioner, attacher)


@contextmanager
def connected(socket: Path, provisioner: Provisioner, attacher: Attacher) -> Iterator[grpc.Channel]:
    server = Server(str(socket), Services(identity=Identity(), controller=Controller(provisioner), node=Node(attacher)))
    server.start()
    try:
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            yield channel
    finally:
        assert server.stop(5)


def mount(
    mode: MODES.Mode.ValueType = MODES.SINGLE_NODE_WRITER, fs_type: str = "", flags: tuple[str, ...] = ()
) -> csi.VolumeCapability:
    return csi.VolumeCapability(
        mount=csi.VolumeCapability.MountVolume(fs_type=fs_type, mount_flags=flags), access_mode=MODES(mode=mode)
    )


def block(mode: MODES.Mode.ValueType = MODES.SINGLE_NODE_WRITER) -> csi.VolumeCapability:
    return csi.VolumeCapability(block=csi.VolumeCapability.BlockVolume(), access_mode=MODES(mode=mode))


def create(
    *capabilities: csi.VolumeCapability,
    name: str = "pvc-1",
    required: int = GIB,
    limit: int = 0,
    **parameters: str,
) -> csi.CreateVolumeRequest:
    return csi.CreateVolumeRequest(
        name=name,
        capacity_range=csi.CapacityRange(required_bytes=required, limit_bytes=limit),
        volume_capabilities=capabilities or (mount(),),
        parameters=parameters,
    )


def outcome(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """What a failed call came to; grpc's stubs do not say that its errors are calls."""
    call: Any = error
    return call.code(), call.details()


@contextmanager
def refused(code: grpc.StatusCode, *words: str) -> Iterator[None]:
    """The block's call is refused with this code, in a sentence that holds these words and a remedy."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    found, details = outcome(caught.value)
    assert found is code, details
    for word in words:
        assert word in details
    if words:
        assert ";" in details, f"no remedy: {details}"
