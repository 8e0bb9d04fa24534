"""The administrator's list: the claims of which namespaces may become disks of which guests.

Empty unless an administrator wrote one. Whoever may create an AoEGuestDisk could otherwise give a disk to a guest that
another team runs, or have a guest of his read another's.
"""

import uuid
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import msgspec

from aoe_core import settings
from aoe_core.errors import Invalid

Pattern = Annotated[str, msgspec.Meta(pattern=r"^[^/\x00-\x1f]+$", max_length=253)]


class AccessRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Namespaces that may attach to guests. Several rules add up."""

    namespaces: Annotated[tuple[Pattern, ...], msgspec.Meta(min_length=1)]
    """Names, or patterns with * ? [] of them."""
    domains: tuple[Pattern, ...] = ()
    """Of libvirt. Names, or patterns of them; UUIDs, which stand for themselves alone. `*` is every domain."""
    hosts: tuple[Pattern, ...] = ("*",)
    """Names of the nodes of these domains, or patterns."""
    virtual_machines: tuple[Pattern, ...] = ()
    """Of KubeVirt, and of the same namespace always. Names, or patterns."""

    def __post_init__(self) -> None:
        """Raises: ValueError when nothing is allowed."""
        if not (self.domains or self.virtual_machines):
            raise ValueError("allows nothing; name domains, or virtual_machines")


class AccessRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    access: tuple[AccessRule, ...] = ()


def read(path: Path) -> AccessRules:
    """Read the list. Raises: Invalid naming the file, the key, the fact and the remedy."""
    return settings.read_as(AccessRules, path)


def require_access(rules: AccessRules, *, namespace: str, host: str, domain: str) -> None:
    """Check that a namespace may attach to a domain. Raises: Invalid."""
    is_uuid = _is_uuid(domain)
    for rule in rules.access:
        # A pattern is meant for names: `db-*` must not open a domain whose UUID can be written to begin so.
        domains = [one for one in rule.domains if not is_uuid or one in (domain, "*")]
        if _matches(namespace, rule.namespaces) and _matches(host, rule.hosts) and _matches(domain, domains):
            return
    raise Invalid(
        f"namespace {namespace} may not attach to domain {domain} of host {host}; an administrator allows it by a rule "
        "in the chart's value guests.access"
    )


def require_machine_access(rules: AccessRules, *, namespace: str, machine: str) -> None:
    """Check that a namespace may attach to a machine of its own. Raises: Invalid."""
    if not any(
        _matches(namespace, rule.namespaces) and _matches(machine, rule.virtual_machines) for rule in rules.access
    ):
        raise Invalid(
            f"namespace {namespace} may not attach to its virtual machine {machine}; an administrator allows it by a "
            "rule with virtualMachines in the chart's value guests.access"
        )


def _is_uuid(domain: str) -> bool:
    """Say whether libvirt is asked for a UUID. Raises: Invalid when it is written otherwise than libvirt writes it."""
    try:
        plain = str(uuid.UUID(domain))
    except ValueError:
        return False
    if plain != domain:
        raise Invalid(f"domain {domain!r} is a UUID; write it as virsh domuuid does: {plain}")
    return True


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
