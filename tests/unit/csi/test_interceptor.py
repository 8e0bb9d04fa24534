"""The edge: codes, secrets, deadlines, bugs, and methods that are not offered."""

import contextlib
import inspect
import io
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode

from aoe_core import errors
from aoe_csi import logs
from aoe_csi.identity import Identity
from aoe_csi.interceptor import Edge, clear_secrets, code_of
from aoe_csi.proto import csi_pb2 as csi
from aoe_csi.proto import csi_pb2_grpc
from aoe_csi.server import MAX_WORKERS, Server, Services

from .memory import NODE
from .plugin import Plugin, create, mount, outcome, refused

Call = Callable[[], object]
EXPECTED = {
    errors.Invalid: StatusCode.INVALID_ARGUMENT,
    errors.NotFound: StatusCode.NOT_FOUND,
    errors.Conflict: StatusCode.ALREADY_EXISTS,
    errors.OutOfRange: StatusCode.OUT_OF_RANGE,
    errors.InUse: StatusCode.FAILED_PRECONDITION,
    errors.NoSpace: StatusCode.RESOURCE_EXHAUSTED,
    errors.Busy: StatusCode.ABORTED,
    errors.Unfinished: StatusCode.ABORTED,
    errors.Unreachable: StatusCode.UNAVAILABLE,
    errors.Unsupported: StatusCode.UNIMPLEMENTED,
    errors.CommandFailed: StatusCode.INTERNAL,
    errors.IdentityMismatch: StatusCode.FAILED_PRECONDITION,
    errors.AoECsiError: StatusCode.INTERNAL,
}


def test_every_error_has_its_code() -> None:
    classes = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    tree = {kind for kind in classes if issubclass(kind, errors.AoECsiError)}
    assert tree == set(EXPECTED)
    assert {kind: code_of(kind("x")) for kind in tree} == EXPECTED


def test_a_finer_error_has_its_parents_code() -> None:
    class Finer(errors.NoSpace):
        pass

    assert code_of(Finer("x")) is StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("kind", [kind for kind in EXPECTED if kind is not errors.AoECsiError])
def test_an_error_below_arrives_as_its_code_and_sentence(plugin: Plugin, kind: type[errors.AoECsiError]) -> None:
    def fail() -> None:
        raise kind("volume pvc-1 is odd; do better")

    plugin.provisioner.trouble["create_volume"] = fail
    with refused(EXPECTED[kind], "volume pvc-1 is odd; do better"):
        plugin.volume()
    del plugin.provisioner.trouble["create_volume"]
    assert plugin.volume().volume_id == "pvc-1"


def test_a_bug_is_logged_with_its_traceback_and_told_in_general(
    plugin: Plugin, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("the inside of things")

    plugin.provisioner.trouble["create_volume"] = fail
    with caplog.at_level(logging.INFO), refused(StatusCode.INTERNAL, "CreateVolume", "log"):
        plugin.volume()
    assert "the inside of things" in caplog.text
    del plugin.provisioner.trouble["create_volume"]
    assert plugin.volume().volume_id == "pvc-1"


def test_a_bugs_text_is_not_told_to_the_caller(plugin: Plugin) -> None:
    def fail() -> None:
        raise KeyError("the inside of things")

    plugin.provisioner.trouble["create_volume"] = fail
    with pytest.raises(grpc.RpcError) as caught:
        plugin.volume()
    assert "inside" not in outcome(caught.value)[1]


def test_each_call_is_one_line_with_its_facts(plugin: Plugin, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        plugin.volume()
        with refused(StatusCode.NOT_FOUND):
            plugin.controller.ControllerGetVolume(csi.ControllerGetVolumeRequest(volume_id="absent"))
        # Asked after every volume, for every class: no news.
        plugin.controller.GetCapacity(csi.GetCapacityRequest())
    calls = [logs.facts_of(record) for record in caplog.records if record.getMessage() == "call"]
    assert [(one["method"], one["code"]) for one in calls] == [
        ("/csi.v1.Controller/CreateVolume", "OK"),
        ("/csi.v1.Controller/ControllerGetVolume", "NOT_FOUND"),
    ]
    assert calls[0]["object"] == "'pvc-1'"
    assert calls[1]["volume"] == "'absent'"
    assert "absent" in str(calls[1]["error"])
    assert all(isinstance(one["ms"], int) for one in calls)


MARK = "hunter2-the-secret"


def test_every_secret_field_of_every_message_is_cleared() -> None:
    cleared = 0
    for descriptor in csi.DESCRIPTOR.message_types_by_name.values():
        message = GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if field.type == FieldDescriptor.TYPE_MESSAGE and field.GetOptions().Extensions[csi.csi_secret]:
                getattr(message, field.name)["key"] = MARK
                cleared += 1
        clear_secrets(message)
        assert MARK not in str(message)
    assert cleared >= 15


def test_a_secret_deep_inside_is_found_and_the_rest_is_kept() -> None:
    # No message of CSI 1.13 has one inside another; a message that holds ours stands for one that will.
    request = create(mount(flags=("noatime",)), pool="fast")
    request.secrets["key"] = MARK
    kept = csi.CreateVolumeRequest()
    kept.CopyFrom(request)
    kept.ClearField("secrets")
    clear_secrets(request)
    assert request == kept


class Recorder(csi_pb2_grpc.ControllerServicer):
    def __init__(self) -> None:
        self.requests: list[csi.CreateVolumeRequest] = []

    def CreateVolume(  # noqa: N802
        self,
        request: csi.CreateVolumeRequest,
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> csi.CreateVolumeResponse:
        self.requests.append(request)
        return csi.CreateVolumeResponse()


def test_no_servicer_ever_sees_a_secret(tmp_path: Path) -> None:
    recorder = Recorder()
    server = Server(str(tmp_path / "csi.sock"), Services(identity=Identity(), controller=recorder))
    server.start()
    request = create()
    request.secrets["key"] = MARK
    with grpc.insecure_channel(f"unix:{tmp_path / 'csi.sock'}") as channel:
        csi_pb2_grpc.ControllerStub(channel).CreateVolume(request)
    assert server.stop(5)
    assert recorder.requests == [create()]


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_secret_reaches_the_log_or_the_caller(plugin: Plugin, form: logs.Format) -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    for handler in before[0]:
        root.removeHandler(handler)
    told: list[str] = []
    try:
        logs.start(form, "debug", stream)

        def fail() -> None:
            raise RuntimeError("a bug")

        secrets = {"password": MARK, MARK: "x"}
        good = create()
        good.secrets.update(secrets)
        plugin.controller.CreateVolume(good)
        bad = create(colour="red")
        bad.secrets.update(secrets)
        plugin.provisioner.trouble["publish"] = fail
        for call in (
            lambda: plugin.controller.CreateVolume(bad),
            lambda: plugin.controller.ControllerPublishVolume(
                csi.ControllerPublishVolumeRequest(
                    volume_id="pvc-1", node_id=str(NODE), volume_capability=mount(), secrets=secrets
                )
            ),
            lambda: plugin.controller.DeleteSnapshot(csi.DeleteSnapshotRequest(secrets=secrets)),
            lambda: plugin.controller.CreateVolume(create(mount(flags=(f"-{MARK}",)))),
            lambda: plugin.node.NodeStageVolume(csi.NodeStageVolumeRequest(volume_id="pvc-1", secrets=secrets)),
            lambda: plugin.controller.ControllerModifyVolume(
                csi.ControllerModifyVolumeRequest(volume_id="pvc-1", secrets=secrets)
            ),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            told.append(outcome(caught.value)[1])
    finally:
        logging.basicConfig(handlers=before[0], level=before[1], force=True)
    assert stream.getvalue().count("/csi.v1.") >= 7
    assert "a bug" in stream.getvalue()
    assert MARK not in stream.getvalue()
    assert MARK not in "".join(told)


def test_a_long_sentence_still_arrives(plugin: Plugin) -> None:
    def fail() -> None:
        raise errors.Invalid("🦀" * 9000)

    plugin.provisioner.trouble["create_volume"] = fail
    with pytest.raises(grpc.RpcError) as caught:
        plugin.volume()
    code, sentence = outcome(caught.value)
    assert code is StatusCode.INVALID_ARGUMENT
    assert set(sentence) == {"🦀"}


def raw_call(plugin: Plugin, method: str, raw: bytes) -> None:
    call: Any = plugin.channel.unary_unary(method)
    call(raw)


@pytest.mark.parametrize("raw", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\xff"])
def test_bytes_that_are_no_message_are_an_invalid_argument(plugin: Plugin, raw: bytes) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, "CreateVolume"):
        raw_call(plugin, "/csi.v1.Controller/CreateVolume", raw)


def test_what_is_not_offered_says_so(plugin: Plugin) -> None:
    modify = csi.ControllerModifyVolumeRequest(volume_id="pvc-1")
    group = csi_pb2_grpc.GroupControllerStub(plugin.channel)
    calls: tuple[Call, ...] = (
        lambda: plugin.controller.ControllerModifyVolume(modify),
        lambda: plugin.controller.ControllerGetVolumeHealth(csi.ControllerGetVolumeHealthRequest()),
        lambda: plugin.node.NodeGetStorageHealth(csi.NodeGetStorageHealthRequest()),
        lambda: group.GroupControllerGetCapabilities(csi.GroupControllerGetCapabilitiesRequest()),
        lambda: raw_call(plugin, "/csi.v1.Nonsense/Nothing", b""),
    )
    for call in calls:
        with refused(StatusCode.UNIMPLEMENTED, "is not offered"):
            call()


class Aborted(Exception):
    pass


class LateContext:
    """A call's context at the very moment its time is up or its caller gone: grpc drops most such calls itself, but
    not one that ends between its own look and ours."""

    def __init__(self, *, active: bool, left_s: float | None) -> None:
        self.active = active
        self.left_s = left_s
        self.code: StatusCode | None = None

    def is_active(self) -> bool:
        return self.active

    def time_remaining(self) -> float | None:
        return self.left_s

    def abort(self, code: StatusCode, details: str) -> None:
        self.code = code
        raise Aborted(details)


@pytest.mark.parametrize(
    ("context", "code", "begun"),
    [
        (LateContext(active=True, left_s=0.0), StatusCode.DEADLINE_EXCEEDED, 0),
        (LateContext(active=True, left_s=-1.0), StatusCode.DEADLINE_EXCEEDED, 0),
        (LateContext(active=False, left_s=5.0), StatusCode.CANCELLED, 0),
        (LateContext(active=True, left_s=5.0), None, 1),
        (LateContext(active=True, left_s=None), None, 1),
    ],
)
def test_nothing_is_begun_for_a_caller_who_no_longer_waits(
    context: LateContext, code: StatusCode | None, begun: int
) -> None:
    recorder = Recorder()
    behaviour: Any = Edge().intercept_service(
        lambda _: grpc.unary_unary_rpc_method_handler(
            recorder.CreateVolume, request_deserializer=csi.CreateVolumeRequest.FromString
        ),
        Details("/csi.v1.Controller/CreateVolume"),
    )
    with contextlib.suppress(Aborted):
        behaviour.unary_unary(create().SerializeToString(), context)
    assert context.code is code
    assert len(recorder.requests) == begun


class Details(grpc.HandlerCallDetails):
    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata = ()


def test_a_call_whose_deadline_passed_in_the_queue_changes_nothing_and_identity_answers_all_along(
    plugin: Plugin,
) -> None:
    working, leave = threading.Semaphore(0), threading.Event()

    def wait() -> None:
        working.release()
        assert leave.wait(60)

    plugin.provisioner.trouble["create_volume"] = wait
    stuck = [plugin.controller.CreateVolume.future(create(name=f"stuck-{number}")) for number in range(MAX_WORKERS)]
    for _ in stuck:
        assert working.acquire(timeout=60)
    late = plugin.controller.CreateVolume.future(create(name="late"), timeout=0.2)
    with pytest.raises(grpc.RpcError) as caught:
        late.result()
    assert outcome(caught.value)[0] is StatusCode.DEADLINE_EXCEEDED
    assert plugin.identity.Probe(csi.ProbeRequest(), timeout=60).ready.value
    assert plugin.node.NodeGetInfo(csi.NodeGetInfoRequest(), timeout=60).node_id == str(NODE)
    del plugin.provisioner.trouble["create_volume"]
    leave.set()
    for call in stuck:
        call.result(60)
    # First in, first out: when this one has been served, the late one has had its turn.
    plugin.volume("afterwards")
    assert "late" not in plugin.provisioner.volumes
    assert len(plugin.provisioner.volumes) == MAX_WORKERS + 1
