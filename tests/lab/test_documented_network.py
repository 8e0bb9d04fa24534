"""The systemd-networkd files of docs/host-preparation.md: a VLAN on a bond of two cards comes up with jumbo frames."""

import re
from collections.abc import Iterator

import pytest
from tests.documented import examples

from aoe_lab import Lab, Machine, Topology
from aoe_lab.lab import default_name

pytestmark = pytest.mark.long

FILE = re.compile(r"# (\S+): [^\n]*\n(.*)", re.DOTALL)
PLACE = "/etc/systemd/network"


def documented_files() -> dict[str, str]:
    """Return name → content."""
    found = (FILE.fullmatch(one.text) for one in examples("ini", "host-preparation.md"))
    return {one[1]: one[2] for one in found if one is not None}


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine with two cards, MACs as the page's."""
    with Lab.start(Topology(storage=1, compute=0, sans=("main", "second")), name=f"{default_name()}-net") as lab:
        yield lab.machines[0]


def test_a_vlan_on_a_bond_comes_up_as_the_page_says(machine: Machine) -> None:
    files = documented_files()
    card = files.pop("30-san-card.network")
    files["32-san0.network"] = re.sub("MACAddress=.*", "Name=san0", card)
    assert len(files) == 5
    for name, content in files.items():
        machine.run(f"cat > {PLACE}/{name}", stdin=content)
    machine.run("ip link set eth1 down; ip link set eth2 down; systemctl start systemd-networkd")
    machine.run("/lib/systemd/systemd-networkd-wait-online --timeout=60 --interface=san0:carrier", timeout_s=90)
    assert " mtu 9000 " in machine.run("ip -d link show san0").stdout
    assert " vlan protocol 802.1Q id 100 " in machine.run("ip -d link show san0").stdout
    assert set(machine.run("cat /sys/class/net/bond0/bonding/slaves").stdout.split()) == {"eth1", "eth2"}
    # One card's cable pulled: the SAN stays.
    machine.link_down("main")
    active = "/sys/class/net/bond0/bonding/active_slave"
    machine.run(f"for i in $(seq 50); do grep -qx eth2 {active} && exit; sleep 0.2; done; exit 1")
    assert machine.run("cat /sys/class/net/san0/carrier").stdout == "1\n"


def test_a_card_of_its_own_comes_up_as_the_page_says(machine: Machine) -> None:
    files = documented_files()
    machine.run(f"cat > {PLACE}/30-san-card.network", stdin=files["30-san-card.network"])
    machine.run("ip link set eth1 down mtu 1500; systemctl start systemd-networkd")
    machine.run("/lib/systemd/systemd-networkd-wait-online --timeout=60 --interface=eth1:carrier", timeout_s=90)
    assert machine.run("cat /sys/class/net/eth1/mtu").stdout == "9000\n"
