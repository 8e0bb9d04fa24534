"""The `aoe-csi` command as a process."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest

from aoe_csi import __version__
from aoe_csi.proto import csi_pb2 as csi
from aoe_csi.proto import csi_pb2_grpc

STORAGE = """
node = "s1"
compute = false
state_directory = "{state}"
[[pool]]
name = "fast"
volume_group = "aoe-csi-test-absent"
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "aoe_csi", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(STORAGE.format(state=tmp_path / "state"))
    return path


@pytest.mark.parametrize("name", ["standalone", "node", "status", "preflight", "prepare-host"])
def test_a_missing_configuration_is_one_sentence_and_code_2(name: str, tmp_path: Path) -> None:
    done = run(name, "--config", str(tmp_path / "absent.toml"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "absent.toml" in done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('node = "s1"\ncolour = "red"', "'colour'"),
        ('node = "s1"\ncompute = false', "nothing to serve"),
        ("node = ", "no valid TOML"),
    ],
)
def test_a_bad_configuration_is_one_sentence_and_code_2(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    done = run("standalone", "--config", str(tmp_path / "config.toml"), "--endpoint", str(tmp_path / "csi.sock"))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr


@pytest.mark.parametrize("act", ["list", "ready"])
def test_guests_of_a_machine_that_attaches_nothing_are_one_sentence_and_code_2(config: Path, act: str) -> None:
    done = run("guest", act, "--config", str(config))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "attaches nothing" in done.stderr


def test_a_bad_endpoint_is_one_sentence_and_code_2(config: Path) -> None:
    done = run("standalone", "--config", str(config), "--endpoint", "tcp://127.0.0.1:9")
    assert done.returncode == 2
    assert "only local sockets are served" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_controller_without_a_cluster_is_one_sentence_and_code_2(tmp_path: Path) -> None:
    absent = tmp_path / "absent.conf"
    done = run("controller", "--kubeconfig", str(absent), "--endpoint", str(tmp_path / "csi.sock"))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "absent.conf" in done.stderr
    assert "--kubeconfig" in done.stderr


def test_it_says_which_version_it_is() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"aoe-csi {__version__}\n")


def test_no_command_is_a_usage_error() -> None:
    done = run()
    assert done.returncode == 2
    assert "usage: aoe-csi" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_stop(config: Path, tmp_path: Path, number: signal.Signals) -> None:
    socket = tmp_path / "csi.sock"
    with subprocess.Popen(
        command("standalone", "--config", str(config), "--endpoint", f"unix://{socket}", "--log-format", "json"),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            until = time.monotonic() + 60
            while not socket.exists() and process.poll() is None and time.monotonic() < until:
                time.sleep(0.05)
            with grpc.insecure_channel(f"unix:{socket}") as channel:
                info = csi_pb2_grpc.IdentityStub(channel).GetPluginInfo(csi.GetPluginInfoRequest(), timeout=30)
                assert info.name == "aoe-csi.dev"
                with pytest.raises(grpc.RpcError):
                    csi_pb2_grpc.NodeStub(channel).NodeGetInfo(csi.NodeGetInfoRequest(), timeout=30)
            process.send_signal(number)
            _, log = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, log
    assert not socket.exists()
    assert '"method": "/csi.v1.Identity/GetPluginInfo"' in log
