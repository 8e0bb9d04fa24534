"""Where built things are kept between runs, outside the checkout.

Owns: content keys, the one build at a time, and the rule that a thing in the cache is whole: it is built beside its
place and renamed into it. Refuses: to judge whether a key covers all that matters; the caller names what it depends on.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aoe_lab import progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UNUSED_DAYS = 14  # No lab runs that long on files it does not ask for again.
CHECKOUT = Path(__file__).resolve().parents[2]


def cache_root() -> Path:
    """Return the cache directory, made if missing: AOE_LAB_CACHE, else ~/.cache/aoe-csi."""
    root = Path(os.environ.get("AOE_LAB_CACHE") or Path.home() / ".cache" / "aoe-csi")
    root.mkdir(parents=True, exist_ok=True)
    return root


def content_key(*parts: str | bytes | Path) -> str:
    """Return 16 hex digits that change when a text, or the content or mode of a file or of a tree's files, changes."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            files = sorted(path for path in part.rglob("*") if path.is_file()) if part.is_dir() else [part]
            for path in files:
                digest.update(f"{path.relative_to(part)}:{path.stat().st_mode & 0o111}:".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        else:
            digest.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return digest.hexdigest()[:16]


def built(kind: str, key: str, what: str, build: Callable[[Path], None]) -> Path:
    """Return the cache's directory `kind-key`, built by `build(empty directory)` unless it is there.

    `what` is the step's name for the progress lines. Holds: a lock per kind, so that two runs build nothing twice.
    """
    place = cache_root() / f"{kind}-{key}"
    if place.is_dir():
        os.utime(place)  # Shows which of several generations is still in use.
        return place
    with _locked(kind):
        if place.is_dir():
            return place
        unfinished = cache_root() / f".{kind}-unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        with progress.step(what):
            build(unfinished)
        unfinished.rename(place)
        _drop_unused(kind, keep=place)
    return place


def _drop_unused(kind: str, *, keep: Path) -> None:
    oldest = time.time() - UNUSED_DAYS * 86400
    for place in cache_root().glob(f"{kind}-*"):
        if place != keep and place.stat().st_mtime < oldest:
            shutil.rmtree(place)


@contextmanager
def _locked(kind: str) -> Iterator[None]:
    with (cache_root() / f".{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
