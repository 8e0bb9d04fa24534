"""kopf's connection to the API server, by which a list holds only what there is something to do about.

A restart asks for all volumes of a storage node at once. kopf gives each of them a task, and keeps it until the last
one was handled: ten thousand that are as they should be take 300 MB, which stay with the process. Whoever can say at a
glance that a listed resource needs nothing says so here; kopf meets it when it changes.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import aiohttp
import kopf
import msgspec

from aoe_core.errors import AoECsiError

log = logging.getLogger(__name__)

NeedsNothing = Callable[[msgspec.Raw], bool]
"""Says so of a listed resource, in JSON. Raises: AoECsiError when it cannot say of any."""

# Made before there are threads: two that make it at once would crash in msgspec.
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Session(kopf.AiohttpSession):
    """As kopf's, but the same as another one with the same credentials: kopf asks for no others once it has been
    refused with these, and would go on for ever with a session that is always new."""

    aiohttp_session: aiohttp.ClientSession = dataclasses.field(compare=False)
    credentials: kopf.ConnectionInfo


def connect(credentials: kopf.ConnectionInfo, needs_nothing: Mapping[str, NeedsNothing]) -> kopf.AiohttpSession:
    """Return a session as kopf makes them itself. `needs_nothing`: by kind; of others all are listed.

    Within a running loop. kopf closes it.
    """

    class Answer(aiohttp.ClientResponse):
        async def json(self, **known: Any) -> Any:
            """Return what the answer says. In a thread: to look at the host may take a while."""
            if self.status >= 400:
                # Said in plain text, or by somebody on the way: kopf knows aiohttp's errors for that, and tries again.
                return await super().json(**known)
            return await asyncio.to_thread(decode, await self.read(), needs_nothing)

    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=credentials.as_ssl_context()),
        headers=credentials.as_http_headers(),
        proxy=credentials.proxy_url,
        trust_env=credentials.trust_env,
        response_class=Answer,
    )
    return _Session(
        server=credentials.server,
        default_namespace=credentials.default_namespace,
        priority=credentials.priority,
        expiration=credentials.expiration,
        aiohttp_session=session,
        credentials=credentials,
    )


def decode(answer: bytes, needs_nothing: Mapping[str, NeedsNothing]) -> Any:
    """Return the resource, or the list of those that need something, which an API server answers with."""
    if not answer.strip():
        return None
    fields = _FIELDS.decode(answer)
    if "items" not in fields:
        return msgspec.json.decode(answer)
    said = {name: msgspec.json.decode(value) for name, value in fields.items() if name != "items"}
    kind = said.get("kind", "").removesuffix("List")
    return {**said, "items": list(_to_be_told(kind, _ITEMS.decode(fields["items"]), needs_nothing.get(kind)))}


def _to_be_told(kind: str, items: list[msgspec.Raw], needs_nothing: NeedsNothing | None) -> Iterator[Any]:
    for item in items:
        try:
            if needs_nothing is not None and needs_nothing(item):
                continue
        except AoECsiError as error:
            # What is wrong will be so for the next one too, and may take its time to say so.
            needs_nothing = None
            log.warning("all that is listed is looked at one by one", extra={"kind": kind, "error": str(error)})
        resource = msgspec.json.decode(item)
        # Who set which field is the larger half of many a resource, and nobody here asks.
        resource["metadata"].pop("managedFields", None)
        yield resource
