"""Placement: pure choices among nodes."""

from typing import Any

import pytest

from aoe_core.errors import NoSpace, Unreachable
from aoe_core.resources.fields import Condition, ObjectMeta
from aoe_core.resources.node import AoENode, AoENodeSpec, AoENodeStatus, PoolSpec, PoolStatus, SanSpec, ShelfRange
from aoe_core.resources.placement import choose
from aoe_core.resources.volume import AoEVolume, AoEVolumeSpec, AoEVolumeStatus

NODES = ("a", "b", "c")


def node(name: str, free: str = "100Gi", *, ready: bool = True, san: str = "main", **spec: Any) -> AoENode:
    condition = Condition(type="Ready", status=str(ready), reason="Done", last_transition_time="2026-01-01T00:00:00Z")
    return AoENode(
        metadata=ObjectMeta(name=name),
        spec=AoENodeSpec(
            pools=(PoolSpec(name="thin", volume_group="data", thin_pool="pool"),),
            sans=(SanSpec(name=san, interface="eth1", shelves=(ShelfRange(first=1, last=2),)),),
            **spec,
        ),
        status=AoENodeStatus(
            pools=(PoolStatus(name="thin", available=free, largest_volume=free),), conditions=(condition,)
        ),
    )


def volume(
    name: str = "v", size: str = "10Gi", *, accepted: str | None = None, phase: str = "Pending", **spec: Any
) -> AoEVolume:
    return AoEVolume(
        metadata=ObjectMeta(name=name),
        spec=AoEVolumeSpec(size=size, pool=spec.pop("pool", "thin"), **spec),
        status=AoEVolumeStatus(node=accepted, phase=phase),
    )


def chosen(nodes: list[AoENode], wanted: AoEVolume | None = None, *, others: list[AoEVolume] | None = None) -> str:
    return choose(wanted or volume(), nodes, others or [], live=set(NODES), source_node=None)


def test_the_node_with_most_space_left_wins() -> None:
    assert chosen([node("a", "20Gi"), node("b", "30Gi"), node("c", "25Gi")]) == "b"


def test_of_equal_ones_the_first_by_name_wins_in_any_order() -> None:
    assert chosen([node("c"), node("a"), node("b")]) == "a"


def test_what_is_placed_and_not_made_yet_counts() -> None:
    promised = volume("p", "30Gi", node="a")
    accepted = volume("q", "30Gi", node="a", accepted="a", phase="Creating")
    made = volume("r", "90Gi", node="b", accepted="b", phase="Ready")
    assert chosen([node("a"), node("b", "60Gi")], others=[promised, accepted, made]) == "b"


def test_a_san_asked_for_is_kept_to() -> None:
    nodes = [node("a", "90Gi", san="left"), node("b", "20Gi", san="right")]
    assert chosen(nodes, volume(san="right")) == "b"


@pytest.mark.parametrize(
    "unfit",
    [node("a", "9Gi"), node("a", ready=False), node("a", unschedulable=True), node("a", decommissioned=True)],
    ids=["full", "not-ready", "unschedulable", "decommissioned"],
)
def test_an_unfit_node_is_passed_over(unfit: AoENode) -> None:
    assert chosen([unfit, node("b", "10Gi")]) == "b"


def test_a_node_that_does_not_renew_its_lease_is_passed_over() -> None:
    assert choose(volume(), [node("a"), node("b", "10Gi")], [], live={"b"}, source_node=None) == "b"


def test_a_copy_is_made_where_its_source_is() -> None:
    assert choose(volume(), [node("a"), node("b", "10Gi")], [], live=set(NODES), source_node="b") == "b"
    with pytest.raises(NoSpace, match="b takes at most 5Gi"):
        choose(volume(), [node("a"), node("b", "5Gi")], [], live=set(NODES), source_node="b")


def test_no_room_says_what_there_is() -> None:
    with pytest.raises(NoSpace, match=r"no room for 200Gi: a takes at most 100Gi; b takes at most 50Gi"):
        chosen([node("a"), node("b", "50Gi")], volume(size="200Gi"))


def test_a_pool_that_nobody_offers_is_no_space() -> None:
    with pytest.raises(NoSpace, match="pool fast is offered by no storage node"):
        chosen([node("a")], volume(pool="fast"))


def test_away_is_not_full() -> None:
    with pytest.raises(Unreachable, match="offered by a, b, and none of them is ready"):
        chosen([node("a", ready=False), node("b", ready=False)])


def test_one_of_several_sans_must_reach_it() -> None:
    nodes = [node("a", san="main"), node("b", "1Gi", san="second"), node("c", "20Gi", san="third")]
    assert chosen(nodes, volume(reach=("second", "third"))) == "c"
    with pytest.raises(NoSpace, match="on SAN fourth is offered by no storage node"):
        chosen(nodes, volume(reach=("fourth",)))
    with pytest.raises(NoSpace, match="b takes at most 1Gi"):
        chosen(nodes, volume(reach=("second",)))
