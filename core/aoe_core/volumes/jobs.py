"""Long work in the background: copies and wipes, each under a key, with progress for whoever asks.

A caller waits a little for its job and is then told how far it is; asking again with the same key finds the same job.
Jobs live in this process only: after a crash the engine finds the unfinished volume in LVM and starts the job anew.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from aoe_core.errors import AoECsiError, Unfinished

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A job under way. `key`: `copy/<volume id>`, or `wipe/<volume group>/<logical volume>`."""

    key: str
    what: str
    percent: int


@dataclass(slots=True)
class _Job:
    what: str
    total: int
    done: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    error: AoECsiError | None = None


class JobBoard:
    """Running jobs by key."""

    def __init__(self, *, threads: bool = True) -> None:
        """Without threads every job runs to its end in the call that starts it."""
        self._threads = threads
        self._jobs: dict[str, _Job] = {}
        self._lock = threading.Lock()

    def run(
        self, key: str, what: str, total: int, work: Callable[[Callable[[int], None]], None], *, wait_s: float
    ) -> None:
        """Start a job, or find it running, and wait up to `wait_s` for its end.

        `work` is given a function to report how many of `total` steps are done.
        Raises: the job's own error; Unfinished with its progress when it is still running.
        """
        with self._lock:
            job = self._jobs.get(key)
            if job is None:
                job = self._jobs[key] = _Job(what=what, total=max(total, 1))
                if self._threads:
                    threading.Thread(target=self._work, args=(key, job, work), name=key, daemon=True).start()
        if not self._threads:
            self._work(key, job, work)
        if not job.ended.wait(wait_s):
            raise Unfinished(f"{job.what}: {100 * job.done // job.total} % done; ask again")
        if job.error is not None:
            raise job.error

    def progress(self) -> tuple[Work, ...]:
        """Return every running job and how far it is."""
        with self._lock:
            return tuple(
                Work(key=key, what=job.what, percent=100 * job.done // job.total) for key, job in self._jobs.items()
            )

    def _work(self, key: str, job: _Job, work: Callable[[Callable[[int], None]], None]) -> None:
        def report(done: int) -> None:
            job.done = done

        try:
            work(report)
        except AoECsiError as error:
            job.error = error
            log.warning("job failed", extra={"job": key, "error": str(error)})
        except Exception:
            job.error = Unfinished(f"{job.what} stopped on an internal error; see this host's log")
            log.exception("job failed", extra={"job": key})
        finally:
            with self._lock:
                self._jobs.pop(key, None)
            job.ended.set()
