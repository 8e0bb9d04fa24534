"""Connections to the API server: they outlast the time between two questions of a process that is idle, and go by the
proxy that the environment names."""

import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aoe_core.resources.kubernetes import connected, is_definition_going

LONGER_THAN_HTTPX_WAITS_S = 6.0


class _Server(http.server.ThreadingHTTPServer):
    """An API server that has nothing, and knows who came by which connection."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.asked_by: list[object] = []


class _Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self.server.asked_by.append(self.client_address)
        body = json.dumps({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}).encode()
        self.send_response(404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def kubeconfig_of(place: Path, server: str) -> Path:
    """Write a kubeconfig of a server that asks nobody who he is."""
    kubeconfig = place / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "clusters": [{"name": "c", "cluster": {"server": server}}],
                "users": [{"name": "u", "user": {}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )
    return kubeconfig


def test_the_environment_s_proxy_is_used(server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.server_port}")
    client = connected(kubeconfig_of(tmp_path, "http://api.invalid"))
    assert is_definition_going(client, "anything")
    assert len(server.asked_by) == 1
    client.close()


def test_one_connection_serves_questions_that_are_seconds_apart(server: _Server, tmp_path: Path) -> None:
    client = connected(kubeconfig_of(tmp_path, f"http://127.0.0.1:{server.server_port}"))
    assert is_definition_going(client, "anything")
    time.sleep(LONGER_THAN_HTTPX_WAITS_S)
    assert is_definition_going(client, "anything")
    assert len(server.asked_by) == 2
    assert len(set(server.asked_by)) == 1
    client.close()
