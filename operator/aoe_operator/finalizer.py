"""The finalizer that keeps a resource while LVM may hold what it speaks of."""

import logging

from msgspec.structs import replace

from aoe_core.errors import NotFound
from aoe_core.resources.store import Resource, Store
from aoe_core.resources.volume import AoEVolume

log = logging.getLogger(__name__)

FINALIZER = "aoe-csi.dev/storage"


def never_taken_on(volume: AoEVolume) -> bool:
    """Say whether a volume was deleted before its node said that it takes it on; the finalizer comes before that word.

    A node touches nothing before it, and nobody writes over what has changed since he read it: who takes the finalizer
    off was first, and the node finds nothing to take on, or the node was, and it stays.
    """
    return volume.metadata.deletion_timestamp is not None and volume.status.node is None


def put(store: Store, resource: Resource) -> Resource:
    """Put it on, and return the resource that has it. Raises: NotFound, Busy, Unreachable."""
    if FINALIZER in resource.metadata.finalizers:
        return resource
    finalizers = (*resource.metadata.finalizers, FINALIZER)
    return store.update(replace(resource, metadata=replace(resource.metadata, finalizers=finalizers)))


def take_off(store: Store, resource: Resource) -> None:
    """Take it off, and let the resource go if it was deleted and nobody else holds it. Raises: Busy, Unreachable."""
    kept = tuple(one for one in resource.metadata.finalizers if one != FINALIZER)
    if kept == resource.metadata.finalizers:
        return
    log.info("let go", extra={"kind": type(resource).__name__, "resource": resource.metadata.name})
    try:
        store.update(replace(resource, metadata=replace(resource.metadata, finalizers=kept)))
    except NotFound:
        return
