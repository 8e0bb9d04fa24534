"""Pages of a list, by the last id given out.

A token carries the id its page ended with, so entries that come or go between two pages neither repeat nor hide
others. It is sealed with a key that lives as long as the process: a token of another list, of an earlier process, or
made up, is refused and the listing starts again.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from aoe_core.errors import Busy, Invalid

Entry = TypeVar("Entry")
_SEAL_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[Entry]):
    """Some entries, and the token for those after them (empty when there are none)."""

    entries: tuple[Entry, ...]
    next_token: str


class Pages:
    """Cuts lists into pages."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def cut(
        self, entries: Iterable[Entry], id_of: Callable[[Entry], str], *, of: str, max_entries: int, token: str
    ) -> Page[Entry]:
        """Return the page after `token`; `of` names the list, and no other list takes its tokens.

        Raises: Invalid for a negative `max_entries`; Busy (ABORTED, as csi.proto wants) for a token that is not ours.
        """
        if max_entries < 0:
            raise Invalid(f"max_entries is {max_entries}; give 0 for all, or a number of entries")
        after = self._open(of, token) if token else ""
        rest = sorted((entry for entry in entries if id_of(entry) > after), key=id_of)
        page = rest[:max_entries] if max_entries else rest
        more = len(page) < len(rest)
        return Page(entries=tuple(page), next_token=self._seal(of, id_of(page[-1])) if more else "")

    def _mac(self, of: str, last: str) -> bytes:
        return hmac.new(self._key, f"{of}\n{last}".encode(), hashlib.sha256).digest()[:_SEAL_BYTES]

    def _seal(self, of: str, last: str) -> str:
        return base64.urlsafe_b64encode(self._mac(of, last) + last.encode()).decode()

    def _open(self, of: str, token: str) -> str:
        refused = Busy("starting_token is not one this server gave out for this list; list again from the start")
        try:
            sealed = base64.b64decode(token, altchars=b"-_", validate=True)
            last = sealed[_SEAL_BYTES:].decode()
        except (binascii.Error, ValueError) as error:
            raise refused from error
        if not hmac.compare_digest(sealed[:_SEAL_BYTES], self._mac(of, last)):
            raise refused
        return last
