"""One look at the host for all that a list of resources holds, which waits for LVM for a while only."""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from aoe_core.errors import Busy
from aoe_core.model import SnapshotId, VolumeId, VolumeStatus
from aoe_core.volumes.inspection import Inspection

_PATIENCE_S = 10.0
"""What LVM takes for ten thousand volumes, with room to spare. Whatever is listed waits for it, also what must be
revoked at once."""


@dataclass(frozen=True, slots=True)
class Host:
    """What a look comes to."""

    volumes: Mapping[VolumeId, VolumeStatus]
    """The ready ones."""
    snapshots: frozenset[SnapshotId]


class FirstLook:
    """What was on the host when it was first asked for, or what kept it from being seen, until it is forgotten."""

    def __init__(self, look: Callable[[], Inspection]) -> None:
        self._look = look
        self._guard = threading.Lock()
        self._seen: Future[Host] | None = None
        self._by_s = 0.0

    def take(self) -> Host:
        """Return it. Raises: what the look raises; Busy when it takes long."""
        with self._guard:
            if self._seen is None:
                self._seen, self._by_s = Future(), time.monotonic() + _PATIENCE_S
                threading.Thread(target=self._fill, args=(self._seen,), name="first look", daemon=True).start()
            seen, by_s = self._seen, self._by_s
        try:
            return seen.result(max(0.0, by_s - time.monotonic()))
        except TimeoutError:
            raise Busy(f"LVM has not answered within {_PATIENCE_S:g} s") from None

    def forget(self) -> None:
        """Look anew next time; with very many volumes it is large."""
        with self._guard:
            self._seen = None

    def _fill(self, seen: "Future[Host]") -> None:
        try:
            there = self._look()
            found = Host(
                volumes={one.volume.volume_id: one for one in there.ready()},
                snapshots=frozenset(one.snapshot_id for one in there.snapshots),
            )
        except BaseException as error:  # noqa: BLE001 - raised where it is asked for.
            seen.set_exception(error)
        else:
            seen.set_result(found)
