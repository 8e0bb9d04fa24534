"""One file for every compute node of a cluster: which of its network interfaces is on which SAN.

Nodes differ in the names of their cards, and a node server has no API token to ask anybody. So it is given rules, the
same on all nodes, and takes those that match its own name and the interfaces it has.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import msgspec

from aoe_core import settings
from aoe_core.errors import AoECsiError, Invalid
from aoe_core.settings import Initiator, Name, San, Settings

INTERFACES = Path("/sys/class/net")
Pattern = Annotated[str, msgspec.Meta(pattern=r"^\S+$", max_length=253)]


class SanRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What interface the nodes of some names have on a SAN. Several rules may speak of one SAN."""

    name: Name
    """The SAN."""
    interfaces: tuple[Pattern, ...]
    """Names of interfaces, or patterns with * ? [] of them; a node must have at most one that matches."""
    nodes: tuple[Pattern, ...] = ("*",)
    """Names of nodes, or patterns of them, for which the rule stands."""


class SanRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    san: tuple[SanRule, ...] = ()
    initiator: Initiator = Initiator()
    state_directory: Annotated[str, msgspec.Meta(pattern=r"^/\S*$")] = "/var/lib/aoe-csi"
    """Where stage records live; on a file system that survives power loss."""


def read(path: Path) -> SanRules:
    """Read a file of rules. Raises: Invalid naming the file, the key, the fact and the remedy."""
    return settings.read_as(SanRules, path)


def resolve_here(path: Path, node: str, interfaces: Path = INTERFACES) -> Settings:
    """Return the settings of this node, by a file of rules and the interfaces it has now. Raises: Invalid."""
    return resolve(read(path), node, [one.name for one in interfaces.iterdir()])


def find_change(settings: Settings, path: Path, interfaces: Path = INTERFACES) -> str | None:
    """Say that rules or interfaces are not what they were when `settings` were resolved: a process that goes by them
    must be started anew."""
    try:
        same = resolve_here(path, settings.node, interfaces) == settings
    except AoECsiError as error:
        return str(error)
    return None if same else f"rules or interfaces of node {settings.node} have changed; starting anew takes them up"


def resolve(rules: SanRules, node: str, interfaces: Iterable[str]) -> Settings:
    """Return the settings of one node: pure.

    Args: `interfaces`: names of those the node has. A SAN of which it has none is left out: it is not on it. Raises:
    Invalid when a SAN matches several interfaces, or an interface several SANs.
    """
    present = sorted(set(interfaces))
    found: dict[str, str] = {}
    for rule in rules.san:
        if not any(fnmatchcase(node, pattern) for pattern in rule.nodes):
            continue
        matching = {name for name in present if any(fnmatchcase(name, pattern) for pattern in rule.interfaces)}
        if rule.name in found:
            matching.add(found[rule.name])
        if len(matching) > 1:
            raise Invalid(
                f"on node {node}, SAN {rule.name} matches the interfaces {' and '.join(sorted(matching))}; a node is "
                "on a SAN with one interface (a bond, for two cables): name it in the rule"
            )
        if matching:
            found[rule.name] = matching.pop()
    for name, interface in found.items():
        twice = [other for other in found if found[other] == interface]
        if len(twice) > 1:
            raise Invalid(
                f"on node {node}, interface {interface} matches the SANs {' and '.join(sorted(twice))}; "
                f"an interface is on one: mend the rule of {name}"
            )
    return Settings(
        node=node,
        san=tuple(San(name=name, interface=interface) for name, interface in sorted(found.items())),
        initiator=rules.initiator,
        state_directory=rules.state_directory,
    )
