import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe_core.errors import Invalid
from aoe_core.units import GIB, KIB, MIB, format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("4KiB", 4 * KIB),
        ("20GiB", 20 * GIB),
        (" 20 gib ", 20 * GIB),
        ("3M", 3 * MIB),
        ("1t", 1024 * GIB),
    ],
)
def test_sizes_as_people_write_them(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1.5GiB", "1GB", "1 000", "1PiB", "0x10", "1GiBs"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="is no size"):
        parse_bytes(text)


@given(st.integers(0, 1023), st.sampled_from([1, KIB, MIB, GIB, 1024 * GIB]))
def test_what_is_shown_whole_is_read_back(number: int, step_bytes: int) -> None:
    assert parse_bytes(format_bytes(number * step_bytes)) == number * step_bytes
