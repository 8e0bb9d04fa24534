"""When a storage node claims a further shelf."""

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.volumes.test_addresses import NOW_S, REST_S, file, held_by, node

from aoe_core.errors import NoSpace
from aoe_core.host.exports import UNKNOWN_BOOT, ExportFile, ExportState
from aoe_core.model import MAX_SLOT, SanName
from aoe_core.resources.fields import ObjectMeta
from aoe_core.resources.shelf import AoEShelf, AoEShelfSpec
from aoe_core.volumes.addresses import choose
from aoe_operator.shelves import FEW, addresses_left, find_short

SHELF = MAX_SLOT + 1


def left(*files: ExportFile, total: int = SHELF) -> int:
    return addresses_left(total, files, now_s=NOW_S, rest_s=REST_S)


def claim(shelf: int, san: str = "main") -> AoEShelf:
    return AoEShelf(
        metadata=ObjectMeta(name=f"{san}-{shelf}"), spec=AoEShelfSpec(san=san, shelf=shelf, node="storage1")
    )


def test_what_was_never_used_is_left_for_everybody() -> None:
    assert left() == SHELF
    assert left(file(0, ExportState.LIVE), file(1, ExportState.REVOKING)) == SHELF - 2


def test_a_rested_address_is_left_for_all_but_its_former_holders() -> None:
    rested = [file(slot, ExportState.RESTING, held_by("a", REST_S, boot=UNKNOWN_BOOT)) for slot in range(10)]
    assert left(*rested) == SHELF - 10
    resting = file(0, ExportState.RESTING, held_by("a", REST_S - 1))
    assert left(resting) == SHELF - 1


def test_who_has_rebooted_since_is_barred_no_more() -> None:
    before, now = held_by("a", 9000, boot="00000001"), held_by("a", 8000, boot="00000002")
    files = [file(slot, ExportState.RESTING, before) for slot in range(10)]
    assert left(*files) == SHELF - 10
    assert left(*files, file(20, ExportState.RESTING, now)) == SHELF - 1


def test_a_san_is_short_when_one_node_has_few_left() -> None:
    used = SHELF - FEW
    files = [file(slot, ExportState.RESTING, held_by("a", REST_S)) for slot in range(used)]
    one, two = [claim(10)], [claim(10), claim(11)]
    assert find_short(one, files, now_s=NOW_S, rest_s=REST_S) == ()
    files.append(file(used, ExportState.RESTING, held_by("a", REST_S)))
    assert find_short(one, files, now_s=NOW_S, rest_s=REST_S) == ("main",)
    assert find_short(two, files, now_s=NOW_S, rest_s=REST_S) == ()
    assert find_short([claim(10), claim(5, "other")], files, now_s=NOW_S, rest_s=REST_S) == ("main",)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 2 * REST_S), st.sampled_from(["00000001", UNKNOWN_BOOT])),
        max_size=SHELF,
    )
)
def test_whoever_is_said_to_have_an_address_gets_one(history: list[tuple[str, int, str]]) -> None:
    """`choose` is what really gives them out."""
    files = [
        file(slot, ExportState.RESTING, held_by(name, ago_s, boot=boot))
        for slot, (name, ago_s, boot) in enumerate(history)
    ]
    if left(*files) <= 0:
        return
    for name in "abc":
        try:
            choose(((10, 10),), files, node(name), san=SanName("main"), now_s=NOW_S, rest_s=REST_S)
        except NoSpace:
            raise AssertionError(f"node {name} gets none of the addresses that are left") from None
