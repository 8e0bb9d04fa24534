"""Who goes back in time is noticed; who grows, or does not answer, is not taken for that."""

import threading

import pytest

from aoe_core.errors import Unreachable
from aoe_core.resources.step_back import StepBack


@pytest.mark.parametrize(
    ("revisions", "back"),
    [((5, 5, 9), False), ((5, 9, 8), True), ((5, None, 6), False), ((5, None, 4), True)],
)
def test_the_process_ends_when_the_revision_shrinks(revisions: tuple[int | None, ...], *, back: bool) -> None:
    left = list(revisions)
    asked, end = threading.Event(), threading.Event()

    def revision() -> int:
        if not left:
            asked.set()
            return 10**9
        told = left.pop(0)
        if told is None:
            raise Unreachable("the API server does not answer; look at it")
        return told

    looking = StepBack(revision, end, every_s=0.001)
    looking.start_background()
    waited_for = end if back else asked
    assert waited_for.wait(30)
    assert end.is_set() is back
    looking.stop_background()
