import threading

import pytest

from aoe_core.errors import NotFound, Unfinished
from aoe_core.host.blocking import BlockingCalls


def test_what_a_call_returns_or_raises_is_passed_on() -> None:
    calls = BlockingCalls()
    assert calls.run("device", lambda: 7, timeout_s=30) == 7

    def refuse() -> None:
        raise NotFound("nothing there")

    with pytest.raises(NotFound):
        calls.run("device", refuse, timeout_s=30)
    assert calls.stuck() == frozenset()


def test_a_call_that_does_not_come_back_is_abandoned_and_holds_up_its_key_alone() -> None:
    calls, answer = BlockingCalls(), threading.Event()
    tried: list[str] = []
    with pytest.raises(Unfinished):
        calls.run("dead", answer.wait, timeout_s=0.05)
    assert calls.stuck() == {"dead"}
    with pytest.raises(Unfinished):
        calls.run("dead", lambda: tried.append("again"), timeout_s=30)
    assert tried == []
    assert calls.run("alive", lambda: 1, timeout_s=30) == 1

    (thread,) = (one for one in threading.enumerate() if one.name == "blocking dead")
    answer.set()
    thread.join(30)
    assert calls.stuck() == frozenset()
    assert calls.run("dead", lambda: 2, timeout_s=30) == 2
