"""As whom a host claims shelves: as the one that remembers which of their addresses rest.

That memory is the export files. When they are lost, with the state directory or the disk it was on, the same system is
somebody else to its former shelves: it would give out addresses to which compute nodes may still write.
"""

import logging
import uuid
from collections.abc import Callable, Iterable

from aoe_core.host.files import DurableFiles
from aoe_core.resources.shelf import AoEShelf

log = logging.getLogger(__name__)

_RECORD = "id"


def claimant(
    files: DurableFiles, machine_id: str, claims: Callable[[], Iterable[AoEShelf]], exports: DurableFiles
) -> str:
    """Return the name under which this host claims shelves; it is written down before anything is claimed.

    `files`: where it is written; `claims`: looks at every shelf that is claimed; `exports`: the export files. Both are
    read the first time only. Returns: 32 hexadecimal digits, the machine ID of a host that never lost anything. Raises:
    CommandFailed, and what `claims` raises.
    """
    known = files.read_all().get(_RECORD)
    if known is not None:
        return known
    # An earlier version wrote no name down, and had export files from its first grant on.
    is_lost = not exports.read_all() and any(claim.spec.machine_id == machine_id for claim in claims())
    name = uuid.uuid4().hex if is_lost else machine_id
    if is_lost:
        log.warning("what this host knew of resting addresses is lost; it claims other shelves", extra={"as": name})
    files.write(_RECORD, name)
    return name
