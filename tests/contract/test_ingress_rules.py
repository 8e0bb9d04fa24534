"""IngressRules: which target the initiator hears."""

import pytest
from tests.contract.beds import FOREIGN_MAC, Bed

from aoe_core.errors import AoECsiError
from aoe_core.model import Address, Mac

ADDRESS = Address(10, 3)
OTHER = Address(65534, 254)
SECOND_MAC = Mac("52:54:00:ff:ff:02")


def test_without_rules_nothing_is_pinned(bed: Bed) -> None:
    assert bed.ingress.pinned() == frozenset()


def test_standing_rules_begin_without_pins(bed: Bed) -> None:
    bed.ingress.ensure([bed.interface])
    assert bed.ingress.pinned() == frozenset()


def test_pins_are_kept_apart_by_address(bed: Bed) -> None:
    bed.ingress.ensure([bed.interface])
    bed.ingress.pin(bed.interface, ADDRESS, FOREIGN_MAC)
    bed.ingress.pin(bed.interface, OTHER, SECOND_MAC)
    assert bed.ingress.pinned() == {(bed.interface, ADDRESS, FOREIGN_MAC), (bed.interface, OTHER, SECOND_MAC)}


def test_pinning_again_changes_nothing(bed: Bed) -> None:
    bed.ingress.ensure([bed.interface])
    bed.ingress.pin(bed.interface, ADDRESS, FOREIGN_MAC)
    bed.ingress.pin(bed.interface, ADDRESS, FOREIGN_MAC)
    assert bed.ingress.pinned() == {(bed.interface, ADDRESS, FOREIGN_MAC)}


def test_one_address_has_one_target(bed: Bed) -> None:
    bed.ingress.ensure([bed.interface])
    bed.ingress.pin(bed.interface, ADDRESS, FOREIGN_MAC)
    bed.ingress.pin(bed.interface, ADDRESS, SECOND_MAC)
    assert bed.ingress.pinned() == {(bed.interface, ADDRESS, SECOND_MAC)}


def test_unpinning_takes_one_address_and_only_that(bed: Bed) -> None:
    bed.ingress.ensure([bed.interface])
    bed.ingress.pin(bed.interface, ADDRESS, FOREIGN_MAC)
    bed.ingress.pin(bed.interface, OTHER, FOREIGN_MAC)
    bed.ingress.unpin(bed.interface, ADDRESS)
    assert bed.ingress.pinned() == {(bed.interface, OTHER, FOREIGN_MAC)}


def test_unpinning_what_is_not_pinned_is_no_error(bed: Bed) -> None:
    bed.ingress.ensure([bed.interface])
    bed.ingress.unpin(bed.interface, ADDRESS)
    assert bed.ingress.pinned() == frozenset()


def test_making_the_rules_stand_again_keeps_the_pins(bed: Bed) -> None:
    bed.ingress.ensure([bed.interface])
    bed.ingress.pin(bed.interface, ADDRESS, FOREIGN_MAC)
    assert bed.ingress.ensure([bed.interface]) == {(bed.interface, ADDRESS, FOREIGN_MAC)}
    assert bed.ingress.pinned() == {(bed.interface, ADDRESS, FOREIGN_MAC)}


def test_rules_that_somebody_flushed_can_be_made_to_stand_again(bed: Bed) -> None:
    bed.ingress.ensure([bed.interface])
    bed.ingress.pin(bed.interface, ADDRESS, FOREIGN_MAC)
    bed.flush_rules()
    assert bed.ingress.pinned() == frozenset()
    bed.ingress.ensure([bed.interface])
    bed.ingress.pin(bed.interface, ADDRESS, FOREIGN_MAC)
    assert bed.ingress.pinned() == {(bed.interface, ADDRESS, FOREIGN_MAC)}


def test_a_pin_without_rules_is_refused_and_not_lost(bed: Bed) -> None:
    with pytest.raises(AoECsiError):
        bed.ingress.pin(bed.interface, ADDRESS, FOREIGN_MAC)


def test_an_interface_that_is_not_there_is_refused(bed: Bed) -> None:
    with pytest.raises(AoECsiError):
        bed.ingress.ensure(["nowhere0"])
