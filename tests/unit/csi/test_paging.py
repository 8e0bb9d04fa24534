import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe_core.errors import Busy, Invalid
from aoe_csi.paging import Pages

IDS = st.sets(st.text(alphabet="abc-1", min_size=1, max_size=4))


@given(ids=IDS, max_entries=st.integers(1, 5))
def test_pages_give_every_entry_once_in_order(ids: set[str], max_entries: int) -> None:
    pages = Pages()
    seen: list[str] = []
    token = ""
    while True:
        page = pages.cut(ids, str, of="list", max_entries=max_entries, token=token)
        assert len(page.entries) <= max_entries
        seen += page.entries
        token = page.next_token
        if not token:
            break
    assert seen == sorted(ids)


@given(ids=IDS.filter(lambda ids: len(ids) > 2), gone=IDS, come=IDS)
def test_entries_that_stay_are_seen_whatever_comes_and_goes(ids: set[str], gone: set[str], come: set[str]) -> None:
    pages = Pages()
    first = pages.cut(ids, str, of="list", max_entries=2, token="")
    second = pages.cut((ids - gone) | come, str, of="list", max_entries=0, token=first.next_token)
    assert set(first.entries) | set(second.entries) >= ids - gone
    assert not set(first.entries) & set(second.entries)


def test_zero_entries_asked_for_means_all() -> None:
    page = Pages().cut("cab", str, of="list", max_entries=0, token="")
    assert page.entries == ("a", "b", "c")
    assert page.next_token == ""


def test_a_negative_number_of_entries_is_refused() -> None:
    with pytest.raises(Invalid, match="max_entries is -1"):
        Pages().cut("abc", str, of="list", max_entries=-1, token="")


@pytest.mark.parametrize(
    "token",
    ["invalid-token", "0", "a", "é", "====", "-" * 4000, base64.urlsafe_b64encode(b"\xff" * 40).decode(), "\x00"],
)
def test_a_made_up_token_is_refused(token: str) -> None:
    with pytest.raises(Busy, match="starting_token"):
        Pages().cut("abc", str, of="list", max_entries=1, token=token)


def test_a_token_is_good_for_its_own_list_and_process_only() -> None:
    pages = Pages()
    token = pages.cut("abc", str, of="volumes", max_entries=1, token="").next_token
    assert pages.cut("abc", str, of="volumes", max_entries=0, token=token).entries == ("b", "c")
    with pytest.raises(Busy):
        pages.cut("abc", str, of="snapshots", max_entries=1, token=token)
    with pytest.raises(Busy):
        Pages().cut("abc", str, of="volumes", max_entries=1, token=token)


def test_a_changed_token_is_refused() -> None:
    pages = Pages()
    token = pages.cut("abc", str, of="list", max_entries=1, token="").next_token
    raw = bytearray(base64.urlsafe_b64decode(token))
    raw[-1] ^= 3
    with pytest.raises(Busy):
        pages.cut("abc", str, of="list", max_entries=1, token=base64.urlsafe_b64encode(raw).decode())
