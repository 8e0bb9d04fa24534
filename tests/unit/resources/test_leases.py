"""LiveNodes judges by changes it sees, never by a clock of somebody else's."""

import itertools
import threading
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor

import pytest

from aoe_core.errors import Unreachable
from aoe_core.resources.leases import LIVE_S, Liveness, LiveNodes


class Leases:
    def __init__(self) -> None:
        self.marks: dict[str, int] = {}
        self.now = 1000.0
        self.away = False

    def renew_lease(self, node: str) -> int:
        self.marks[node] = self.marks.get(node, 0) + 1
        return self.marks[node]

    def leases(self) -> Mapping[str, int]:
        if self.away:
            raise Unreachable("the API server does not answer")
        return dict(self.marks)


def judged(live: LiveNodes) -> tuple[AbstractSet[str], AbstractSet[str]]:
    """Look, and return who lives and who is dead."""
    seen = live.look()
    return seen.live, seen.dead


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
    assert judged(live) == (set(), set())
    leases.renew_lease("a")
    leases.now += LIVE_S - 1
    assert judged(live) == ({"a"}, set())
    leases.now += 1
    assert judged(live) == ({"a"}, {"b"})
    leases.now += LIVE_S
    assert judged(live) == (set(), {"a", "b"})


def test_an_api_server_that_went_back_in_time_ends_the_watch() -> None:
    leases = Leases()
    leases.marks["a"] = 7
    stop = threading.Event()
    live = LiveNodes(leases, lambda: leases.now)
    live()
    leases.marks["a"] = 5
    live.watch(stop, every_s=0.01).join(timeout=30)
    assert stop.is_set()


def test_a_bug_in_one_look_does_not_end_the_watch() -> None:
    stop = threading.Event()
    calls = itertools.count()

    def tell(_: Liveness) -> None:
        if next(calls) == 0:
            raise TypeError("a bug")
        stop.set()

    LiveNodes(Leases()).watch(stop, tell, every_s=0.01).join(timeout=30)
    assert stop.is_set()


def test_an_absence_of_the_api_server_is_nobody_s_silence() -> None:
    leases = Leases()
    leases.renew_lease("a")
    live = LiveNodes(leases, lambda: leases.now)
    live()
    leases.renew_lease("a")
    assert live() == {"a"}
    leases.away = True
    for _ in range(12):
        leases.now += 10
        with pytest.raises(Unreachable):
            live()
    leases.away = False
    assert judged(live) == ({"a"}, set())
    leases.now += LIVE_S
    assert judged(live) == (set(), {"a"})


def test_looks_at_once_are_not_taken_for_a_step_back() -> None:
    """Each lists a newer state than the one before; whoever notes his last must not have looked first."""
    leases, stop = Leases(), threading.Event()
    numbers = itertools.count(1)
    live = LiveNodes(leases, lambda: leases.now)

    class Slow(Leases):
        def leases(self) -> Mapping[str, int]:
            mark = next(numbers)
            if mark % 2:
                threading.Event().wait(0.01)
            return {"a": mark}

    live = LiveNodes(Slow(), lambda: leases.now)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: live(), range(64)))
    watching = live.watch(stop, every_s=0.01)
    threading.Event().wait(0.1)
    assert not stop.is_set()
    stop.set()
    watching.join(timeout=30)


def test_who_has_no_lease_is_gone_once_it_was_looked_for_long_enough() -> None:
    """As of a node whose Lease went with the namespace of a former installation."""
    leases = Leases()
    live = LiveNodes(leases, lambda: leases.now)
    assert not live.look().is_gone("a")
    leases.now += LIVE_S - 1
    assert not live.look().is_gone("a")
    leases.away = True
    leases.now += 1000
    with pytest.raises(Unreachable):
        live.look()
    leases.away = False
    # While nobody could be asked, nobody could show that he lives.
    assert not live.look().is_gone("a")
    leases.now += 1
    assert live.look().is_gone("a")
    leases.renew_lease("a")
    assert not live.look().is_gone("a")
    leases.now += LIVE_S
    assert live.look().is_gone("a")
