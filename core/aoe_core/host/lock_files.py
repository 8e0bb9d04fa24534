"""Names held between the processes of this host: one file each in a directory they share, locked by flock(2).

A node server and a command beside it stage the same volumes. The kernel lets go of a lock with the last descriptor of
its file, so it ends with its holder; a thread of that process stuck in the kernel keeps it, and rightly so. The
directory is on a tmpfs: no lock outlives a boot.

Files do not pile up: whoever ends a hold unlinks the file while it still has the lock, and whoever takes one looks
afterwards whether the path still leads to the file that it locked.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from aoe_core.errors import Busy, CommandFailed

DIRECTORY = Path("/run/aoe-csi/locks")
_MOST_CHARACTERS = 200
"""Of a file's name that is still readable; NAME_MAX is 255."""
_TRIES = 10
"""Each further one means that somebody else's hold began and ended meanwhile."""


class LockFiles:
    """HostLocks on a directory, which is made on first use."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self._directory = directory

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Hold `name` for the block. Raises: Busy; CommandFailed when the directory cannot be used."""
        path = self._directory / file_name(name)
        descriptor = self._take(path, name)
        try:
            yield
        finally:
            with suppress(OSError):  # The lock is what counts; its file is used again or removed by the next holder.
                path.unlink()
            # Unlocked by word: a child between fork and exec shares the descriptor, and would hold on for a moment.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _take(self, path: Path, name: str) -> int:
        for _ in range(_TRIES):
            try:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                # O_CLOEXEC: a command that outlives us must not keep our locks.
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                raise CommandFailed(
                    f"lock file {path} cannot be opened ({error.strerror}); run as root, and mount /run"
                ) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                raise Busy(f"another process is at work on {name}; call again when it has ended") from error
            if _leads_to(path, descriptor):
                return descriptor
            os.close(descriptor)
        raise Busy(f"other processes are at work on {name}, one after the other; call again")


def file_name(name: str) -> str:
    """Return the file of a name: the name itself with odd characters escaped, or its hash where that is too long."""
    readable = quote(name, safe=" ", errors="surrogatepass")
    if len(readable) > _MOST_CHARACTERS:
        readable = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{readable}.lock"


def _leads_to(path: Path, descriptor: int) -> bool:
    """Say whether the path is still the locked file's: a holder before us may have unlinked it in between."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
