"""Shelves of a storage node: one on each SAN from the beginning, and a further one before addresses run short.

An address goes back to a node only after that has rebooted, so a node that attaches much uses up a shelf however many
others there are. Pure, but for the claim itself, which is the creation of an AoEShelf.
"""

from collections import Counter
from collections.abc import Iterable

from aoe_core.errors import Conflict, NoSpace
from aoe_core.host.exports import UNKNOWN_BOOT, ExportFile, ExportState
from aoe_core.model import MAX_SLOT, NodeName
from aoe_core.resources.fields import ObjectMeta
from aoe_core.resources.node import AoENode, SanSpec
from aoe_core.resources.shelf import AoEShelf, AoEShelfSpec, shelf_name
from aoe_core.resources.store import Store

FEW = 32
"""So few addresses left for some node, and another shelf is claimed."""


def ensure_claims(store: Store, node: AoENode, machine_id: str) -> tuple[AoEShelf, ...]:
    """Return the node's claims, after seeing to one on each SAN. Raises: NoSpace, Unreachable.

    What an earlier machine of its name has claimed is left alone. That machine knew which addresses rest, and this one
    does not: compute nodes may still hold devices of them, with writes for what was served there.
    """
    claims = [claim for claim in store.list(AoEShelf) if _is_claimed_by(claim, node, machine_id)]
    for san in node.spec.sans:
        if not any(claim.spec.san == san.name for claim in claims):
            claims.append(claim_shelf(store, node, san, machine_id))
    return tuple(claims)


def _is_claimed_by(claim: AoEShelf, node: AoENode, machine_id: str) -> bool:
    # Without a machine ID: a person's gift.
    return claim.spec.node == node.metadata.name and claim.spec.machine_id in ("", machine_id)


def claim_shelf(store: Store, node: AoENode, san: SanSpec, machine_id: str) -> AoEShelf:
    """Claim one more shelf of a SAN: the first of the ranges that nobody has. Raises: NoSpace, Unreachable."""
    # On any SAN: a compute node on two of them knows a device by its address alone.
    there = store.list(AoEShelf)
    taken = {claim.spec.shelf for claim in there}
    for shelf in (shelf for one in san.shelves for shelf in range(one.first, one.last + 1)):
        if shelf in taken or shelf == 4095:
            continue
        spec = AoEShelfSpec(san=san.name, shelf=shelf, node=node.metadata.name, machine_id=machine_id)
        try:
            return store.create(AoEShelf(metadata=ObjectMeta(name=shelf_name(san.name, shelf)), spec=spec))
        except Conflict:
            continue  # Somebody was faster.
    former = [
        claim.metadata.name
        for claim in there
        if claim.spec.node == node.metadata.name and not _is_claimed_by(claim, node, machine_id)
    ]
    remedy = "widen its ranges"
    if former:
        remedy += (
            f", or delete the AoEShelves of the machine that had its name before ({', '.join(former)}), once every"
            " compute node has rebooted"
        )
    raise NoSpace(f"every shelf that AoENode {node.metadata.name} may claim on SAN {san.name} is claimed; {remedy}")


def find_short(claims: Iterable[AoEShelf], files: Iterable[ExportFile], *, now_s: int, rest_s: int) -> tuple[str, ...]:
    """Return the SANs on which some node has few addresses left."""
    shelves = Counter(claim.spec.san for claim in claims)
    by_san: dict[str, list[ExportFile]] = {san: [] for san in shelves}
    for file in files:
        if file.address is not None and file.san in by_san:
            by_san[file.san].append(file)
    return tuple(
        san
        for san, count in shelves.items()
        if addresses_left(count * (MAX_SLOT + 1), by_san[san], now_s=now_s, rest_s=rest_s) < FEW
    )


def addresses_left(total: int, files: Iterable[ExportFile], *, now_s: int, rest_s: int) -> int:
    """Return how many of a SAN's addresses there are for the node that can be given fewest; see volumes.addresses."""
    files = tuple(files)
    boots = _newest_boots(files)
    rested = [
        file
        for file in files
        if file.state is ExportState.RESTING
        and now_s - max((one.revoked_s for one in file.former), default=0) >= rest_s
    ]
    barred = Counter(
        node
        for file in rested
        for node in {one.node for one in file.former if one.boot in (UNKNOWN_BOOT, boots.get(one.node))}
    )
    return total - len(files) + len(rested) - max(barred.values(), default=0)


def _newest_boots(files: Iterable[ExportFile]) -> dict[NodeName, str]:
    """Return node → the boot it was heard of in last."""
    heard: dict[NodeName, tuple[int, str]] = {}
    for file in files:
        told = [(file.node, file.granted_s, file.boot)]
        told += [(one.node, one.revoked_s, one.boot) for one in file.former if one.boot != UNKNOWN_BOOT]
        for node, at_s, boot in told:
            heard[node] = max(heard.get(node, (0, "")), (at_s, boot))
    return {node: boot for node, (_, boot) in heard.items()}
