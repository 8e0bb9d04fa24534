"""Looks at the host that many callers share.

`lvm fullreport` and `systemctl show` read everything at once, and take the longer the more of them run beside each
other. Fifty calls at once need one of each, not fifty.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from aoe_core.host.batches import Batches

Seen = TypeVar("Seen")


class SharedLook(Generic[Seen]):
    """Callers that ask while a look is under way share the next one.

    What a caller gets was always read after it asked: a look already under way may have passed by what the caller has
    just changed. Two looks never run at the same time. `hold`: returns once a look had better begin; those who ask
    until then share it.
    """

    def __init__(self, look: Callable[[], Seen], *, hold: Callable[[], None] = lambda: None) -> None:
        self._batches: Batches[None, Seen] = Batches(lambda wishes: [look()] * len(wishes), hold=hold)

    def take(self) -> Seen:
        """Return what a look begun after this call saw. Raises: what that look raised, for all who share it."""
        return self._batches.ask(None)
