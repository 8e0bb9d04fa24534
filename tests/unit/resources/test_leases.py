"""LiveNodes judges by changes it sees, never by a clock of somebody else's."""

from collections.abc import Mapping

from aoe_core.resources.leases import LIVE_S, LiveNodes


class Leases:
    def __init__(self) -> None:
        self.marks: dict[str, str] = {}
        self.now = 1000.0

    def renew_lease(self, node: str) -> None:
        self.marks[node] = str(int(self.marks.get(node, "0")) + 1)

    def leases(self) -> Mapping[str, str]:
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
