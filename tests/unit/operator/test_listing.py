"""What kopf is told of a list: what needs something, and nothing that nobody asks for."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import aiohttp
import kopf
import msgspec
import pytest

from aoe_core.errors import CommandFailed
from aoe_operator.listing import connect, decode

KIND = "AoEVolume"


def resource(name: str) -> dict[str, object]:
    return {"kind": KIND, "metadata": {"name": name, "managedFields": [{"manager": "m"}]}, "status": {"size": "1Gi"}}


def answer(*names: str) -> bytes:
    listed = [resource(name) for name in names]
    return msgspec.json.encode({"kind": f"{KIND}List", "metadata": {"resourceVersion": "7"}, "items": listed})


def name_of(listed: msgspec.Raw) -> str:
    name = msgspec.json.decode(listed)["metadata"]["name"]
    assert isinstance(name, str)
    return name


def test_a_list_holds_what_needs_something() -> None:
    told = decode(answer("a", "b", "c"), {KIND: lambda listed: name_of(listed) != "b"})
    assert told == {
        "kind": "AoEVolumeList",
        "metadata": {"resourceVersion": "7"},
        "items": [{"kind": KIND, "metadata": {"name": "b"}, "status": {"size": "1Gi"}}],
    }


def test_of_other_kinds_all_are_listed() -> None:
    told = decode(answer("a", "b"), {"AoENode": lambda _: True})
    assert [one["metadata"]["name"] for one in told["items"]] == ["a", "b"]


def test_nobody_is_asked_again_who_cannot_say() -> None:
    """LVM that hangs takes a minute to say so: not once for each volume."""
    asked = []

    def fails_at_b(listed: msgspec.Raw) -> bool:
        asked.append(name_of(listed))
        if asked[-1] == "b":
            raise CommandFailed("lvm hangs")
        return True

    told = decode(answer("a", "b", "c"), {KIND: fails_at_b})
    assert asked == ["a", "b"]
    assert [one["metadata"]["name"] for one in told["items"]] == ["b", "c"]


def test_what_is_no_list_is_told_as_it_is() -> None:
    one = resource("a")
    assert decode(msgspec.json.encode(one), {KIND: lambda _: True}) == one
    assert decode(b" ", {}) is None


class _Answers(BaseHTTPRequestHandler):
    """What an API server says, and what one says that has no time, or somebody in front of it."""

    def do_GET(self) -> None:
        status, kind, text = {
            "/list": (200, "application/json", answer("a").decode()),
            "/nobody": (404, "application/json", '{"kind":"Status","code":404}'),
            "/busy": (429, "text/plain", "Too many requests, please try again later."),
            "/gateway": (502, "text/html", "<html>Bad Gateway</html>"),
        }[self.path]
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Answers) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


async def ask(server: str, path: str) -> Any:
    known = connect(kopf.ConnectionInfo(server=server), {})
    assert isinstance(known, kopf.AiohttpSession)
    async with known.aiohttp_session as session, session.get(f"{server}{path}") as said:
        return await said.json()


def test_a_refusal_is_told_as_aiohttp_tells_it(server: str) -> None:
    """kopf waits and tries again for what it knows; anything else would end the process."""
    assert asyncio.run(ask(server, "/list"))["items"][0]["metadata"] == {"name": "a"}
    assert asyncio.run(ask(server, "/nobody")) == {"kind": "Status", "code": 404}
    for path in ("/busy", "/gateway"):
        with pytest.raises(aiohttp.ContentTypeError):
            asyncio.run(ask(server, path))


def test_a_connection_is_told_by_its_credentials() -> None:
    """kopf gives up credentials that were refused, and would ask for ever with a session that is always new."""

    async def sessions() -> list[kopf.AiohttpSession]:
        made = [connect(kopf.ConnectionInfo(server="https://a", token=token), {}) for token in ("t", "t", "u")]
        for one in made:
            await one.aiohttp_session.close()
        return made

    first, same, other = asyncio.run(sessions())
    assert first == same
    assert first != other
