"""Rules for all nodes of a cluster, and what one node makes of them."""

from pathlib import Path

import pytest

from aoe_core import san_rules
from aoe_core.errors import Invalid
from aoe_core.san_rules import SanRule, SanRules

RULES = """
[[san]]
name = "main"
interfaces = ["eth1", "bond0.4*"]
[[san]]
name = "second"
interfaces = ["ens5"]
nodes = ["rack1-*"]
[[san]]
name = "second"
interfaces = ["eno2"]
nodes = ["rack2-*"]
[initiator]
deadsecs = 120
"""


@pytest.fixture
def rules(tmp_path: Path) -> SanRules:
    path = tmp_path / "sans.toml"
    path.write_text(RULES)
    return san_rules.read(path)


@pytest.mark.parametrize(
    ("node", "interfaces", "sans"),
    [
        ("rack1-a", ["lo", "eth1", "ens5"], {"main": "eth1", "second": "ens5"}),
        ("rack2-a", ["lo", "bond0.40", "eno2", "ens5"], {"main": "bond0.40", "second": "eno2"}),
        ("rack3-a", ["lo", "eth1", "ens5", "eno2"], {"main": "eth1"}),
        ("rack3-b", ["lo", "eth0"], {}),
    ],
)
def test_a_node_takes_the_rules_that_match(
    rules: SanRules, node: str, interfaces: list[str], sans: dict[str, str]
) -> None:
    settings = san_rules.resolve(rules, node, interfaces)
    assert {san.name: san.interface for san in settings.san} == sans
    assert (settings.node, settings.initiator.deadsecs, settings.pool) == (node, 120, ())


def test_two_interfaces_on_a_san_are_refused(rules: SanRules) -> None:
    with pytest.raises(Invalid, match=r"on node n, SAN main matches the interfaces bond0\.40 and eth1"):
        san_rules.resolve(rules, "n", ["eth1", "bond0.40"])


def test_two_sans_on_an_interface_are_refused() -> None:
    both = SanRules(san=(SanRule(name="a", interfaces=("eth*",)), SanRule(name="b", interfaces=("eth1",))))
    with pytest.raises(Invalid, match="interface eth1 matches the SANs a and b"):
        san_rules.resolve(both, "n", ["eth1"])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('[[san]]\nname = "a"', "interfaces"),
        ('[[san]]\nname = "a"\ninterface = "e"', "'interface'"),
        ("san = 3", "san"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "sans.toml"
    path.write_text(text)
    with pytest.raises(Invalid, match=word):
        san_rules.read(path)
