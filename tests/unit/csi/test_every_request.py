"""Anything at all in every request of CSI 1.13: the answer has a code that means something, and the server lives."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode
from hypothesis import given, settings
from hypothesis import strategies as st

from aoe_core.model import VolumeId
from aoe_csi.proto import csi_pb2 as csi

from .memory import NODE, MemoryAttacher, MemoryProvisioner
from .plugin import Plugin, create, outcome, serving

METHODS: list[MethodDescriptor] = [
    method for service in csi.DESCRIPTOR.services_by_name.values() for method in service.methods
]
ANSWERS = set(StatusCode) - {StatusCode.UNKNOWN, StatusCode.INTERNAL, StatusCode.UNIMPLEMENTED}
NOT_OFFERED = {
    "ControllerModifyVolume",
    "ControllerListVolumeHealth",
    "ControllerGetVolumeHealth",
    "NodeGetVolumeHealth",
    "NodeGetStorageHealth",
    *(method.name for method in METHODS if method.containing_service.name in ("GroupController", "SnapshotMetadata")),
}

# Values that lead further in than chance would.
PLAUSIBLE = [
    "pvc-1",
    "snap-1",
    str(NODE),
    "ext4",
    "xfs",
    "/staging",
    "/target",
    "fast",
    "sync",
    "e1.0",
    "1",
    "true",
    "",
]
HOSTILE = ["../..", "-rf", "\x00", "a\nb", "x" * 129, "🦀" * 40, "x" * 5000, "{}", "%s%n", "'; --", "\u202e"]
KEYS = ["pool", "san", "version", "volume_id", "transport", "address", "size_bytes", "writable", "fstype"]
TEXT = st.one_of(st.sampled_from(PLAUSIBLE), st.sampled_from(HOSTILE), st.text(max_size=20))
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: TEXT,
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: st.one_of(
        st.sampled_from([0, 1, -1, 2**30, 2**31, 2**57, 2**63 - 1, -(2**63)]), st.integers(-(2**63), 2**63 - 1)
    ),
    FieldDescriptor.TYPE_ENUM: st.one_of(st.integers(0, 8), st.integers(-(2**31), 2**31 - 1)),
}
CONTEXT = st.just(
    {
        "version": "1",
        "volume_id": "pvc-1",
        "transport": "aoe",
        "serial": "abcdefghi",
        "size_bytes": "1073741824",
        "filesystem": "",
        "writable": "true",
        "address": "e10.0",
        "san": "main",
        "target_mac": "",
        "device": "",
    }
)


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor) -> Message:
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if not draw(st.integers(0, 3)):
            continue
        value: Any
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            texts = st.dictionaries(st.one_of(st.sampled_from(KEYS), TEXT), TEXT, max_size=3)
            if field.name == "publish_context":
                texts = st.one_of(CONTEXT, st.builds(lambda left, right: left | right, CONTEXT, texts), texts)
            getattr(message, field.name).update(draw(texts))
        elif field.is_repeated:
            one = messages(kind) if kind is not None else SCALARS[field.type]
            getattr(message, field.name).extend(draw(st.lists(one, max_size=3)))
        elif kind is not None:
            value = draw(messages(kind))
            getattr(message, field.name).CopyFrom(value)
        else:
            setattr(message, field.name, draw(SCALARS[field.type]))
    return message


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugin]:
    with serving(tmp_path_factory.mktemp("every") / "csi.sock", MemoryProvisioner(), MemoryAttacher()) as plugin:
        yield plugin


def answer(channel: grpc.Channel, method: MethodDescriptor, request: Message) -> StatusCode:
    call: Any = channel.unary_unary(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    try:
        call(request)
    except grpc.RpcError as error:
        return outcome(error)[0]
    return StatusCode.OK


def test_all_services_of_the_specification_are_asked() -> None:
    assert len(METHODS) >= 36
    assert {method.name for method in METHODS} >= NOT_OFFERED


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_any_request_is_answered_with_a_known_code(shared: Plugin, method: MethodDescriptor) -> None:
    @settings(max_examples=60)
    @given(request=messages(method.input_type))
    def ask(request: Message) -> None:
        shared.controller.CreateVolume(create(name="pvc-1"))
        code = answer(shared.channel, method, request)
        if method.name in NOT_OFFERED:
            assert code is StatusCode.UNIMPLEMENTED
        else:
            assert code in ANSWERS
        shared.provisioner.volumes.pop(VolumeId("pvc-1"), None)

    ask()
    assert shared.identity.Probe(csi.ProbeRequest()).ready.value
