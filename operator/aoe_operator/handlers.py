"""What kopf calls: for each kind and role one handler, which reconciles by name and says when to look again.

kopf keeps the watches, the queue of each object, the retries and the finalizers, and tells of errors as events of the
object. Each role has a finalizer, a progress and a memory of its own, so that two roles on one object do not meet.
"""

import asyncio
import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any

import kopf

from aoe_core.errors import AoECsiError
from aoe_core.resources.fields import GROUP, VERSION
from aoe_operator.placing import ClusterRole
from aoe_operator.storage import StorageRole

Reconcile = Callable[[str], float | None]
_AGAIN_S = 1.0


def start_logs(*, as_json: bool, debug: bool) -> None:
    """Send everybody's log lines to stderr, with the object each is about."""
    kopf.configure(debug=debug, log_format=kopf.LogFormat.JSON if as_json else kopf.LogFormat.FULL, log_prefix=True)


def run(
    role: str, finalizer: str, registry: kopf.OperatorRegistry, *, stop: threading.Event, liveness: str | None
) -> None:
    """Call handlers until `stop` is set. `liveness`: where to answer that kopf lives, like http://0.0.0.0:8080/healthz."""
    asyncio.run(operator(role, finalizer, registry, stop=stop, liveness=liveness))


async def operator(
    role: str, finalizer: str, registry: kopf.OperatorRegistry, *, stop: threading.Event, liveness: str | None
) -> None:
    """The same, in a loop that runs already."""
    await kopf.operator(
        registry=registry,
        settings=settings_for(role, finalizer),
        # Two copies harm each other no more than one that is retried; peering would need resources of kopf's own.
        standalone=True,
        clusterwide=True,
        stop_flag=stop,
        liveness_endpoint=liveness,
    )


def settings_for(role: str, finalizer: str) -> kopf.OperatorSettings:
    """Return kopf's settings for one role."""
    settings = kopf.OperatorSettings()
    settings.persistence.finalizer = finalizer
    prefix = f"{role}.{GROUP}"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=prefix, v1=False)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=prefix, v1=False)
    # Each look at a host costs commands there; more at once would only wait for each other.
    settings.execution.max_workers = 8
    settings.posting.reporting_component = f"aoe-csi-{role}"
    # The connection may sit idle for as long as nothing happens.
    settings.watching.server_timeout = 300
    return settings


def storage(role: StorageRole, node: str) -> kopf.OperatorRegistry:
    """Return the handlers of one storage node."""
    registry = _registry()
    _register(registry, "aoevolumes", role.reconcile_volume, when=functools.partial(_is_on, node))
    _register(registry, "aoesnapshots", role.reconcile_snapshot, when=functools.partial(_is_on, node))
    return registry


def cluster(role: ClusterRole) -> kopf.OperatorRegistry:
    """Return the handlers of the cluster role."""
    registry = _registry()
    volumes = functools.partial(_call, role.place)
    for on in (kopf.on.resume, kopf.on.create, kopf.on.update):
        on(GROUP, VERSION, "aoevolumes", registry=registry, id="place", when=_is_unplaced)(volumes)
    return registry


def _registry() -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(_login)
    return registry


def _login(**known: Any) -> kopf.ConnectionInfo | None:
    """The cluster we run in, or the kubeconfig that KUBECONFIG names: as lightkube finds it."""
    return kopf.login_with_service_account(**known) or kopf.login_with_kubeconfig(**known)


def _register(registry: kopf.OperatorRegistry, plural: str, reconcile: Reconcile, *, when: Any) -> None:
    handler = functools.partial(_call, reconcile)
    for on in (kopf.on.resume, kopf.on.create, kopf.on.update, kopf.on.delete):
        on(GROUP, VERSION, plural, registry=registry, id="reconcile", when=when)(handler)


def _call(reconcile: Reconcile, *, name: str, **_: Any) -> None:
    try:
        again_s = reconcile(name)
    except AoECsiError as error:
        raise kopf.TemporaryError(str(error), delay=_AGAIN_S) from error
    if again_s is not None:
        raise kopf.TemporaryError("not as wanted yet; see the conditions of its status", delay=again_s)


def _is_on(node: str, *, spec: Mapping[str, Any], **_: Any) -> bool:
    return bool(spec.get("node") == node)


def _is_unplaced(*, spec: Mapping[str, Any], status: Mapping[str, Any], **_: Any) -> bool:
    return not spec.get("node") or not status.get("node")
