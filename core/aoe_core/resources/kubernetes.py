"""The Store on a real API server, through lightkube: the only module that speaks to Kubernetes for us.

Whoever waits for a resource reads it once, and goes on with what the watch tells of it, unless that is older; he reads
it again when the watch broke, or has been silent for long.
"""

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
import lightkube
import msgspec
from lightkube.config.client_adapter import ConnectionParams
from lightkube.core.exceptions import ApiError, ConfigError
from lightkube.core.generic_client import GenericSyncClient
from lightkube.generic_resource import Generic, GenericGlobalResource, create_global_resource
from lightkube.models.coordination_v1 import LeaseSpec
from lightkube.models.core_v1 import EventSource, ObjectReference
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.operators import exists
from lightkube.resources.apiextensions_v1 import CustomResourceDefinition
from lightkube.resources.coordination_v1 import Lease
from lightkube.resources.core_v1 import Event as CoreEvent
from lightkube.resources.core_v1 import Pod
from lightkube.types import PatchType

from aoe_core.errors import AoECsiError, Busy, Conflict, Invalid, NotFound, Unreachable
from aoe_core.resources import first_use
from aoe_core.resources.events import Event, Subject
from aoe_core.resources.fields import GROUP, VERSION, Fields
from aoe_core.resources.leases import LIVE_S
from aoe_core.resources.node import AoENode
from aoe_core.resources.shelf import AoEShelf
from aoe_core.resources.snapshot import AoESnapshot
from aoe_core.resources.store import Answer, Resource
from aoe_core.resources.volume import AoEVolume

log = logging.getLogger(__name__)

_PLURALS: dict[type[Fields], str] = {
    AoEVolume: "aoevolumes",
    AoESnapshot: "aoesnapshots",
    AoENode: "aoenodes",
    AoEShelf: "aoeshelves",
}
_WHOLE = tuple(msgspec.json.Decoder(kind) for kind in _PLURALS)
"""Never used: made before there are threads, see `first_use`."""
_GENERIC: dict[type[Fields], type[GenericGlobalResource]] = {
    kind: create_global_resource(GROUP, VERSION, kind.__name__, plural) for kind, plural in _PLURALS.items()
}
"""Lightkube's class of each kind, made at import: of two threads that make one at once it refuses the second."""
_CSI_NODE = create_global_resource("storage.k8s.io", "v1", "CSINode", "csinodes")
"""As it comes: lightkube's own class refuses the null that stands for no drivers until the first one registers."""
first_use.look_at(*_GENERIC.values(), _CSI_NODE, CoreEvent, CustomResourceDefinition, Lease, Pod)
_LEASE_PREFIX = "aoe-csi-storage-"
_LEASE_LABEL = f"{GROUP}/storage-node"
_NODE_PODS: dict[str, Any] = {"app.kubernetes.io/name": "aoe-csi", "app.kubernetes.io/component": "node"}
_LOOK_ANYWAY_S = 20.0
"""How long a waiter trusts that the watch would have told it; a hundred wait at once, and each look costs a request."""
_REQUEST_S = 20.0
_KEPT_S = 30.0
"""An API server ends idle connections after 90 s (k8s.io/apiserver, secure serving); who is in between may sooner."""
_CONNECTIONS = 8
"""Few: opening one costs a handshake, and each request looks at all that are open. With forty a storage role took a
tenth more processor time for a claim."""
_WATCH_S = 120
"""So long a watch lasts; the server ends it then, and it is taken up again."""
_AGAIN_S = 1.0
_EVENTS_NAMESPACE = "default"
_LONGEST_MESSAGE = 1024
"""Of an event: the API server takes no more."""


class KubernetesStore:
    """The API server that a kubeconfig names, or the one of the cluster this process runs in."""

    def __init__(self, kubeconfig: Path | None = None, *, holder: str = "aoe-csi") -> None:
        """Raises: Invalid when there is neither."""
        self._connect = functools.partial(connected, kubeconfig, field_manager=holder)
        self._client = self._connect()
        self._guard = threading.Lock()
        self._changes: dict[type[Fields], _Changes] = {}

    def close(self) -> None:
        """Let go of the connections; no call may be under way. A watch keeps its own, and ends with its next event: a
        socket closed under the thread that reads it may be another one's by the time it is read."""
        for changes in self._changes.values():
            changes.stop()
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def get(self, kind: type[Resource], name: str) -> Resource:
        """Return a resource. Raises: NotFound, Unreachable."""
        with translated(kind, name):
            return _read(kind, self._client.get(_GENERIC[kind], name))

    def find(self, kind: type[Resource], name: str) -> Resource | None:
        """Return a resource, None when it is not there. Raises: Unreachable."""
        try:
            return self.get(kind, name)
        except NotFound:
            return None

    def list(self, kind: type[Resource]) -> tuple[Resource, ...]:
        """Return all resources of a kind, ordered by name. Raises: Unreachable."""
        with translated(kind, ""):
            found = [_read(kind, one) for one in self._client.list(_GENERIC[kind], chunk_size=500)]
        return tuple(sorted(found, key=lambda one: one.metadata.name))

    def revision(self) -> int:
        """Return the API server's revision, which grows with every change of anything. Raises: Unreachable."""
        return revision_by(self._client, _GENERIC[AoENode])

    def create(self, resource: Resource) -> Resource:
        """Make a resource. Raises: Conflict, Invalid, Unreachable."""
        kind, name = type(resource), resource.metadata.name
        with translated(kind, name, taken=Conflict):
            return _read(kind, self._client.create(_write(resource)))

    def apply(self, kind: type[Resource], name: str, fields: Mapping[str, Any], *, holder: str) -> Resource:
        """Set what one holder answers for. Raises: NotFound, Invalid, Unreachable."""
        generic = _GENERIC[kind]
        uid = self.get(kind, name).metadata.uid
        # With its uid, since an apply would else make what is not there.
        wanted = _object(generic, {**_head(kind), "metadata": {"name": name, "uid": uid}, **fields})
        with translated(kind, name):
            return _read(
                kind,
                # By force: what is applied is the holder's own, and the cluster role may have written it anew since.
                self._client.patch(generic, name, wanted, patch_type=PatchType.APPLY, field_manager=holder, force=True),
            )

    def update(self, resource: Resource) -> Resource:
        """Replace spec and metadata of what has not changed since. Raises: NotFound, Busy, Invalid, Unreachable."""
        kind, name = type(resource), resource.metadata.name
        with translated(kind, name):
            return _read(kind, self._client.replace(_write(resource), name))

    def update_status(self, resource: Resource) -> Resource:
        """Replace the status of what has not changed since. Raises: NotFound, Busy, Invalid, Unreachable."""
        kind, name = type(resource), resource.metadata.name
        status = _object(_GENERIC[kind].Status, dict(_write(resource)))
        with translated(kind, name):
            return _read(kind, self._client.replace(status, name))

    def delete(self, kind: type[Resource], name: str) -> None:
        """Ask for a resource's end. Raises: Unreachable."""
        with contextlib.suppress(NotFound), translated(kind, name):
            self._client.delete(_GENERIC[kind], name)

    def delete_as_seen(self, resource: Resource) -> None:
        """Ask for the end of what has not changed since. Raises: Busy, Unreachable."""
        kind, seen = type(resource), resource.metadata
        # Lightkube's own `delete` sends no options, so the request is made of what that is made of.
        client = self._client._client  # noqa: SLF001
        request = client.prepare_request("delete", res=_GENERIC[kind], name=seen.name)
        request.data = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": seen.uid, "resourceVersion": seen.resource_version},
        }
        with contextlib.suppress(NotFound), translated(kind, seen.name):
            client.handle_response("delete", client.send(client.build_adapter_request(request)), request)

    def is_definition_going(self, kind: type[Resource]) -> bool:
        """Say whether a kind's definition is being removed, or gone. Raises: Unreachable."""
        return is_definition_going(self._client, f"{_PLURALS[kind]}.{GROUP}")

    def await_(
        self,
        kind: type[Resource],
        name: str,
        answer: Callable[[Resource | None], Answer | None],
        *,
        timeout_s: float,
        first: Callable[[], Resource | None] | None = None,
    ) -> Answer | None:
        """Look now and at every change, until there is an answer. Raises: Unreachable, and what `first` and `answer`
        raise."""
        deadline = time.monotonic() + timeout_s
        with self._watching(kind).tell(name) as inbox:
            seen = first() if first else self.find(kind, name)
            while (answered := answer(seen)) is None:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return None
                told = inbox.wait(min(left_s, _LOOK_ANYWAY_S))
                seen = self.find(kind, name) if told is None or seen is None else _newer(seen, _read(kind, told))
        return answered

    def _watching(self, kind: type[Fields]) -> "_Changes":
        with self._guard:
            if kind not in self._changes:
                self._changes[kind] = _Changes(self._connect(), kind)
            return self._changes[kind]


class KubernetesLeases:
    """One Lease (coordination.k8s.io) for each storage node, in the namespace of the installation."""

    def __init__(self, kubeconfig: Path | None, namespace: str) -> None:
        """Raises: Invalid when no API server is known."""
        self._client = connected(kubeconfig, field_manager="aoe-csi-lease", namespace=namespace)

    def close(self) -> None:
        """Let go of the connections; no call may be under way."""
        self._client.close()

    def renew_lease(self, node: str) -> int:
        """Write that a node is alive. Returns: the API server's revision. Raises: Unreachable."""
        lease = Lease(
            metadata=ObjectMeta(name=f"{_LEASE_PREFIX}{node}", labels={_LEASE_LABEL: "true"}),
            spec=LeaseSpec(
                holderIdentity=node,
                leaseDurationSeconds=int(LIVE_S),
                renewTime=datetime.now(UTC),
            ),
        )
        with translated(Lease, node):
            return _revision_of(self._client.apply(lease, force=True))

    def leases(self) -> Mapping[str, int]:
        """Return node → resource version. Raises: Unreachable."""
        with translated(Lease, ""):
            found = list(self._client.list(Lease, labels={_LEASE_LABEL: exists()}))
        return {
            lease.metadata.name.removeprefix(_LEASE_PREFIX): _revision_of(lease)
            for lease in found
            if lease.metadata and lease.metadata.name
        }


def _is_ready(pod: Pod) -> bool:
    said = (pod.status.conditions if pod.status else None) or ()
    return any(one.type == "Ready" and one.status == "True" for one in said)


class KubernetesRegistrations:
    """CSINodes, where kubelet writes who has registered, and the pods of our node server."""

    def __init__(self, kubeconfig: Path | None, namespace: str) -> None:
        """Raises: Invalid when no API server is known."""
        self._client = connected(kubeconfig, field_manager="aoe-csi-registrations", namespace=namespace)

    def close(self) -> None:
        """Let go of the connections; no call may be under way."""
        self._client.close()

    def node_ids(self) -> Mapping[str, str]:
        """Return node → our driver's node id there. Raises: Unreachable."""
        with translated(_CSI_NODE, ""):
            return {
                node.metadata.name: driver["nodeID"]
                for node in self._client.list(_CSI_NODE, chunk_size=500)
                if node.metadata and node.metadata.name
                for driver in node["spec"]["drivers"] or ()
                if driver["name"] == GROUP
            }

    def node_pods(self) -> Mapping[str, int]:
        """Return node → since when its node server's pod is there, if that is not ready. Raises: Unreachable."""
        with translated(Pod, ""):
            return {
                pod.spec.nodeName: int(pod.metadata.creationTimestamp.timestamp())
                for pod in self._client.list(Pod, labels=_NODE_PODS, chunk_size=500)
                if pod.metadata and pod.metadata.creationTimestamp and pod.spec and pod.spec.nodeName
                if not _is_ready(pod)
            }


def _revision_of(lease: Lease) -> int:
    return _revision(lease.metadata.resourceVersion if lease.metadata else None)


def _revision(version: str | None) -> int:
    # Numbers that grow, as Kubernetes has promised since 1.35 and etcd has always kept.
    return int(version or 0)


class KubernetesEvents:
    """Events (core/v1) in the namespace `default`, where the API server wants those of objects without a namespace."""

    def __init__(self, kubeconfig: Path | None, component: str) -> None:
        """`component`: who says it, as `kubectl describe` shows. Raises: Invalid when no API server is known."""
        self._component = component
        self._client = connected(kubeconfig, field_manager=component, namespace=_EVENTS_NAMESPACE)

    def close(self) -> None:
        """Let go of the connections; no call may be under way."""
        self._client.close()

    def post(self, subject: Subject, event: Event) -> None:
        """Post an event; one that cannot be posted is logged."""
        kind, now = type(subject), datetime.now(UTC)
        # Named as client-go does it.
        name = f"{subject.metadata.name}.{time.time_ns():x}"
        posted = CoreEvent(
            metadata=ObjectMeta(name=name),
            involvedObject=ObjectReference(**_head(kind), name=subject.metadata.name, uid=subject.metadata.uid),
            type="Warning" if event.is_warning else "Normal",
            reason=event.reason,
            message=event.message[:_LONGEST_MESSAGE],
            source=EventSource(component=self._component),
            reportingComponent=self._component,
            firstTimestamp=now,
            lastTimestamp=now,
            count=1,
        )
        try:
            with translated(CoreEvent, name):
                self._client.create(posted)
        except AoECsiError as error:
            log.warning("event cannot be posted", extra={"event_reason": event.reason, "error": str(error)})


class _Inbox:
    """What the watch has told one waiter since it last looked here: the newest state of its resource."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._told: GenericGlobalResource | None = None
        self._is_news = False

    def put(self, told: GenericGlobalResource | None) -> None:
        """Tell the waiter. None: there may be something new that nobody has told of."""
        with self._changed:
            self._told, self._is_news = told, True
            self._changed.notify()

    def wait(self, timeout_s: float) -> GenericGlobalResource | None:
        """Return what was told last, None when it must be looked at; at the time limit that, too."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_news, timeout_s)
            told, self._told, self._is_news = self._told, None, False
            return told


class _Changes:
    """Tells waiters of a kind's changes, as a watch tells of them. A watch that breaks is taken up again."""

    def __init__(self, client: lightkube.Client, kind: type[Fields]) -> None:
        self._client = client
        self._kind = kind
        self._guard = threading.Lock()
        self._inboxes: dict[str, list[_Inbox]] = {}
        """Resource → those who wait for it; nothing is kept of one that nobody waits for."""
        self._stopped = threading.Event()
        threading.Thread(target=self._watch_for_ever, name=f"watch {kind.__name__}", daemon=True).start()

    def stop(self) -> None:
        """Watch no longer; the thread ends with its connection."""
        self._stopped.set()

    @contextlib.contextmanager
    def tell(self, name: str) -> Iterator[_Inbox]:
        """Give an inbox for the changes of one resource."""
        inbox = _Inbox()
        with self._guard:
            self._inboxes.setdefault(name, []).append(inbox)
        try:
            yield inbox
        finally:
            with self._guard:
                waiting = self._inboxes[name]
                waiting.remove(inbox)
                if not waiting:
                    del self._inboxes[name]

    def _waiting_for(self, name: str) -> tuple[_Inbox, ...]:
        with self._guard:
            return tuple(self._inboxes.get(name, ()))

    def _watch_for_ever(self) -> None:
        while not self._stopped.is_set():
            try:
                self._watch()
            except (ApiError, httpx2.HTTPError, OSError):
                pass
            except Exception:
                # Without this thread everybody would wait for his next look, and no log would say why.
                log.exception("a watch broke", extra={"kind": self._kind.__name__})
            with self._guard:
                everybody = [inbox for waiting in self._inboxes.values() for inbox in waiting]
            for inbox in everybody:
                inbox.put(None)
            self._stopped.wait(_AGAIN_S)
        self._client.close()

    def _watch(self) -> None:
        for event, resource in self._client.watch(_GENERIC[self._kind], server_timeout=_WATCH_S):
            if self._stopped.is_set():
                return
            for inbox in self._waiting_for(resource["metadata"]["name"]):
                # One that is gone may have been made anew: whoever waits for it looks.
                inbox.put(None if event == "DELETED" else resource)


@dataclass
class _Connections(ConnectionParams):
    """How the API server is reached: by connections that are kept for longer than httpx does by itself, which is 5 s.

    A Lease is renewed each 10 s, and a handshake for each took a third of an idle role's processor time.
    """

    limits: httpx2.Limits = field(
        default_factory=lambda: httpx2.Limits(
            max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS, keepalive_expiry=_KEPT_S
        )
    )


class _KeepingClient(lightkube.Client):
    """lightkube's client, which has no word for how long connections are kept."""

    def __init__(self, config: lightkube.KubeConfig | None, **words: Any) -> None:
        self._timeout = httpx2.Timeout(_REQUEST_S)
        self._client = GenericSyncClient(_Connections(timeout=self._timeout), config, **words)


def connected(kubeconfig: Path | None, **words: Any) -> lightkube.Client:
    """Return a client. Raises: Invalid when nothing says where the API server is."""
    try:
        config = lightkube.KubeConfig.from_file(str(kubeconfig)) if kubeconfig else None
        client = _KeepingClient(config, **words)
    except (ConfigError, OSError) as error:
        raise Invalid(
            f"no API server is known ({error}); run this in a cluster's pod, or name a kubeconfig with --kubeconfig"
        ) from error
    # A watch would wait for ever for a server that lost power and never said so.
    client._client._watch_timeout.read = _WATCH_S + _REQUEST_S  # noqa: SLF001 - lightkube offers no other way.
    return client


def _object(generic: type[Generic], content: Mapping[str, Any]) -> Any:
    """Return lightkube's form of an object: a dict, whatever its signature says."""
    return generic.from_dict(dict(content))


def _head(kind: type[Fields]) -> dict[str, str]:
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind.__name__}


def _read(kind: type[Resource], raw: GenericGlobalResource) -> Resource:
    try:
        return msgspec.convert(dict(raw), kind)
    except msgspec.ValidationError as error:
        name = raw["metadata"]["name"]
        raise Invalid(
            f"{kind.__name__} {name} cannot be read ({error}); was it made by another version of the definitions?"
        ) from error


def revision_by(client: lightkube.Client, kind: Any) -> int:
    """Return the API server's revision, by a list of some kind. Raises: Unreachable."""
    with translated(kind, ""):
        # The first page tells of it, however many there are.
        listed = client.list(kind, chunk_size=1)
        next(iter(listed), None)
    return int(listed.resourceVersion)


def is_definition_going(client: lightkube.Client, name: str) -> bool:
    """Say whether a definition is being removed, or gone. Raises: Unreachable."""
    try:
        with translated(CustomResourceDefinition, name):
            definition = client.get(CustomResourceDefinition, name)
    except NotFound:
        return True
    return definition.metadata is not None and definition.metadata.deletionTimestamp is not None


def _newer(one: Resource, other: Resource) -> Resource:
    """Return the one that was written last."""
    return max(one, other, key=lambda each: _revision(each.metadata.resource_version))


def _write(resource: Fields) -> GenericGlobalResource:
    kind = type(resource)
    written: GenericGlobalResource = _object(_GENERIC[kind], {**_head(kind), **msgspec.to_builtins(resource)})
    return written


@contextlib.contextmanager
def translated(kind: type[object], name: str, *, taken: type[AoECsiError] = Busy) -> Iterator[None]:
    """Turn what the API server says into the one error tree."""
    what = f"{kind.__name__} {name}".strip()
    try:
        yield
    except ApiError as error:
        code, message = error.status.code, error.status.message
        match code:
            case 404:
                raise NotFound(f"{what} does not exist") from error
            case 409:
                raise taken(f"{what}: {message}") from error
            case 400 | 422:
                raise Invalid(f"{what}: {message}") from error
            case _:
                raise Unreachable(f"{what}: the API server answered {code}: {message}") from error
    except msgspec.MsgspecError as error:
        raise Unreachable(f"{what}: the API server's answer cannot be read ({error})") from error
    except (httpx2.HTTPError, OSError) as error:
        raise Unreachable(f"{what}: the API server does not answer ({error}); is it up?") from error
