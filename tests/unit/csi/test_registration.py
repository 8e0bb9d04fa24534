"""kubelet asks once for each socket that is made: one that refused is asked anew."""

import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from aoe_csi.proto import pluginregistration_pb2 as messages
from aoe_csi.registration import Registrar, Registration

ANY: Any = None
"""Of a call nothing is asked."""
AGAIN_S = 0.01


@dataclass
class Sockets:
    """The sockets that were made, and whether they are still served."""

    served: list[bool] = field(default_factory=list)

    def open(self) -> "Socket":
        return Socket(self)


class Socket:
    def __init__(self, sockets: Sockets) -> None:
        self.sockets = sockets

    def start(self) -> None:
        assert True not in self.sockets.served, "two at a time"
        self.sockets.served.append(True)

    def stop(self) -> bool:
        self.sockets.served[-1] = False
        return True


def answer(registered: Registration, *, refused: str = "") -> None:
    """Do what kubelet does about a socket."""
    registered.GetInfo(messages.InfoRequest(), ANY)
    registered.NotifyRegistrationStatus(messages.RegistrationStatus(plugin_registered=not refused, error=refused), ANY)


@pytest.fixture
def registered(tmp_path: Any) -> Registration:
    return Registration(tmp_path / "csi.sock")


def test_a_refusal_is_followed_by_another_socket_until_kubelet_agrees(registered: Registration) -> None:
    sockets = Sockets()
    registrar = Registrar(registered, sockets.open, again_s=AGAIN_S)
    registrar.start()
    answer(registered, refused="no such SAN")
    assert registered.problem == "kubelet does not register: no such SAN"
    until = time.monotonic() + 60
    while len(sockets.served) < 3:
        assert time.monotonic() < until
        time.sleep(AGAIN_S)
    answer(registered)
    assert not registered.is_refused
    time.sleep(5 * AGAIN_S)
    made = len(sockets.served)
    time.sleep(5 * AGAIN_S)
    assert len(sockets.served) == made
    assert registrar.stop()
    assert True not in sockets.served


@pytest.mark.parametrize("takes_part", [True, False])
def test_nobody_is_asked_anew_who_has_not_refused_or_has_nothing_to_register(
    registered: Registration, *, takes_part: bool
) -> None:
    sockets = Sockets()
    registrar = Registrar(registered, sockets.open, takes_part=lambda: takes_part, again_s=AGAIN_S)
    registrar.start()
    if not takes_part:
        answer(registered, refused="no SAN")
    time.sleep(5 * AGAIN_S)
    assert sockets.served == [True]
    assert registrar.stop()
