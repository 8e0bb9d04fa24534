"""Tickets follow the cards of their nodes, and who does not register is found."""

from aoe_core.model import AccessMode
from aoe_core.resources.volume import Ticket
from aoe_operator.registration import REGISTERED_AFTER_S, refreshed, unregistered

OLD, NEW = "525400000115", "525400000199"


def ticket(node_id: str) -> Ticket:
    return Ticket(
        node="compute1", node_id=node_id, mode=AccessMode.SINGLE_NODE_SINGLE_WRITER, writable=True, block=True
    )


def test_a_ticket_follows_its_node_s_cards_and_keeps_all_else() -> None:
    before, now = ticket(f"compute1|0000000a|main={OLD}"), f"compute1|0000000b|main={NEW}"
    assert refreshed(before, {"compute1": now}) == ticket(now)


def test_another_boot_another_node_or_nonsense_changes_nothing() -> None:
    before = ticket(f"compute1|0000000a|main={OLD}")
    for ids in (
        {},
        {"compute2": f"compute2|0000000b|main={NEW}"},
        {"compute1": f"compute1|0000000b|main={OLD}"},
        {"compute1": f"compute2|0000000b|main={NEW}"},
        {"compute1": "nonsense"},
    ):
        assert refreshed(before, ids) is before


def test_who_had_time_enough_to_register_and_has_not_is_told_of() -> None:
    now_s = 10_000
    pods = {"registered": 0, "starting": now_s - REGISTERED_AFTER_S, "stuck": now_s - REGISTERED_AFTER_S - 1}
    assert unregistered({"registered": "x"}, pods, now_s) == {"stuck"}
