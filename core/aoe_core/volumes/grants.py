"""Grants: who may hold a volume beside whom. Pure.

One writer: at most one read-write grant; two only for raw block in MULTI_NODE_MULTI_WRITER (live migration). A writer
and readers never share a volume: a file system's readers would see it change under them.
"""

from collections.abc import Iterable

from aoe_core.errors import Conflict, InUse
from aoe_core.model import AccessMode, Grant, NodeIdentity, VolumeId

MAX_WRITERS = 2
"""The two ends of one live migration."""


def find_same(
    grants: Iterable[Grant], node: NodeIdentity, mode: AccessMode, *, writable: bool, block: bool
) -> Grant | None:
    """Return the node's own grant when it is what is asked for, None when it has none.

    Raises: Conflict when it has another one.
    """
    own = next((grant for grant in grants if grant.node == node.name), None)
    if own is None or (own.mode, own.writable, own.block) == (mode, writable, block):
        return own
    raise Conflict(
        f"volume {own.volume_id} is published to node {own.node} already as "
        f"{_words(own.mode, own.writable, own.block)}, not {_words(mode, writable, block)}; unpublish it first"
    )


def require_admissible(
    volume_id: VolumeId, others: Iterable[Grant], mode: AccessMode, *, writable: bool, block: bool
) -> None:
    """Check that a new grant can stand beside the others. Raises: InUse naming the nodes that hold the volume."""
    held = tuple(others)
    if not held:
        return
    nodes = ", ".join(sorted(f"{grant.node} ({_words(grant.mode, grant.writable, grant.block)})" for grant in held))
    shared = mode.many_nodes and all(grant.mode is mode for grant in held)
    if not shared:
        raise InUse(f"volume {volume_id} is published to {nodes}; unpublish it there first")
    if mode is AccessMode.MULTI_NODE_READER_ONLY:
        return  # No writable grant has this mode (checked where requests are parsed and where grants are made).
    if not block or not all(grant.block for grant in held):
        raise InUse(f"volume {volume_id} is published to {nodes}; only raw block volumes can have two writers")
    writers = sum(grant.writable for grant in held) + writable
    if writers > MAX_WRITERS:
        raise InUse(f"volume {volume_id} has {MAX_WRITERS} writers already: {nodes}; unpublish one first")


def _words(mode: AccessMode, writable: bool, block: bool) -> str:
    return f"{mode.value} {'block' if block else 'file system'}, {'read-write' if writable else 'read-only'}"
