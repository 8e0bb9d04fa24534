import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe_core.errors import Invalid
from aoe_core.resources.fields import parse_quantity, quantity


@given(st.integers(min_value=0, max_value=2**63 - 1))
def test_a_quantity_says_the_bytes_it_was_made_of(size_bytes: int) -> None:
    assert parse_quantity(quantity(size_bytes)) == size_bytes


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("1", 1), ("10Gi", 10 << 30), ("500M", 500_000_000), ("3k", 3000), ("7Ki", 7168), ("0", 0)],
)
def test_units_are_those_of_kubernetes(text: str, size_bytes: int) -> None:
    assert parse_quantity(text) == size_bytes


@pytest.mark.parametrize("text", ["", "-1", "1.5Gi", "10GB", "10 Gi", "1e3", "10gi", "Gi", "1K"])
def test_what_is_no_whole_number_of_bytes_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(Invalid, match="like 10Gi"):
        parse_quantity(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(10 << 30, "10Gi"), (1 << 20, "1Mi"), (1000, "1000"), (1025, "1025"), (0, "0")]
)
def test_bytes_are_written_by_the_largest_unit_without_a_fraction(size_bytes: int, text: str) -> None:
    assert quantity(size_bytes) == text
