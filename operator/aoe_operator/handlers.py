"""What kopf calls: for each kind and role one handler, which reconciles by name and says when to look again.

kopf keeps the watches, the queue of each object, the retries and the finalizers. Each role has a finalizer, a progress
and a memory of its own, and a storage node sees what is placed on it alone: kopf takes its finalizer off any object it
sees and no handler wants, and all storage nodes share theirs.
"""

import asyncio
import dataclasses
import functools
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar, cast

import kopf
import msgspec

from aoe_core.errors import AoECsiError, Invalid
from aoe_core.resources.fields import GROUP, VERSION
from aoe_core.resources.guest_disk import GRANT_FINALIZER, AoEGuestDisk, host_finalizer
from aoe_core.resources.snapshot import AoESnapshot
from aoe_core.resources.volume import AoEVolume
from aoe_operator import listing, metrics
from aoe_operator.finalizer import FINALIZER
from aoe_operator.placing import ClusterRole
from aoe_operator.storage import StorageRole

Reconcile = Callable[[str], float | None]
ReconcileWithin = Callable[[str, str], float | None]
"""The same, of what has a namespace."""
AskedFor = Callable[[Mapping[str, Any]], object]
"""The fields of a status whose change calls a handler, of an object as it came."""
_AGAIN_S = 1.0
_LONGEST_WAIT_S = 60.0
"""Ours never wait longer; what was written down for later was so by a clock that has been set back since."""
_REMEMBERED = 50_000
"""Objects of which a role knows what it has handled; some 300 bytes each."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Handlers:
    """What kopf is told of one role."""

    role: str
    finalizer: str
    registry: kopf.OperatorRegistry
    selectors: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Kind → which of its resources are seen; all of a kind that is not named."""
    asked_for: Mapping[str, AskedFor] = dataclasses.field(default_factory=dict)
    """Kind → what of its status calls the handlers, besides what is wanted; nothing of a kind that is not named."""


Listed = TypeVar("Listed", AoEVolume, AoESnapshot)
_STORAGE = "storage"
# Made before there are threads: two that make it at once would crash in msgspec.
_VOLUMES = msgspec.json.Decoder(AoEVolume)
_SNAPSHOTS = msgspec.json.Decoder(AoESnapshot)


def start_logs(*, as_json: bool, debug: bool) -> None:
    """Send everybody's log lines to stderr, with the object each is about."""
    kopf.configure(debug=debug, log_format=kopf.LogFormat.JSON if as_json else kopf.LogFormat.FULL, log_prefix=True)
    if not debug:
        # A line for each request otherwise, heartbeats and probes among them.
        for name in ("httpx2", "aiohttp.access"):
            logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger("kopf.objects").addFilter(_is_news)


def run(handlers: Handlers, *, stop: threading.Event, liveness: str | None) -> None:
    """Call handlers until `stop` is set. `liveness`: where to answer that kopf lives, like http://0.0.0.0:8080/healthz.

    In a thread of its own: in the main thread kopf would put its own signal handlers in place of the caller's.
    """
    failures: list[BaseException] = []

    def work() -> None:
        try:
            asyncio.run(operator(handlers, stop=stop, liveness=liveness))
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits.
            failures.append(error)

    thread = threading.Thread(target=work, name="kopf")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


async def operator(handlers: Handlers, *, stop: threading.Event, liveness: str | None) -> None:
    """The same, in a loop that runs already."""
    await kopf.operator(
        registry=handlers.registry,
        settings=settings_for(handlers),
        # Two copies harm each other no more than one that is retried; peering would need resources of kopf's own.
        standalone=True,
        clusterwide=True,
        stop_flag=stop,
        liveness_endpoint=liveness,
    )


def _essence(asked_for: Mapping[str, AskedFor], body: kopf.Body) -> kopf.BodyEssence:
    """Return what calls a handler when it changes: the spec, annotations by which a person says something, and what a
    role asks for of the status."""
    metadata = body.metadata
    said = {key: value for key, value in metadata.annotations.items() if key.startswith(f"{GROUP}/")}
    essence: dict[str, Any] = {
        "metadata": {"annotations": {**said, f"{GROUP}/generation": str(metadata["generation"])}}
    }
    if (of_status := asked_for.get(str(body["kind"]))) is not None:
        essence["status"] = {"askedFor": of_status(body)}
    return cast("kopf.BodyEssence", essence)


class _Memory:
    """Of each object one essence, for as long as this process lives; what was noted longest ago is forgotten."""

    def __init__(self) -> None:
        self._noted: OrderedDict[str, kopf.BodyEssence] = OrderedDict()

    def of(self, body: kopf.Body) -> kopf.BodyEssence | None:
        """Return what was noted last of an object, None before the first time."""
        return self._noted.get(str(body.metadata.uid))

    def note(self, body: kopf.Body, essence: kopf.BodyEssence) -> None:
        """Note it; what is forgotten for it is mostly gone, and the rest is handled once more at its next event."""
        self._noted[str(body.metadata.uid)] = essence
        self._noted.move_to_end(str(body.metadata.uid))
        if len(self._noted) > _REMEMBERED:
            self._noted.popitem(last=False)


class _Progress(kopf.AnnotationsProgressStorage):
    """Tells of what is to be tried again, in an annotation whose change calls kopf back. What is done needs no word.

    kopf waits until the time that was written down, whatever happens meanwhile, by a clock that may have been hours
    ahead then. Here it waits while the object asks for the same, in the process that wrote it, and never long.
    """

    def __init__(self, *, prefix: str, asked_for: Mapping[str, AskedFor]) -> None:
        super().__init__(prefix=prefix, v1=False)
        self._asked_for = asked_for
        self._postponed = _Memory()

    def fetch(self, *, key: kopf.HandlerId, body: kopf.Body) -> kopf.ProgressRecord | None:
        """Return how far a handler is."""
        record = super().fetch(key=key, body=body)
        if record is not None and (record.get("success") or record.get("failure")):
            return None  # Nobody here writes such a word: somebody would have us leave the work undone.
        if record is None or not record.get("delayed"):
            return record
        ahead_s = datetime.fromisoformat(str(record["delayed"])).timestamp() - time.time()
        if ahead_s < _LONGEST_WAIT_S and self._postponed.of(body) == _essence(self._asked_for, body):
            return record
        return cast("kopf.ProgressRecord", {**record, "delayed": None})

    def store(self, *, key: kopf.HandlerId, record: kopf.ProgressRecord, body: kopf.Body, patch: kopf.Patch) -> None:
        """Write down how far a handler is. One role has one handler for each kind: once done, nothing is left to do."""
        if not record["success"]:
            self._postponed.note(body, _essence(self._asked_for, body))
            super().store(key=key, record=record, body=body, patch=patch)


class _Handled(kopf.DiffBaseStorage):
    """What was handled of each object, for as long as this process lives.

    The next one looks at every object anyway. Kept in an annotation, as kopf does by default, each object costs a write
    more for each role, and all who watch it one more event. A spec that is again what it was is a new one: what
    happened in between may still have to be answered.
    """

    def __init__(self, asked_for: Mapping[str, AskedFor]) -> None:
        super().__init__()
        self._asked_for = asked_for
        self._handled = _Memory()

    def build(
        self,
        *,
        body: kopf.Body,
        extra_fields: Iterable[kopf.FieldSpec] | None = None,  # noqa: ARG002 - no handler asks for fields.
    ) -> kopf.BodyEssence:
        """Return what calls a handler when it changes."""
        return _essence(self._asked_for, body)

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """Return what was handled last, None before the first time."""
        return self._handled.of(body)

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:  # noqa: ARG002
        """Remember what was handled."""
        self._handled.note(body, essence)


def _progress_prefix(role: str) -> str:
    """Of the annotations in which a role writes down how far it is."""
    return f"{role}.{GROUP}"


def settings_for(handlers: Handlers) -> kopf.OperatorSettings:
    """Return kopf's settings for one role."""
    settings = kopf.OperatorSettings()
    settings.persistence.finalizer = handlers.finalizer
    settings.persistence.progress_storage = _Progress(
        prefix=_progress_prefix(handlers.role), asked_for=handlers.asked_for
    )
    settings.persistence.diffbase_storage = _Handled(handlers.asked_for)
    # So many volumes at once; changes of one volume group take turns all the same. An exporter that the kernel holds
    # keeps a worker for minutes, and a bad disk may have a dozen of those.
    settings.execution.max_workers = 32
    # Events are our own (aoe_core.resources.events): of what the host says, not of each time kopf calls.
    settings.posting.enabled = False
    # The connection may sit idle for as long as nothing happens.
    settings.watching.server_timeout = 300
    for plural, selector in handlers.selectors.items():
        settings.watching.field_selectors[GROUP, plural] = selector
    return settings


_PLACED = ("aoevolumes", "aoesnapshots")
_GUEST_DISKS = "aoeguestdisks"
_FROM_BEGINNING_TO_END = (kopf.on.resume, kopf.on.create, kopf.on.update, kopf.on.delete)


def storage(role: StorageRole, node: str) -> Handlers:
    """Return the handlers of one storage node."""
    registry = _registry(
        {
            AoEVolume.__name__: functools.partial(_needs_nothing, "aoevolumes", _VOLUMES, role.is_as_told),
            AoESnapshot.__name__: functools.partial(_needs_nothing, "aoesnapshots", _SNAPSHOTS, role.is_taken_as_told),
        }
    )
    volumes = functools.partial(_call, "aoevolumes", role.reconcile_volume)
    snapshots = functools.partial(_call, "aoesnapshots", role.reconcile_snapshot)
    for plural, handler in zip(_PLACED, (volumes, snapshots), strict=True):
        for on in _FROM_BEGINNING_TO_END:
            on(GROUP, VERSION, plural, registry=registry, id="reconcile")(handler)
    return Handlers(
        role=_STORAGE,
        finalizer=FINALIZER,
        registry=registry,
        selectors=dict.fromkeys(_PLACED, f"spec.node={node}"),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GuestDiskRoles:
    """What the cluster role does for guests' disks."""

    grant: ReconcileWithin
    """For those of libvirt's domains."""
    plug: ReconcileWithin
    """For those of KubeVirt's machines."""


def cluster(role: ClusterRole, guest_disks: GuestDiskRoles | None = None) -> Handlers:
    """Return the handlers of the cluster role. `guest_disks`: where there are any."""
    registry = _registry()
    volumes = functools.partial(_call, "placement", role.place)
    nodes = functools.partial(_call, "aoenodes", role.decommission)
    for on in (kopf.on.resume, kopf.on.create, kopf.on.update):
        on(GROUP, VERSION, "aoevolumes", registry=registry, id="place", when=functools.partial(_is_open, role))(volumes)
        on(GROUP, VERSION, "aoenodes", registry=registry, id="decommission", when=_is_decommissioned)(nodes)
    if guest_disks is not None:
        grant = functools.partial(_call_within, "grants", guest_disks.grant)
        plug = functools.partial(_call_within, "plugs", guest_disks.plug)
        for on in _FROM_BEGINNING_TO_END:
            on(GROUP, VERSION, _GUEST_DISKS, registry=registry, id="grant", when=_is_of_libvirt)(grant)
            on(GROUP, VERSION, _GUEST_DISKS, registry=registry, id="plug", when=_is_of_kubevirt)(plug)
    return Handlers(
        role="cluster",
        finalizer=GRANT_FINALIZER,
        registry=registry,
        asked_for={AoEGuestDisk.__name__: _domain},
        # What a storage node has taken on is placed for good.
        selectors={"aoevolumes": "status.node="},
    )


def guests(reconcile: ReconcileWithin, host: str) -> Handlers:
    """Return the handlers of one host's guests' disks.

    All disks are seen: a guest may come from another host, and what was once here is held by a finalizer until it is
    not. Each host has its own, and its own progress, since two of them see to one disk while a guest moves.
    """
    registry = _registry()
    finalizer = host_finalizer(host)
    disks = functools.partial(_call_within, _GUEST_DISKS, reconcile)
    concerns = functools.partial(_concerns, host)
    for on in _FROM_BEGINNING_TO_END:
        on(GROUP, VERSION, _GUEST_DISKS, registry=registry, id="reconcile", when=concerns)(disks)
    return Handlers(
        role=f"{finalizer.rpartition('/')[2]}.guests",
        finalizer=finalizer,
        registry=registry,
        asked_for={AoEGuestDisk.__name__: functools.partial(_grant_of, host)},
    )


def _registry(needs_nothing: Mapping[str, listing.NeedsNothing] | None = None) -> kopf.OperatorRegistry:
    """`needs_nothing`: see `listing.connect`."""

    async def login(**known: Any) -> kopf.AiohttpSession | None:
        found = _credentials(**known)
        return None if found is None else listing.connect(found, needs_nothing or {})

    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(login)
    return registry


def _credentials(**known: Any) -> kopf.ConnectionInfo | None:
    """The cluster we run in, or the kubeconfig that KUBECONFIG names: as lightkube finds it.

    By the address that every pod is told, since a pod of the host's network asks the host's name server.
    """
    inside = kopf.login_with_service_account(**known)
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT")
    if inside is None or not host or not port:
        return inside or kopf.login_with_kubeconfig(**known)
    host = f"[{host}]" if ":" in host else host
    return dataclasses.replace(inside, server=f"https://{host}:{port}")


def _needs_nothing(
    kind: str, decoder: msgspec.json.Decoder[Listed], is_as_told: Callable[[Listed], bool], resource: msgspec.Raw
) -> bool:
    begin = time.monotonic()
    written_down = f"{_progress_prefix(_STORAGE)}/"
    try:
        told = decoder.decode(resource)
        # What is to be tried again was written down there, see `_Progress`.
        if any(key.startswith(written_down) for key in told.metadata.annotations) or not is_as_told(told):
            return False
    except (msgspec.ValidationError, Invalid):
        return False
    metrics.RECONCILED.labels(kind, "done").observe(time.monotonic() - begin)
    return True


def _call(kind: str, reconcile: Reconcile, *, name: str, **_: Any) -> None:
    begin = time.monotonic()
    result = "bug"
    try:
        again_s = reconcile(name)
        result = "done" if again_s is None else "again"
    except AoECsiError as error:
        result = type(error).__name__
        raise kopf.TemporaryError(str(error), delay=_AGAIN_S) from error
    finally:
        metrics.RECONCILED.labels(kind, result).observe(time.monotonic() - begin)
    if again_s is not None:
        raise kopf.TemporaryError("not as wanted yet; see the conditions of its status", delay=again_s)


def _call_within(kind: str, reconcile: ReconcileWithin, *, namespace: str, name: str, **_: Any) -> None:
    _call(kind, functools.partial(reconcile, namespace), name=name)


def _concerns(host: str, *, spec: Mapping[str, Any], meta: Mapping[str, Any], **_: Any) -> bool:
    """Whether a guest's disk is, or may be, a host's matter. As `wanted_hosts` says of one that has been read."""
    guest = spec.get("libvirt") or {}
    return host in (guest.get("host"), guest.get("migrateTo")) or host_finalizer(host) in (meta.get("finalizers") or ())


def _is_of_libvirt(*, spec: Mapping[str, Any], **_: Any) -> bool:
    return "libvirt" in spec


def _is_of_kubevirt(*, spec: Mapping[str, Any], **_: Any) -> bool:
    return "kubevirt" in spec


def _domain(disk: Mapping[str, Any]) -> object:
    """What calls the cluster role: its host has found the domain."""
    return (disk.get("status") or {}).get("domainUuid")


def _grant_of(host: str, disk: Mapping[str, Any]) -> object:
    """What calls a host: the cluster role has found the volume, or has granted this host."""
    status = disk.get("status") or {}
    own = [one.get("grant") for one in status.get("hosts") or () if one["host"] == host]
    return {"volume": status.get("volume"), "grants": own}


def _is_open(role: ClusterRole, *, spec: Mapping[str, Any], status: Mapping[str, Any], **_: Any) -> bool:
    return not status.get("node") and not (spec.get("node") and role.knows_live(spec["node"]))


def _is_decommissioned(*, spec: Mapping[str, Any], **_: Any) -> bool:
    return bool(spec.get("decommissioned"))


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of kopf's says more than that a handler will be called again, which is how ours wait."""
    return "failed temporarily" not in record.msg
