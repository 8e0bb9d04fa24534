"""Tells a waiting person what is going on, how long it took last time, and that it is still alive.

Owns: the lines on standard error and the record of durations. Refuses: to be a log; nothing reads these lines.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

STILL_ALIVE_EVERY_S = 15.0


def say(line: str) -> None:
    print(f"lab: {line}", file=sys.stderr, flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Announce a step, with its last duration if known, repeat a sign of life, and say how long it took."""
    last_s = _durations().get(what)
    say(f"{what} ..." if last_s is None else f"{what} (last time {last_s:.0f} s) ...")
    begin = time.monotonic()
    ended = threading.Event()

    def show_life() -> None:
        while not ended.wait(STILL_ALIVE_EVERY_S):
            say(f"{what}: {time.monotonic() - begin:.0f} s so far")

    speaker = threading.Thread(target=show_life, daemon=True)
    speaker.start()
    try:
        yield
    except BaseException:
        say(f"{what}: failed after {time.monotonic() - begin:.1f} s")
        raise
    finally:
        ended.set()
        speaker.join()
    seconds = time.monotonic() - begin
    _remember(what, seconds)
    say(f"{what}: {seconds:.1f} s")


def _record() -> Path:
    # Not cachedir.cache_root(): the cache itself reports its progress here.
    root = Path(os.environ.get("AOE_LAB_CACHE") or Path.home() / ".cache" / "aoe-csi")
    root.mkdir(parents=True, exist_ok=True)
    return root / "durations.json"


def _durations() -> dict[str, float]:
    try:
        known = json.loads(_record().read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return {str(what): float(seconds) for what, seconds in known.items()}


def _remember(what: str, seconds: float) -> None:
    # Two labs may write at once and lose one duration: worth less than a lock.
    record = _record()
    unfinished = record.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(_durations() | {what: round(seconds, 1)}, indent=1, sort_keys=True))
    unfinished.rename(record)
