"""Which real objects a process is made of, according to its configuration. Nothing else constructs them.

Imports of the host's code are inside the functions: a node without pools never loads the engine.
"""
# ruff: noqa: PLC0415 - see above.

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from aoe_core.errors import Invalid
from aoe_core.host.process_lock import ProcessLock, engine_lock
from aoe_core.settings import Settings
from aoe_csi import metrics
from aoe_csi.controller import Controller
from aoe_csi.identity import Identity
from aoe_csi.node import Node
from aoe_csi.server import Services
from aoe_csi.status import HostReport, PoolRow, export_rows, grant_rows, orphan_rows, staged_rows, volume_rows

if TYPE_CHECKING:
    from aoe_core.attach.attacher import Attacher
    from aoe_csi.cluster_node import ClusterNode


class Background(Protocol):
    """Work that goes on beside the calls while a server serves."""

    def start_background(self) -> None:
        """Begin; returns at once."""

    def stop_background(self) -> None:
        """End what can be ended; returns soon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """What a server serves, and what runs beside it."""

    services: Services
    background: tuple[Background, ...]
    alone: ProcessLock | None = None
    """Held while it serves: no second process may do the same on this host."""
    end: threading.Event = field(default_factory=threading.Event)
    """Set by whatever runs beside the calls when the process is to end, for whoever runs it to start it anew."""


def compose_standalone(settings: Settings) -> Composition:
    """Return everything this machine is for: a controller where it has pools, a node where it attaches.

    Raises: Invalid when it is for nothing.
    """
    if not settings.pool and not settings.compute:
        raise Invalid("the configuration has neither a pool nor `compute`, so there is nothing to serve; add one")
    controller = None
    node = None
    alone = None
    background: list[Background] = []
    if settings.pool:
        from aoe_core.attach.records import open_staged_check
        from aoe_core.volumes.engine import open_engine

        state_directory = Path(settings.state_directory)
        engine = open_engine(settings, is_staged=open_staged_check(state_directory))
        controller = Controller(engine)
        background.append(engine)
        alone = engine_lock(state_directory)
    if settings.compute:
        attacher = _open_attacher(settings)
        node = Node(attacher)
        background.append(attacher)
    return Composition(
        services=Services(identity=Identity(settings.node), controller=controller, node=node),
        background=tuple(background),
        alone=alone,
    )


def compose_controller(kubeconfig: Path | None, sidecar_timeout_s: float) -> Composition:
    """Return the controller service of a cluster, which asks its API server alone.

    Args: `sidecar_timeout_s`: how long its callers wait. They are answered well before, so that our sentence reaches
    the claim and not "deadline exceeded": on a busy machine the last look and the answer take seconds.
    Raises: Invalid when there is no cluster to be found.
    """
    from aoe_core.resources.kubernetes import KubernetesStore
    from aoe_core.resources.provisioner import ClusterProvisioner
    from aoe_core.resources.step_back import StepBack

    store = KubernetesStore(kubeconfig, holder="controller")
    provisioner = ClusterProvisioner(store, patience_s=sidecar_timeout_s * 5 / 6)
    end = threading.Event()
    return Composition(
        services=Services(identity=Identity(), controller=Controller(provisioner)),
        background=(StepBack(store.revision, end),),
        end=end,
    )


def compose_node(settings: Settings) -> Composition:
    """Return the node service alone. Raises: Invalid when this machine is not to attach volumes."""
    if not settings.compute:
        raise Invalid("the configuration says `compute = false`, so there is no node to serve; set it to true")
    attacher = _open_attacher(settings)
    return Composition(services=Services(identity=Identity(), node=Node(attacher)), background=(attacher,))


def compose_cluster_node(machine: "ClusterNode") -> Composition:
    """Return the node service of a cluster's compute node."""
    attacher = _open_attacher(machine.settings, enter_host=machine.enter_host)
    # The driver takes an empty list of interfaces for all of them: on no SAN it is not even loaded.
    background = (attacher,) if machine.settings.san else ()
    return Composition(
        services=Services(identity=Identity(), node=Node(attacher, machine.find_lack)), background=background
    )


def _open_attacher(settings: Settings, *, enter_host: bool = False) -> "Attacher":
    """Return what attaches here; what it has staged is counted whenever Prometheus asks."""
    from aoe_core.attach.attacher import open_attacher

    attacher = open_attacher(settings, enter_host=enter_host)
    metrics.show_staged(attacher.records)
    return attacher


def report_host(settings: Settings) -> HostReport:
    """Return what this machine has and holds, as its engine and its stage records say."""
    report = HostReport(node=settings.node)
    if settings.pool:
        from aoe_core.attach.records import open_staged_check
        from aoe_core.host.exports import ExportState
        from aoe_core.volumes.engine import open_engine

        is_staged = open_staged_check(Path(settings.state_directory))
        engine = open_engine(settings, is_staged=is_staged, waits_for_others=False)
        inspection = engine.inspect()
        report = replace(
            report,
            pools=tuple(
                PoolRow(pool=pool, available_bytes=one.available_bytes, maximum_volume_bytes=one.maximum_volume_bytes)
                for pool, one in inspection.capacities.items()
            ),
            volumes=volume_rows(inspection.volumes),
            exports=export_rows(inspection),
            grants=grant_rows(file.grant for file in inspection.exports if file.state is not ExportState.RESTING),
            orphans=orphan_rows(inspection.orphans),
        )
    if settings.compute:
        from aoe_core.attach.attacher import open_attacher

        report = replace(report, staged=staged_rows(open_attacher(settings).records()))
    return report
