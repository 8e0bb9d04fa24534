import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe_core.errors import NoSpace
from aoe_core.host.exports import ExportFile, ExportState, Former
from aoe_core.model import AccessMode, Address, Durability, Mac, NodeIdentity, NodeName, SanName, Serial, VolumeId
from aoe_core.volumes.addresses import choose

REST_S = 660
NOW_S = 1_000_000


def node(name: str, boot: str = "00000001") -> NodeIdentity:
    return NodeIdentity(name=NodeName(name), boot=boot, macs=((SanName("main"), (Mac("52:54:00:00:00:01"),)),))


def file(slot: int, state: ExportState, *former: Former, shelf: int = 10) -> ExportFile:
    return ExportFile(
        address=Address(shelf, slot),
        state=state,
        volume_id=VolumeId("v"),
        device="/dev/data/v-v",
        serial=Serial("abcdefghi"),
        node=NodeName("n"),
        node_id="n|00000001|",
        boot="00000001",
        mode=AccessMode.SINGLE_NODE_WRITER,
        writable=True,
        block=True,
        san=SanName("main"),
        interface="eth1",
        macs=(Mac("52:54:00:00:00:01"),),
        durability=Durability.SYNC,
        buffers=16,
        exporter="/usr/sbin/vblade",
        granted_s=0,
        size_bytes=1 << 20,
        former=former,
    )


def held_by(name: str, ago_s: int, boot: str = "00000001") -> Former:
    return Former(node=NodeName(name), boot=boot, revoked_s=NOW_S - ago_s)


def pick(files: list[ExportFile], who: NodeIdentity, shelves: tuple[tuple[int, int], ...] = ((10, 10),)) -> Address:
    return choose(shelves, files, who, san=SanName("main"), now_s=NOW_S, rest_s=REST_S)[0]


def full(*but: ExportFile) -> list[ExportFile]:
    """A whole shelf in use, but for the slots given."""
    given = {one.address: one for one in but}
    return [given.get(Address(10, slot)) or file(slot, ExportState.LIVE) for slot in range(255)]


def test_the_first_grant_gets_the_first_address() -> None:
    assert pick([], node("a")) == Address(10, 0)


def test_never_used_addresses_come_before_rested_ones() -> None:
    rested = file(0, ExportState.RESTING, held_by("b", 10 * REST_S))
    assert pick([rested], node("a")) == Address(10, 1)


def test_a_revoked_address_rests() -> None:
    with pytest.raises(NoSpace, match="frees in 60 s"):
        pick(full(file(7, ExportState.RESTING, held_by("b", REST_S - 60))), node("a"))


def test_a_rested_address_goes_to_another_node() -> None:
    assert pick(full(file(7, ExportState.RESTING, held_by("b", REST_S))), node("a")) == Address(10, 7)


def test_an_address_never_goes_back_to_its_node_in_the_same_boot() -> None:
    files = full(file(7, ExportState.RESTING, held_by("a", 1000 * REST_S)))
    with pytest.raises(NoSpace, match="reboot"):
        pick(files, node("a"))
    assert pick(files, node("a", boot="00000002")) == Address(10, 7)


def test_an_address_remembers_every_former_holder() -> None:
    files = full(file(7, ExportState.RESTING, held_by("a", 9 * REST_S), held_by("b", 5 * REST_S)))
    _, former = choose(((10, 10),), files, node("c"), san=SanName("main"), now_s=NOW_S, rest_s=REST_S)
    assert {one.node for one in former} == {"a", "b"}
    with pytest.raises(NoSpace):
        pick(files, node("a"))


def test_a_half_revoked_address_is_taken() -> None:
    with pytest.raises(NoSpace):
        pick(full(file(7, ExportState.REVOKING)), node("a"))


def test_a_clock_set_back_does_not_shorten_the_rest() -> None:
    with pytest.raises(NoSpace, match=f"frees in {REST_S} s"):
        pick(full(file(7, ExportState.RESTING, held_by("b", -5 * REST_S))), node("a"))


def test_without_a_shelf_the_configuration_is_named() -> None:
    with pytest.raises(NoSpace, match="shelves"):
        pick([], node("a"), shelves=())


states = st.sampled_from(list(ExportState))
formers = st.lists(
    st.builds(held_by, st.sampled_from("abc"), st.integers(0, 3 * REST_S), st.sampled_from(["00000001", "00000002"])),
    max_size=3,
).map(tuple)


@given(st.dictionaries(st.integers(0, 254), st.tuples(states, formers), max_size=255), st.sampled_from("abc"))
def test_whatever_is_given_is_free_rested_and_new_to_the_node(
    used: dict[int, tuple[ExportState, tuple[Former, ...]]], who: str
) -> None:
    files = [file(slot, state, *former) for slot, (state, former) in used.items()]
    try:
        address = pick(files, node(who))
    except NoSpace:
        return
    if address.slot in used:
        state, former = used[address.slot]
        assert state is ExportState.RESTING
        assert all(NOW_S - one.revoked_s >= REST_S for one in former)
        assert not any(one.node == who and one.boot == "00000001" for one in former)
