import pytest

from aoe_core.errors import Conflict, InUse
from aoe_core.model import AccessMode, Grant, NodeIdentity, NodeName, Transport, VolumeId
from aoe_core.volumes.grants import find_same, require_admissible

M = AccessMode


def grant(node: str, mode: AccessMode, *, writable: bool = True, block: bool = False) -> Grant:
    return Grant(
        volume_id=VolumeId("v"),
        node=NodeName(node),
        node_id=node,
        boot="00000001",
        mode=mode,
        writable=writable,
        block=block,
        transport=Transport.AOE,
        san=None,
        macs=(),
        address=None,
        granted_s=0,
    )


@pytest.mark.parametrize("mode", list(M))
@pytest.mark.parametrize("block", [False, True])
def test_the_first_grant_is_always_admitted(mode: AccessMode, block: bool) -> None:
    require_admissible(VolumeId("v"), [], mode, writable=mode.writes, block=block)


ADMITTED = [
    ([grant("a", M.MULTI_NODE_READER_ONLY, writable=False)], M.MULTI_NODE_READER_ONLY, False),
    ([grant(n, M.MULTI_NODE_READER_ONLY, writable=False) for n in "abcdef"], M.MULTI_NODE_READER_ONLY, False),
    ([grant("a", M.MULTI_NODE_MULTI_WRITER, block=True)], M.MULTI_NODE_MULTI_WRITER, True),
]
REFUSED = [
    ([grant("a", M.SINGLE_NODE_WRITER)], M.SINGLE_NODE_WRITER, False),
    ([grant("a", M.SINGLE_NODE_MULTI_WRITER)], M.SINGLE_NODE_MULTI_WRITER, False),
    ([grant("a", M.SINGLE_NODE_WRITER)], M.MULTI_NODE_READER_ONLY, False),
    ([grant("a", M.MULTI_NODE_READER_ONLY, writable=False)], M.SINGLE_NODE_WRITER, False),
    ([grant("a", M.SINGLE_NODE_READER_ONLY, writable=False)], M.SINGLE_NODE_READER_ONLY, False),
    ([grant("a", M.MULTI_NODE_MULTI_WRITER, block=False)], M.MULTI_NODE_MULTI_WRITER, False),
    ([grant(n, M.MULTI_NODE_MULTI_WRITER, block=True) for n in "ab"], M.MULTI_NODE_MULTI_WRITER, True),
    ([grant("a", M.MULTI_NODE_MULTI_WRITER, block=True)], M.SINGLE_NODE_WRITER, True),
]


@pytest.mark.parametrize(("others", "mode", "block"), ADMITTED)
def test_what_may_stand_beside_is_admitted(others: list[Grant], mode: AccessMode, block: bool) -> None:
    require_admissible(VolumeId("v"), others, mode, writable=mode.writes, block=block)


@pytest.mark.parametrize(("others", "mode", "block"), REFUSED)
def test_what_may_not_is_refused_with_the_holders_named(others: list[Grant], mode: AccessMode, block: bool) -> None:
    with pytest.raises(InUse) as refusal:
        require_admissible(VolumeId("v"), others, mode, writable=mode.writes, block=block)
    assert all(grant.node in str(refusal.value) for grant in others)


def test_a_third_party_may_read_along_two_writers_only_by_their_mode() -> None:
    writers = [grant(n, M.MULTI_NODE_MULTI_WRITER, block=True) for n in "ab"]
    require_admissible(VolumeId("v"), writers, M.MULTI_NODE_MULTI_WRITER, writable=False, block=True)


def test_the_same_grant_is_found_and_another_is_a_conflict() -> None:
    own = grant("a", M.SINGLE_NODE_WRITER)
    node = NodeIdentity(name=NodeName("a"), boot="00000001", macs=())
    assert find_same([own], node, M.SINGLE_NODE_WRITER, writable=True, block=False) == own
    for mode, writable, block in [
        (M.SINGLE_NODE_MULTI_WRITER, True, False),
        (M.SINGLE_NODE_WRITER, False, False),
        (M.SINGLE_NODE_WRITER, True, True),
    ]:
        with pytest.raises(Conflict):
            find_same([own], node, mode, writable=writable, block=block)
    other = NodeIdentity(name=NodeName("b"), boot="00000001", macs=())
    assert find_same([own], other, M.SINGLE_NODE_WRITER, writable=True, block=False) is None
