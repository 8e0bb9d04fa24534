"""The socket's life, and the end of a server's."""

import fcntl
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from aoe_core.errors import Busy, Invalid
from aoe_csi.controller import Controller
from aoe_csi.identity import Identity
from aoe_csi.proto import csi_pb2 as csi
from aoe_csi.proto import csi_pb2_grpc
from aoe_csi.server import Server, Services

from .memory import MemoryProvisioner
from .plugin import create


def probe(path: Path) -> bool:
    with grpc.insecure_channel(f"unix:{path}") as channel:
        return csi_pb2_grpc.IdentityStub(channel).Probe(csi.ProbeRequest(), timeout=30).ready.value


def new(path: Path, provisioner: MemoryProvisioner | None = None) -> Server:
    return Server(
        f"unix://{path}", Services(identity=Identity(), controller=Controller(provisioner or MemoryProvisioner()))
    )


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield listener


def test_the_socket_is_the_owners_alone_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "csi.sock"
    server = new(path)
    server.start()
    assert probe(path)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert server.stop(5)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["csi.sock.lock"]


def test_the_next_server_takes_the_place(tmp_path: Path) -> None:
    for _ in range(2):
        server = new(tmp_path / "csi.sock")
        server.start()
        assert probe(tmp_path / "csi.sock")
        assert server.stop(5)


def test_a_second_server_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "csi.sock"
    first = new(path)
    first.start()
    with pytest.raises(Busy, match=r"csi\.sock is served by another process"):
        new(path).start()
    assert probe(path)
    assert first.stop(5)


def test_a_server_that_is_only_just_starting_keeps_the_place(tmp_path: Path) -> None:
    path = tmp_path / "csi.sock"
    with (tmp_path / "csi.sock.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="another process"):
            new(path).start()
    assert not path.exists()
    server = new(path)
    server.start()
    assert server.stop(5)


def test_a_socket_that_somebody_listens_on_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "csi.sock"
    with listening(path) as listener:
        with pytest.raises(Busy, match="another process"):
            new(path).start()
        listener.accept()[0].close()
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "csi.sock"
    with listening(path):
        pass
    assert path.is_socket()
    server = new(path)
    server.start()
    assert probe(path)
    assert server.stop(5)


def test_something_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "csi.sock"
    path.write_text("precious")
    with pytest.raises(Invalid, match="is no socket"):
        new(path).start()
    assert path.read_text() == "precious"


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="absent"):
        new(tmp_path / "absent" / "csi.sock").start()


def test_a_newer_process_keeps_its_socket_when_an_older_server_stops(tmp_path: Path) -> None:
    path = tmp_path / "csi.sock"
    older = new(path)
    older.start()
    path.unlink()
    with listening(path):
        assert older.stop(5)
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))


def test_a_running_call_ends_before_the_server_does(tmp_path: Path) -> None:
    provisioner = MemoryProvisioner()
    entered, leave = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        assert leave.wait(60)

    provisioner.trouble["create_volume"] = wait
    server = new(tmp_path / "csi.sock", provisioner)
    server.start()
    ended: list[bool] = []
    with grpc.insecure_channel(f"unix:{tmp_path / 'csi.sock'}") as channel:
        call = csi_pb2_grpc.ControllerStub(channel).CreateVolume.future(create())
        assert entered.wait(60)
        stopping = threading.Thread(target=lambda: ended.append(server.stop(60)))
        stopping.start()
        leave.set()
        assert call.result(60).volume.volume_id == "pvc-1"
        stopping.join(60)
    assert ended == [True]


def test_a_stuck_call_does_not_hold_the_server_for_ever_nor_the_socket(tmp_path: Path) -> None:
    provisioner = MemoryProvisioner()
    entered, leave = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        assert leave.wait(60)

    provisioner.trouble["create_volume"] = wait
    server = new(tmp_path / "csi.sock", provisioner)
    server.start()
    with grpc.insecure_channel(f"unix:{tmp_path / 'csi.sock'}") as channel:
        call = csi_pb2_grpc.ControllerStub(channel).CreateVolume.future(create())
        assert entered.wait(60)
        assert not server.stop(0.1)
        with pytest.raises(grpc.RpcError):
            call.result(60)
    following = new(tmp_path / "csi.sock")
    following.start()
    assert probe(tmp_path / "csi.sock")
    assert following.stop(5)
    leave.set()
