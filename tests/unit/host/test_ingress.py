import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe_core.errors import CommandFailed, Invalid
from aoe_core.host.contracts import Finished
from aoe_core.host.ingress import Listing, NftIngressRules, boot_ruleset, parse_listing, render, stands
from aoe_core.model import Address, Mac

MAC = Mac("52:54:00:00:01:15")
TABLE = {"family": "netdev", "table": "aoe_csi"}


def listing(*entries: object) -> str:
    return json.dumps({"nftables": [{"metainfo": {"json_schema_version": 1}}, *entries]})


def listed(interface: str) -> Listing:
    """What nft shows of the rules that `render` writes, in order."""
    comments = [line.rsplit('"', 2)[1] for line in render(interface).splitlines() if line.startswith("add rule")]
    chain = next(line.split()[4] for line in render(interface).splitlines() if line.startswith("add chain"))
    pins = next(line.split()[4] for line in render(interface).splitlines() if line.startswith("add set"))
    return parse_listing(
        listing(
            {"table": {"family": "netdev", "name": "aoe_csi", "handle": 1}},
            {"set": {**TABLE, "name": pins, "type": ["ether_addr", "integer"], "handle": 2}},
            {"chain": {**TABLE, "name": chain, "handle": 1, "hook": "ingress"}},
            *({"rule": {**TABLE, "chain": chain, "handle": 3, "comment": one, "expr": []}} for one in comments),
        )
    )


def test_the_rules_that_are_written_are_found_standing() -> None:
    assert stands(listed("san0"), "san0")


@pytest.mark.parametrize("change", ["none", "one less", "one more", "other order", "without comment"])
def test_any_other_set_of_rules_does_not_stand(change: str) -> None:
    whole = listed("san0")
    ((chain, comments),) = whole.comments.items()
    changed = {
        "none": (),
        "one less": comments[:-1],
        "one more": (*comments, comments[-1]),
        "other order": comments[::-1],
        "without comment": ("", *comments[1:]),
    }[change]
    assert not stands(Listing(comments={chain: changed}, pins=whole.pins), "san0")


def test_rules_without_their_set_or_of_another_interface_do_not_stand() -> None:
    whole = listed("san0")
    assert not stands(Listing(comments=whole.comments, pins={}), "san0")
    assert not stands(whole, "san1")
    assert not stands(parse_listing(listing()), "san0")


def test_the_script_is_one_that_can_run_over_itself_and_keeps_the_pins() -> None:
    lines = render("san0").splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["add", "add", "add", "flush"]
    assert lines[3] == "flush chain netdev aoe_csi in_san0"
    assert not any(line.startswith(("delete", "flush set", "flush table")) for line in lines)
    assert 'device "san0"' in lines[2]


def test_only_reading_requests_pinned_targets_and_programs_are_let_in() -> None:
    rules = [line.split(" in_san0 ")[1].split(" comment ")[0] for line in render("san0").splitlines()[4:]]
    accepted = [rule for rule in rules if rule.endswith("accept")]
    assert accepted == [
        "meta protocol != 0x88a2 accept",
        "@nh,0,8 & 0x08 == 0x00 @nh,40,8 0x00 accept",
        "@nh,0,8 & 0x08 == 0x00 @nh,40,8 0x01 @nh,120,8 & 0x0f == 0x00 accept",
        "@nh,48,8 & 0x80 == 0x80 accept",
        "ether saddr . @nh,16,24 @pins_san0 accept",
    ]
    assert rules[-1] == "counter drop"


def test_what_is_loaded_at_boot_has_a_part_for_each_interface_and_no_pins() -> None:
    text = boot_ruleset(["san0", "bond0.100"])
    parts = text.split("# interface ")[1:]
    assert [part.splitlines()[0] for part in parts] == ["san0", "bond0.100"]
    assert all(part.splitlines()[-1] == f"# end {part.splitlines()[0]}" for part in parts)
    assert "".join(parts[0].splitlines(keepends=True)[1:-1]) == render("san0")
    assert "element" not in text


@pytest.mark.parametrize("name", ["", 'a"b', "a b", "a;b", "a{b", "x" * 16, "ä"])
def test_a_name_that_nft_could_read_as_something_else_is_refused(name: str) -> None:
    with pytest.raises(Invalid):
        render(name)


@given(
    st.from_regex(r"[A-Za-z0-9._:@-]{1,15}", fullmatch=True), st.from_regex(r"[A-Za-z0-9._:@-]{1,15}", fullmatch=True)
)
def test_no_two_interfaces_share_a_chain_or_set(one: str, other: str) -> None:
    assert (listed(one).comments.keys() == listed(other).comments.keys()) == (one == other)
    assert (listed(one).pins.keys() == listed(other).pins.keys()) == (one == other)


def test_pins_are_read_as_nft_shows_them() -> None:
    element = {"concat": ["52:54:00:00:01:15", 0xFFFEFE]}
    found = parse_listing(
        listing(
            {"set": {**TABLE, "name": "pins_san0", "elem": [{"concat": [MAC, 0x0A03]}, {"elem": {"val": element}}]}},
            {"set": {"family": "inet", "table": "aoe_csi", "name": "pins_san1", "elem": [{"concat": [MAC, 1]}]}},
            {"set": {"family": "netdev", "table": "other", "name": "pins_san2", "elem": ["10.0.0.1"]}},
        )
    )
    assert found.pins == {"pins_san0": {(Address(10, 3), MAC), (Address(65534, 254), MAC)}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Error: no such file",
        "{}",
        "[]",
        listing({"set": {**TABLE, "name": "pins_san0", "elem": ["52:54:00:00:01:15"]}}),
        listing({"set": {**TABLE, "name": "pins_san0", "elem": [{"concat": ["52:54:00:00:01:15"]}]}}),
        listing({"set": {**TABLE, "name": "pins_san0", "elem": [{"concat": ["nobody", 3]}]}}),
        listing({"set": {**TABLE, "name": "pins_san0", "elem": [{"concat": [MAC, 0xFFFFFF]}]}}),
    ],
)
def test_a_listing_that_cannot_be_read_is_not_taken_for_an_empty_one(text: str) -> None:
    with pytest.raises(CommandFailed):
        parse_listing(text)


class SlowNft:
    """An nft that takes its time, and notes which thread had it do what."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, str]] = []

    def run(self, argv: Sequence[str], *, timeout_s: float, stdin: bytes | None = None) -> Finished:
        del timeout_s, stdin
        self.calls.append((threading.get_ident(), "reads" if "list" in argv else "writes"))
        time.sleep(0.002)
        return Finished(argv=tuple(argv), code=0, stdout=listing(), stderr="", seconds=0.002)


def test_between_what_one_call_reads_and_writes_no_other_call_is_heard() -> None:
    nft = SlowNft()
    rules = NftIngressRules(nft)
    addresses = [Address(100, slot) for slot in range(24)]
    with ThreadPoolExecutor(8) as crowd:
        list(crowd.map(lambda address: rules.pin("eth1", address, MAC), addresses))
    assert len({thread for thread, _ in nft.calls}) > 1
    for (reader, reads), (writer, writes) in zip(nft.calls[::2], nft.calls[1::2], strict=True):
        assert (reads, writes) == ("reads", "writes")
        assert reader == writer
