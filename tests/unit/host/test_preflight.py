from pathlib import Path

import pytest

from aoe_core.preflight import Severity, find_stacked, judge_driver, judge_kernel
from aoe_core.settings import Initiator, San, Settings

NIC = San(name="main", interface="eth1")
VLAN = San(name="second", interface="eth1.7")
OTHER = San(name="other", interface="eth2")


def sysfs(place: Path) -> Path:
    for name in ("eth1", "eth2", "eth1.7/lower_eth1"):
        (place / "class/net" / name).mkdir(parents=True, exist_ok=True)
    return place


def test_a_vlan_and_the_card_it_lies_on_are_not_both_sans(tmp_path: Path) -> None:
    (finding,) = find_stacked((NIC, VLAN, OTHER), sysfs(tmp_path))
    assert (finding.check, finding.severity) == ("san second", Severity.FAILURE)
    assert "eth1.7 lies on eth1" in finding.fact


def test_a_vlan_on_a_card_that_is_no_san_is_fine(tmp_path: Path) -> None:
    assert list(find_stacked((VLAN, OTHER), sysfs(tmp_path))) == []


@pytest.mark.parametrize(
    ("release", "named"),
    [
        ("6.1.140", []),
        ("6.16.0", []),
        ("6.1.90", ["CVE-2024-49982"]),
        ("6.9.3", ["CVE-2024-49982"]),
        ("6.1.80", ["CVE-2024-26898", "CVE-2024-49982"]),
        ("5.4.300", ["CVE-2024-26898", "CVE-2024-49982"]),
        ("unheard-of", ["CVE-2024-26898", "CVE-2024-49982"]),
    ],
)
def test_a_kernel_s_known_flaws_are_named(release: str, named: list[str]) -> None:
    findings = list(judge_kernel(release))
    assert [name for name in ("CVE-2024-26898", "CVE-2024-49982") if any(name in one.fact for one in findings)] == named
    assert {one.severity for one in findings} == {Severity.WARNING if named else Severity.OK}
    assert all(one.remedy for one in findings if one.severity is not Severity.OK)


@pytest.mark.parametrize(
    ("deadsecs", "interfaces", "said"),
    [(600, {"eth1"}, ""), (180, {"eth1"}, "180"), (600, set(), "pods'"), (600, {"eth1", "eth9"}, "eth9")],
)
def test_what_the_driver_really_took_is_compared(deadsecs: int, interfaces: set[str], said: str) -> None:
    """A driver that was loaded before us has other options, and says nothing."""
    settings = Settings(node="compute1", san=(NIC,), initiator=Initiator(deadsecs=600))
    (finding,) = judge_driver(settings, deadsecs=deadsecs, interfaces=frozenset(interfaces))
    assert finding.severity is (Severity.FAILURE if said else Severity.OK)
    assert said in finding.fact
