"""The node server in a cluster: registration with kubelet, health, and what a machine that lacks something says."""

import logging
import re
import signal
import socket
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from aoe_core.errors import Invalid
from aoe_csi.cluster_node import ClusterNode
from aoe_csi.composition import compose_cluster_node
from aoe_csi.health import Health, parse_address
from aoe_csi.proto import csi_pb2 as csi
from aoe_csi.proto import csi_pb2_grpc, pluginregistration_pb2_grpc
from aoe_csi.proto import pluginregistration_pb2 as registration
from aoe_csi.server import Server

from .test_command import command

RULES = '[[san]]\nname = "main"\ninterfaces = ["aoe-csi-absent"]\n'


def ask(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def logged_lacks(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [vars(record)["lack"] for record in caplog.records if record.getMessage() == "what this node lacks"]


class Started:
    """An `aoe-csi node` of a cluster, with a kubelet's directory to register in."""

    def __init__(self, directory: Path) -> None:
        (directory / "rules.toml").write_text(RULES)
        self.rules = directory / "rules.toml"
        self.registry = directory / "registry"
        self.registry.mkdir()
        self.socket = directory / "csi.sock"
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command(
                    *("node", "--node-name", "n1", "--san-rules", str(self.rules), "--health", "127.0.0.1:0"),
                    *("--registration-directory", str(self.registry), "--endpoint", f"unix://{self.socket}"),
                ),
                stderr=log,
            )
        self.registration = self.registry / "aoe-csi.dev-reg.sock"

    def port(self) -> int:
        for line in self.log.read_text().splitlines():
            if "serving probes" in line:
                return int(line.rpartition("port=")[2])
        raise AssertionError(self.log.read_text())


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    node = Started(tmp_path)
    deadline = time.monotonic() + 60
    while not node.registration.exists() and time.monotonic() < deadline and node.process.poll() is None:
        time.sleep(0.05)
    yield node
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(60) == 0, node.log.read_text()
    assert not node.registration.exists()


def test_kubelet_is_told_who_it_is_and_tells_what_came_of_it(started: Started) -> None:
    with grpc.insecure_channel(f"unix:{started.registration}") as channel:
        kubelet = pluginregistration_pb2_grpc.RegistrationStub(channel)
        info = kubelet.GetInfo(registration.InfoRequest(), timeout=30)
        assert (info.type, info.name, info.endpoint) == ("CSIPlugin", "aoe-csi.dev", str(started.socket))
        assert list(info.supported_versions) == ["1.0.0"]
        kubelet.NotifyRegistrationStatus(
            registration.RegistrationStatus(plugin_registered=False, error="no such node"), timeout=30
        )
    assert "no such node" in started.log.read_text()


def test_a_node_on_no_san_takes_no_part_and_holds_up_no_update(started: Started) -> None:
    port = started.port()
    assert ask(port, "/healthz") == (200, "ok\n")
    assert ask(port, "/readyz") == (200, "ok\n")
    assert "no rule for a SAN matches an interface of node n1 (it has" in started.log.read_text()
    with grpc.insecure_channel(f"unix:{started.socket}") as channel, pytest.raises(grpc.RpcError) as refusal:
        csi_pb2_grpc.NodeStub(channel).NodeGetInfo(csi.NodeGetInfoRequest(), timeout=30)
    assert "mend the rules" in str(refusal.value.details())
    told = ask(port, "/metrics")[1]
    assert "aoe_csi_node_lacking 0.0" in told
    assert "aoe_csi_node_sans 0.0" in told
    assert 'aoe_csi_call_seconds_count{code="UNAVAILABLE",method="NodeGetInfo"} 1.0' in ask(port, "/metrics")[1]
    assert ask(port, "/other")[0] == 404


def test_changed_rules_have_it_started_anew(started: Started) -> None:
    started.rules.write_text(RULES.replace("aoe-csi-absent", "lo"))
    code, said = ask(started.port(), "/healthz")
    assert code == 503
    assert "starting anew takes them up" in said


@pytest.mark.parametrize("words", [("node",), ("guest", "list")])
def test_rules_need_a_node_name(tmp_path: Path, words: tuple[str, ...]) -> None:
    argv = command(*words, "--san-rules", str(tmp_path / "rules"))
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "--node-name" in done.stderr


def test_what_a_machine_lacks_is_told_to_kubelet_to_its_probe_and_to_prometheus(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES.replace("aoe-csi-absent", "aoe-test0"))
    (tmp_path / "net" / "aoe-test0").mkdir(parents=True)
    node = ClusterNode(rules, "n1", enter_host=False, interfaces=tmp_path / "net", state=tmp_path)
    server = Server(str(tmp_path / "csi.sock"), compose_cluster_node(node).services)
    server.start()
    try:
        with (
            Health(("127.0.0.1", 0), alive=node.find_change, ready=node.find_lack) as health,
            grpc.insecure_channel(f"unix:{tmp_path}/csi.sock") as channel,
        ):
            code, said = ask(health.port, "/readyz")
            assert code == 503
            assert "run aoe-csi prepare-host" in said
            assert ask(health.port, "/healthz") == (200, "ok\n")
            told = re.search(r"^aoe_csi_node_lacking (.*)$", ask(health.port, "/metrics")[1], re.MULTILINE)
            assert told is not None
            assert float(told[1]) > 0
            with pytest.raises(grpc.RpcError) as refusal:
                csi_pb2_grpc.NodeStub(channel).NodeGetInfo(csi.NodeGetInfoRequest(), timeout=30)
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
            assert refusal.value.details() == said.rstrip("\n")
    finally:
        assert server.stop(5)


def test_what_a_machine_lacks_is_in_its_log_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aoe_csi.cluster_node._LOOK_EVERY_S", 0.0)
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES.replace("aoe-csi-absent", "aoe-test0"))
    (tmp_path / "net" / "aoe-test0").mkdir(parents=True)
    node = ClusterNode(rules, "n1", enter_host=False, interfaces=tmp_path / "net", state=tmp_path)
    lack = node.find_lack()
    assert node.find_lack() == lack
    assert logged_lacks(caplog) == [lack]


def test_who_once_was_on_a_san_and_is_no_more_lacks_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A card that is gone, or a rule that was mistyped."""
    rules = tmp_path / "rules.toml"
    (tmp_path / "net" / "lo").mkdir(parents=True)

    def node(interface: str) -> ClusterNode:
        rules.write_text(RULES.replace("aoe-csi-absent", interface))
        return ClusterNode(rules, "n1", enter_host=False, interfaces=tmp_path / "net", state=tmp_path / "state")

    bystander = node("eth1")
    assert not bystander.takes_part
    assert compose_cluster_node(bystander).background == ()
    assert node("lo").takes_part
    assert node("eth1").takes_part
    lack = node("eth1").find_lack()
    assert lack == "no rule for a SAN matches an interface of node n1 (it has lo); mend the rules"
    assert logged_lacks(caplog) == [lack]


@pytest.mark.parametrize("text", ["", "9808", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:70000"])
def test_a_bad_health_address_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="HOST:PORT"):
        parse_address(text)


def test_a_taken_port_is_refused_by_number() -> None:
    def well() -> None:
        return None

    with (
        Health(("127.0.0.1", 0), alive=well, ready=well) as first,
        pytest.raises(Invalid, match=f"127.0.0.1:{first.port} cannot be served"),
    ):
        Health(("127.0.0.1", first.port), alive=well, ready=well)


def test_a_probe_that_hangs_up_is_no_bug(caplog: pytest.LogCaptureFixture) -> None:
    asked, answer = threading.Event(), threading.Event()

    def slow() -> None:
        asked.set()
        answer.wait(30)

    with caplog.at_level(logging.INFO), Health(("127.0.0.1", 0), alive=slow, ready=slow) as health:
        with socket.create_connection(("127.0.0.1", health.port)) as probe:
            # So that to close it sends a reset, and the answer finds nobody.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            probe.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert asked.wait(30)
        answer.set()
        deadline = time.monotonic() + 30
        while "whoever asked did not wait for the answer" not in caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "whoever asked did not wait for the answer" in caplog.messages
    assert not [record for record in caplog.records if record.exc_info]
