"""The finalizer that keeps a resource while LVM may hold what it speaks of."""

import logging

from msgspec.structs import replace

from aoe_core.errors import NotFound
from aoe_core.resources.store import Resource, Store

log = logging.getLogger(__name__)

FINALIZER = "aoe-csi.dev/storage"


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
