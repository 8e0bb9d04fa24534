"""How long a machine's aoe driver waits for a silent target before I/O fails.

Owns: the driver's parameter while somebody wants it otherwise. The node server stages nothing meanwhile: it does not
trust a driver that waits longer than an address rests.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aoe_lab.machine import Machine

OUTLASTING_DEADSECS = 600
"""Longer than a machine's reboot takes, however slow the host is: the driver's users wait for it."""
_PARAMETER = "/sys/module/aoe/parameters/aoe_deadsecs"


@contextlib.contextmanager
def deadsecs(machine: Machine, seconds: int) -> Iterator[None]:
    """Have the driver of `machine` wait so many seconds, then as many as before."""
    before = int(machine.run(["cat", _PARAMETER]).stdout)
    machine.run(f"echo {seconds} > {_PARAMETER}")
    try:
        yield
    finally:
        machine.run(f"echo {before} > {_PARAMETER}")
