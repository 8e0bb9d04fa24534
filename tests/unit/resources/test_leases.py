"""LiveNodes judges by changes it sees, never by a clock of somebody else's."""

import threading
from collections.abc import Mapping

from aoe_core.resources.leases import LIVE_S, Liveness, LiveNodes


class Leases:
    def __init__(self) -> None:
        self.marks: dict[str, int] = {}
        self.now = 1000.0

    def renew_lease(self, node: str) -> int:
        self.marks[node] = self.marks.get(node, 0) + 1
        return self.marks[node]

    def leases(self) -> Mapping[str, int]:
        return dict(self.marks)


def test_a_lease_that_never_changes_is_nobody_s() -> None:
    leases = Leases()
    leases.renew_lease("dead")
    live = LiveNodes(leases, lambda: leases.now)
    for _ in range(5):
        assert live() == frozenset()
        leases.now += 10


def test_a_node_lives_from_a_change_that_is_seen_until_they_fail_to_come() -> None:
    leases = Leases()
    leases.renew_lease("a")
    live = LiveNodes(leases, lambda: leases.now)
    assert live() == frozenset()
    leases.renew_lease("a")
    assert live() == {"a"}
    leases.now += LIVE_S - 1
    assert live() == {"a"}
    leases.now += 1
    assert live() == frozenset()
    leases.renew_lease("a")
    assert live() == {"a"}


def test_a_removed_lease_is_forgotten() -> None:
    leases = Leases()
    leases.renew_lease("a")
    live = LiveNodes(leases, lambda: leases.now)
    live()
    leases.renew_lease("a")
    assert live() == {"a"}
    del leases.marks["a"]
    assert live() == frozenset()
    leases.renew_lease("a")
    assert live() == frozenset()


def test_a_node_is_dead_once_nobody_has_seen_it_change_for_long() -> None:
    leases = Leases()
    leases.renew_lease("a")
    leases.renew_lease("b")
    live = LiveNodes(leases, lambda: leases.now)
    assert live.look() == Liveness()
    leases.renew_lease("a")
    leases.now += LIVE_S - 1
    assert live.look() == Liveness(live=frozenset({"a"}))
    leases.now += 1
    assert live.look() == Liveness(live=frozenset({"a"}), dead=frozenset({"b"}))
    leases.now += LIVE_S
    assert live.look() == Liveness(dead=frozenset({"a", "b"}))


def test_an_api_server_that_went_back_in_time_ends_the_watch() -> None:
    leases = Leases()
    leases.marks["a"] = 7
    stop = threading.Event()
    live = LiveNodes(leases, lambda: leases.now)
    live()
    leases.marks["a"] = 5
    live.watch(stop, every_s=0.01).join(timeout=30)
    assert stop.is_set()
