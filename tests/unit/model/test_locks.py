import pytest

from aoe_core.errors import Busy
from aoe_core.locks import Locks


def test_a_held_name_is_refused_at_once_and_others_are_not() -> None:
    locks = Locks()
    with locks.hold("volume/a"):
        with pytest.raises(Busy, match="volume/a"), locks.hold("volume/a"):
            pytest.fail("held twice")
        with locks.hold("volume/b"):
            pass


def test_a_name_is_free_again_after_a_failure_inside() -> None:
    locks = Locks()
    with pytest.raises(ZeroDivisionError), locks.hold("volume/a"):
        _ = 1 // 0
    with locks.hold("volume/a"):
        pass
