"""The administrator's list of who may attach to which domains."""

from pathlib import Path

import pytest

from aoe_core.errors import Invalid
from aoe_core.resources.guest_access import AccessRule, AccessRules, read, require_access, require_machine_access

LIST = """
[[access]]
namespaces = ["team-a"]
domains = ["web-*", "db"]
hosts = ["hypervisor?"]

[[access]]
namespaces = ["*"]
domains = ["scratch"]
"""


@pytest.fixture
def rules(tmp_path: Path) -> AccessRules:
    path = tmp_path / "guests.toml"
    path.write_text(LIST, encoding="utf-8")
    return read(path)


@pytest.mark.parametrize(
    ("namespace", "host", "domain"),
    [
        ("team-a", "hypervisor1", "web-1"),
        ("team-a", "hypervisor2", "db"),
        ("team-b", "anywhere", "scratch"),
    ],
)
def test_what_a_rule_names_is_allowed(rules: AccessRules, namespace: str, host: str, domain: str) -> None:
    require_access(rules, namespace=namespace, host=host, domain=domain)


@pytest.mark.parametrize(
    ("namespace", "host", "domain"),
    [
        ("team-b", "hypervisor1", "web-1"),
        ("team-a", "hypervisor10", "web-1"),
        ("team-a", "hypervisor1", "Web-1"),
        ("team-a", "hypervisor1", "db2"),
        # Names that one rule has and another's namespace: rules are not mixed.
        ("team-b", "hypervisor1", "db"),
    ],
)
def test_all_else_is_refused_with_the_remedy(rules: AccessRules, namespace: str, host: str, domain: str) -> None:
    with pytest.raises(Invalid, match=r"an administrator allows it by a rule in the chart's value guests\.access"):
        require_access(rules, namespace=namespace, host=host, domain=domain)


def test_without_a_list_nothing_is_allowed() -> None:
    with pytest.raises(Invalid, match="namespace team-a may not attach"):
        require_access(AccessRules(), namespace="team-a", host="h", domain="d")


def test_a_machine_of_the_namespace_is_allowed_by_a_rule_that_names_it() -> None:
    rules = AccessRules(
        access=(
            AccessRule(namespaces=("team-a",), virtual_machines=("web-*",)),
            AccessRule(namespaces=("team-b",), domains=("*",)),
        )
    )
    require_machine_access(rules, namespace="team-a", machine="web-1")
    for namespace, machine in (("team-a", "db"), ("team-b", "web-1"), ("team-c", "web-1")):
        with pytest.raises(Invalid, match=rf"namespace {namespace} may not attach to its virtual machine {machine}; "):
            require_machine_access(rules, namespace=namespace, machine=machine)
    with pytest.raises(Invalid, match="may not attach to domain web-1"):
        require_access(rules, namespace="team-a", host="h", domain="web-1")


@pytest.mark.parametrize(
    "text",
    [
        '[[access]]\nnamespaces = ["a"]\n',
        '[[access]]\nnamespaces = []\ndomains = ["d"]\n',
        '[[access]]\nnamespaces = ["a"]\ndomains = ["a/b"]\n',
        '[[acess]]\nnamespaces = ["a"]\ndomains = ["b"]\n',
    ],
)
def test_a_list_that_says_nothing_clear_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "guests.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(Invalid, match=r"guests\.toml"):
        read(path)


UUID = "dbf0a7c2-8a3e-4f6b-9d7c-000000000001"


def test_a_pattern_of_names_opens_no_domain_by_its_uuid(rules: AccessRules) -> None:
    patterns = AccessRules(access=(AccessRule(namespaces=("team-a",), domains=("db*", "d*", "*1")),))
    for listed in (rules, patterns):
        with pytest.raises(Invalid, match="may not attach"):
            require_access(listed, namespace="team-a", host="hypervisor1", domain=UUID)


@pytest.mark.parametrize("domains", [("*",), (UUID,)])
def test_a_uuid_is_allowed_by_itself_or_with_all(domains: tuple[str, ...]) -> None:
    rules = AccessRules(access=(AccessRule(namespaces=("team-a",), domains=domains),))
    require_access(rules, namespace="team-a", host="h", domain=UUID)
    for other in (UUID.upper(), UUID.replace("-", ""), "db-" + UUID[2:].replace("-", "")):
        with pytest.raises(Invalid, match=f"write it as virsh domuuid does: {UUID}"):
            require_access(rules, namespace="team-a", host="h", domain=other)
