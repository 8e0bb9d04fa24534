"""Segments: who else uses a shelf."""

import pytest
from tests.contract.beds import FOREIGN_MAC, Bed

from aoe_core.errors import Unreachable
from aoe_core.model import Address

LISTEN_S = 1.0


def test_every_card_that_serves_any_slot_of_a_shelf_is_told_once(bed: Bed) -> None:
    first = bed.serve(Address(200, 2))
    bed.serve(Address(200, 9))
    second = bed.serve(Address(200, 3), twin=True)
    bed.serve(Address(201, 1))
    users = bed.segments.shelf_users(bed.interface, 200, timeout_s=LISTEN_S)
    assert users == tuple(sorted((first.mac, second.mac)))


def test_a_shelf_of_nobody_has_no_users(bed: Bed) -> None:
    bed.serve(Address(201, 1))
    assert bed.segments.shelf_users(bed.interface, 200, timeout_s=LISTEN_S) == ()


def test_who_does_not_admit_us_is_not_seen(bed: Bed) -> None:
    # Why ranges are configured as well.
    bed.serve(Address(200, 2), admitted=FOREIGN_MAC)
    assert bed.segments.shelf_users(bed.interface, 200, timeout_s=LISTEN_S) == ()


def test_an_interface_that_is_not_there_is_unreachable(bed: Bed) -> None:
    with pytest.raises(Unreachable):
        bed.segments.shelf_users("missing0", 200, timeout_s=LISTEN_S)
