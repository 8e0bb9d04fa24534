from pathlib import Path

from aoe_core.preflight import Severity, find_stacked
from aoe_core.settings import San

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
