"""What the files of a host say, and that two roles on one host do not overwrite each other's."""

from aoe_core.host.ingress import interfaces_in
from aoe_core.preparation import wanted
from aoe_core.settings import Pool, San, Settings


def settings(**interfaces: str) -> Settings:
    sans = tuple(San(name=name, interface=interface, shelves=((10, 19),)) for name, interface in interfaces.items())
    return Settings(node="n", san=sans)


def text(ending: str, *arguments: object) -> str:
    (found,) = (one.text for one in wanted(*arguments) if one.path.endswith(ending))  # type: ignore[arg-type]
    return found


def test_two_roles_with_other_sans_come_to_one_rule_file() -> None:
    storage, node = settings(b="eth2", a="eth1"), settings(a="eth1", c="eth3")
    first = text("ingress.nft", storage)
    second = text("ingress.nft", node, {"eth1", "eth2"})
    assert "# interface eth3" not in first
    assert text("ingress.nft", storage, {"eth1", "eth2", "eth3"}) == second
    assert text("ingress.nft", node, {"eth1", "eth2", "eth3"}) == second


def test_the_order_of_sans_is_none_of_the_interfaces() -> None:
    """Preflight compares with the file's own interfaces, which are no list."""
    alone = settings(a="eth2", b="eth1")
    written = text("ingress.nft", alone)
    assert text("ingress.nft", alone, interfaces_in(written)) == written


def test_a_role_without_a_san_leaves_the_other_s_rules_and_opens_no_interface() -> None:
    assert "# interface eth1" in text("ingress.nft", settings(), {"eth1"})
    assert "aoe_iflist=none " in text("modprobe.d/aoe-csi.conf", settings())
    assert "aoe_iflist=eth1 " in text("modprobe.d/aoe-csi.conf", settings(a="eth1"))


def test_udev_keeps_away_from_the_volumes_of_every_group() -> None:
    pools = (Pool(name="thick", volume_group="slow"), Pool(name="thin", volume_group="fast", thin_pool="tp"))
    rules = text("57-aoe-csi.rules", Settings(node="n", san=(), pool=(*pools, Pool(name="b", volume_group="slow"))))
    assert 'ENV{DM_VG_NAME}=="fast|slow"' in rules
    assert not any(one.path.endswith("57-aoe-csi.rules") for one in wanted(settings(a="eth1")))


def test_what_has_rules_is_read_off_the_file() -> None:
    assert interfaces_in("") == frozenset()
    assert interfaces_in(text("ingress.nft", settings(a="eth1", b="bond0.7"))) == {"eth1", "bond0.7"}
