import pytest

from aoe_core.attach.locks import Locks
from aoe_core.errors import Busy


def test_a_held_name_is_refused_at_once_and_others_are_not() -> None:
    locks = Locks()
    with locks.hold("volume pvc-1"):
        with pytest.raises(Busy, match="pvc-1"), locks.hold("volume pvc-1"):
            pytest.fail("held twice")
        with locks.hold("volume pvc-2"):
            pass
    with locks.hold("volume pvc-1"):
        pass


def test_a_name_is_free_again_after_an_error() -> None:
    locks = Locks()
    with pytest.raises(ValueError, match="broken"), locks.hold("volume pvc-1"):
        raise ValueError("broken")
    with locks.hold("volume pvc-1"):
        pass
