"""Prometheus metrics of the operator's roles; docs/metrics.md lists them, and the chart's alerts ask for them."""

import functools
import threading
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

import prometheus_client
from prometheus_client import Gauge, Histogram

from aoe_core.errors import Invalid
from aoe_core.host.exports import ExportState
from aoe_core.model import VolumeState
from aoe_core.resources import conditions
from aoe_core.resources.fields import Condition, parse_quantity
from aoe_core.resources.leases import Liveness
from aoe_core.resources.node import AoENodeStatus
from aoe_core.volumes.inspection import Inspection

RECONCILED = Histogram(
    "aoe_csi_reconcile_seconds",
    "Looks at one resource: kind, and what came of it (done, again, or the error's name), with how long they took.",
    ("kind", "result"),
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
_LIVE = Gauge("aoe_csi_storage_node_live", "Whether a storage node that has a Lease renews it.", ("node",))
_UNREGISTERED = Gauge("aoe_csi_node_unregistered", "Compute nodes whose node server has not registered.", ("node",))
REFUSALS = Gauge(
    "aoe_csi_refusals",
    "Volumes and snapshots of this storage node with a condition that is False, by kind, condition and reason.",
    ("kind", "type", "reason"),
)

# Of a storage node alone: where they are not set the other roles would tell of a node that is not ready.
HEARTBEAT = Gauge(
    "aoe_csi_heartbeat_timestamp_seconds", "When this storage node last renewed its Lease.", registry=None
)
_READY = Gauge("aoe_csi_storage_ready", "Whether volumes can be placed here.", registry=None)
_VOLUMES = Gauge("aoe_csi_volumes", "Volumes on this storage node.", registry=None)
_EXPORTS = Gauge("aoe_csi_exports", "Exports that serve.", registry=None)
_GRANTS = Gauge("aoe_csi_grants", "Grants in force, exported or on this machine.", registry=None)
_WIPES = Gauge("aoe_csi_wipes", "Deleted volumes whose content is still being wiped.", registry=None)
_FREE = Gauge("aoe_csi_pool_available_bytes", "What a pool can still give out.", ("pool",))
_LARGEST = Gauge("aoe_csi_pool_largest_volume_bytes", "The largest volume that a pool takes.", ("pool",))
_ORPHANS = Gauge("aoe_csi_orphans", "What nothing wants, and nobody removes unasked.", ("kind",))
_FINDINGS = Gauge("aoe_csi_findings", "What preflight found amiss on this storage node.", ("severity",))
_CARD_UP = Gauge("aoe_csi_san_up", "Whether the card on a SAN is up.", ("san",))


@functools.cache
def tell_of_storage_node() -> None:
    """Have what is counted once on a storage node among what Prometheus is told from now on."""
    for gauge in (HEARTBEAT, _READY, _VOLUMES, _EXPORTS, _GRANTS, _WIPES):
        prometheus_client.REGISTRY.register(gauge)


class Refusals:
    """Counts the conditions that are False, of one process's volumes and snapshots."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._said: dict[tuple[str, str], frozenset[tuple[str, str]]] = {}
        """(kind, name) → what is refused and why."""

    def show(self, kind: str, name: str, said: Iterable[Condition] = ()) -> None:
        """Count one resource as it is now; without conditions, as one that is gone."""
        refused = frozenset((one.type, one.reason) for one in said if one.status == "False")
        with self._guard:
            before = self._said.pop((kind, name), frozenset())
            if refused:
                self._said[kind, name] = refused
            for type_, reason in before - refused:
                REFUSALS.labels(kind, type_, reason).dec()
            for type_, reason in refused - before:
                REFUSALS.labels(kind, type_, reason).inc()


def serve(address: str) -> None:
    """Answer Prometheus at HOST:PORT, in a thread of its own. Raises: Invalid when it cannot."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise Invalid(f"metrics address {address!r} is not HOST:PORT; write for example 127.0.0.1:19810")
    try:
        prometheus_client.start_http_server(int(port), host.strip("[]") or "0.0.0.0")
    except (OSError, OverflowError) as error:
        raise Invalid(f"metrics address {address} cannot be served ({error}); choose a free port") from error


def show_liveness(seen: Liveness) -> None:
    """Set which storage nodes renew their Leases."""
    _LIVE.clear()
    for node in seen.live | seen.dead:
        _LIVE.labels(node).set(node in seen.live)


def show_unregistered(nodes: AbstractSet[str]) -> None:
    """Set which compute nodes have a node server that has not registered."""
    _UNREGISTERED.clear()
    for node in nodes:
        _UNREGISTERED.labels(node).set(1)


def show_inspection(inspection: Inspection) -> None:
    """Set what the host holds and its status does not count."""
    _GRANTS.set(sum(file.state is not ExportState.RESTING for file in inspection.exports))
    _WIPES.set(sum(volume.state is VolumeState.DELETING for volume in inspection.volumes))


def show_node(status: AoENodeStatus) -> None:
    """Set what a storage node's status says."""
    ready = conditions.find(status.conditions, "Ready")
    _READY.set(ready is not None and ready.status == "True")
    for pool in status.pools:
        _FREE.labels(pool.name).set(parse_quantity(pool.available))
        _LARGEST.labels(pool.name).set(parse_quantity(pool.largest_volume))
    _VOLUMES.set(status.volumes)
    _EXPORTS.set(status.exports)
    _ORPHANS.clear()
    for orphan in status.orphans:
        _ORPHANS.labels(orphan.kind).inc()
    for severity in ("error", "warning"):
        _FINDINGS.labels(severity).set(sum(one.severity == severity for one in status.findings))
    for san in status.sans:
        _CARD_UP.labels(san.name).set(san.up)
