"""Addresses: a fresh one for every grant. Pure.

A revoked address may still have frozen frames of its former holder under way. So it rests longer than any initiator
keeps a frame (aoe_deadsecs), and it never goes back to the node that held it in the same boot: a paused machine wakes
up with frames of any age. A reboot, told by the node's boot id, proves the node clean.
"""

from collections.abc import Iterable
from dataclasses import replace

from aoe_core.errors import NoSpace
from aoe_core.host.exports import UNKNOWN_BOOT, ExportFile, ExportState, Former
from aoe_core.model import MAX_SLOT, Address, NodeIdentity, SanName


def note_boot(files: Iterable[ExportFile], node: NodeIdentity) -> tuple[ExportFile, ...]:
    """Return the tombstones that learn a former holder's boot now that it is heard of: it must change before they
    count it as clean."""
    noted = []
    for file in files:
        if file.state is ExportState.RESTING:
            former = tuple(
                replace(one, boot=node.boot) if (one.node, one.boot) == (node.name, UNKNOWN_BOOT) else one
                for one in file.former
            )
            if former != file.former:
                noted.append(replace(file, former=former))
    return tuple(noted)


def choose(
    shelves: Iterable[tuple[int, int]],
    files: Iterable[ExportFile],
    node: NodeIdentity,
    *,
    san: SanName,
    now_s: int,
    rest_s: int,
) -> tuple[Address, tuple[Former, ...]]:
    """Return an address for a new grant to `node`, never used ones first, then the longest rested; and the former
    holders that it must go on remembering.

    Raises: NoSpace saying when the next one frees, or that only a reboot or another shelf helps.
    """
    used = {file.address: file for file in files if file.address is not None}
    waits: list[int] = []
    rested: list[tuple[int, Address, tuple[Former, ...]]] = []
    total = 0
    for first, last in shelves:
        for shelf in range(first, last + 1):
            for slot in range(MAX_SLOT + 1):
                total += 1
                address = Address(shelf, slot)
                file = used.get(address)
                if file is None:
                    return address, ()
                if file.state is not ExportState.RESTING:
                    continue
                former = tuple(
                    one for one in file.former if one.node != node.name or one.boot in (UNKNOWN_BOOT, node.boot)
                )
                if any(one.node == node.name for one in former):
                    continue
                newest_s = max((one.revoked_s for one in file.former), default=0)
                # A clock that was set back must not shorten the rest: it begins when the clock has come so far again.
                wait_s = rest_s - max(0, now_s - newest_s)
                if wait_s > 0:
                    waits.append(wait_s)
                else:
                    rested.append((newest_s, address, former))
    if rested:
        _, address, former = min(rested, key=lambda entry: (entry[0], entry[1]))
        return address, former
    if not total:
        raise NoSpace(f"no shelf is configured for SAN {san!r} on this machine; add `shelves` to its configuration")
    if waits:
        raise NoSpace(
            f"all {total} addresses of SAN {san!r} are in use or resting; the next one frees in {min(waits)} s"
        )
    raise NoSpace(
        f"all {total} addresses of SAN {san!r} are in use or were held by node {node.name!r} since its last boot; "
        "configure a further shelf, or reboot the node"
    )
