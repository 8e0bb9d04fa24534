"""The `aoe-operator` command: one role of the operator, until SIGTERM.

Exit codes: 0 asked to end (or its node is not what it was told: start it anew), 2 refused before anything began.
"""
# ruff: noqa: PLC0415 - what only guests need is loaded for them alone.

import argparse
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aoe_core import preparation
from aoe_core.attach.records import open_staged_check
from aoe_core.errors import AoECsiError, Invalid
from aoe_core.host import memory
from aoe_core.host.files import DurableFiles
from aoe_core.host.process_lock import engine_lock
from aoe_core.host.runner import HostRunner
from aoe_core.resources.kubernetes import KubernetesEvents, KubernetesLeases, KubernetesRegistrations, KubernetesStore
from aoe_core.resources.leases import Liveness, LiveNodes
from aoe_core.resources.shelf import AoEShelf
from aoe_core.settings import Settings
from aoe_core.volumes.engine import open_engine
from aoe_operator import handlers, metrics
from aoe_operator.background import Repeated
from aoe_operator.claimant import claimant
from aoe_operator.placing import ClusterRole
from aoe_operator.registration import Registrations
from aoe_operator.seen import Seen
from aoe_operator.storage_process import StorageProcess, card_status, find_lacks, machine_id

OK, REFUSED = 0, 2
NAMESPACE = "aoe-csi"
STATE = Path("/var/lib/aoe-csi")
"""The same in the container as on its host."""
FORMER_S = 60.0
"""How long a former process of this role is waited for."""
GRANTED_S = 3.0
"""How long a worker waits for a storage node's answer to a guest's ticket before it comes back later: meanwhile it does
not place volumes."""
GROWN_EVERY_S = 30.0
"""How often volumes of guests are looked at that may have grown."""
PROFILES_EVERY_S = 60.0
"""How soon CDI is told of a new StorageClass."""


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    top = argparse.ArgumentParser(prog="aoe-operator", description="Makes true what AoE resources of a cluster say.")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--kubeconfig", type=Path, metavar="PATH", help="default: the cluster this process runs in")
    shared.add_argument("--namespace", default=NAMESPACE, help="where the Leases are; default: %(default)s")
    shared.add_argument("--liveness", metavar="URL", help="where to answer probes, like http://0.0.0.0:8080/healthz")
    shared.add_argument("--metrics", metavar="HOST:PORT", help="where to answer Prometheus at /metrics")
    shared.add_argument("--log-format", choices=("text", "json"), default="text")
    shared.add_argument("--debug", action="store_true")
    roles = top.add_subparsers(dest="role", required=True, metavar="ROLE")
    storage = roles.add_parser("storage", parents=[shared], help="this storage node's volumes, exports and snapshots")
    storage.add_argument("--node", required=True, metavar="NAME", help="this node's AoENode")
    storage.add_argument(
        "--enter-host", action="store_true", help="run commands in the namespaces of process 1: for a container"
    )
    storage.add_argument("--prepare-host", action="store_true", help="first do what `aoe-csi prepare-host` does")
    storage.set_defaults(act=_storage)
    cluster = roles.add_parser("cluster", parents=[shared], help="what is decided once for all: placement")
    cluster.add_argument(
        "--guest-access",
        type=Path,
        metavar="PATH",
        help="which namespaces may attach to which guests; left out: AoEGuestDisks are not seen to",
    )
    cluster.add_argument(
        "--virtual-machines", action="store_true", help="see to AoEGuestDisks of KubeVirt's machines, too"
    )
    cluster.add_argument(
        "--storage-profiles", action="store_true", help="tell KubeVirt's CDI, if it is there, of our StorageClasses"
    )
    cluster.set_defaults(act=_cluster)
    guests = roles.add_parser("guests", parents=[shared], help="disks of this host's libvirt guests")
    guests.add_argument("--node", required=True, metavar="NAME", help="this host's name in the cluster")
    guests.add_argument(
        "--san-rules", type=Path, required=True, metavar="PATH", help="the node server's rules for all nodes"
    )
    guests.add_argument(
        "--enter-host", action="store_true", help="run commands in the namespaces of process 1: for a container"
    )
    guests.set_defaults(act=_guests)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parser().parse_args(arguments)
    memory.forgo_huge_pages()
    handlers.start_logs(as_json=options.log_format == "json", debug=options.debug)
    if options.kubeconfig is not None:
        os.environ["KUBECONFIG"] = str(options.kubeconfig)  # kopf's own client looks there.
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    act: Callable[[argparse.Namespace, threading.Event], None] = options.act
    try:
        if options.metrics is not None:
            metrics.serve(options.metrics)
        act(options, stop)
    except AoECsiError as error:
        sys.stderr.write(f"aoe-operator {options.role}: {error}\n")
        return REFUSED
    return OK


def _storage(options: argparse.Namespace, stop: threading.Event) -> None:
    store = KubernetesStore(options.kubeconfig, holder=f"storage-{options.node}")
    leases = KubernetesLeases(options.kubeconfig, options.namespace)
    events = KubernetesEvents(options.kubeconfig, "aoe-csi-storage")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    runner = HostRunner(enter_host=options.enter_host)

    def prepare(settings: Settings) -> None:
        if options.prepare_host:
            preparation.try_to_prepare(settings, runner)

    # A pod that was deleted by force may live on for a while beside its successor.
    with (
        engine_lock(STATE, wait_s=FORMER_S),
        StorageProcess(
            options.node,
            store,
            leases,
            events,
            Seen(DurableFiles(STATE / "seen")),
            open_engine=functools.partial(
                open_engine, is_staged=open_staged_check(STATE), enter_host=options.enter_host
            ),
            card=card_status,
            prepare=prepare,
            check=functools.partial(find_lacks, runner),
            boot=boot,
            machine_id=claimant(
                DurableFiles(STATE / "claimant"),
                machine_id(runner),
                functools.partial(store.list, AoEShelf),
                DurableFiles(STATE / "exports"),
            ),
            stop=stop,
        ) as process,
    ):
        handlers.run(handlers.storage(process.role, options.node), stop=stop, liveness=options.liveness)


def _cluster(options: argparse.Namespace, stop: threading.Event) -> None:
    store = KubernetesStore(options.kubeconfig, holder="cluster")
    events = KubernetesEvents(options.kubeconfig, "aoe-csi-cluster")
    live = LiveNodes(KubernetesLeases(options.kubeconfig, options.namespace))
    role = ClusterRole(store, live, events)

    compute = Registrations(
        store, KubernetesRegistrations(options.kubeconfig, options.namespace), lambda: int(time.time())
    )

    def tell(seen: Liveness) -> None:
        metrics.show_liveness(seen)
        compute.look_sometimes()
        role.tell_liveness(seen)

    with _storage_profiles(options, stop), _guest_disks(options, store, stop) as guest_disks:
        watching = live.watch(stop, tell)
        handlers.run(handlers.cluster(role, guest_disks), stop=stop, liveness=options.liveness)
        stop.set()
    watching.join()


@contextmanager
def _guest_disks(
    options: argparse.Namespace, store: KubernetesStore, stop: threading.Event
) -> Iterator[handlers.GuestDiskRoles | None]:
    """Give what the cluster role does for guests' disks, if there are to be any, and see meanwhile to what grows, and
    to machines that start and stop."""
    if options.guest_access is None:
        yield None
        return
    from aoe_core.resources import guest_access
    from aoe_core.resources.guest_kubernetes import (
        KubernetesClaims,
        KubernetesGuestDisks,
        KubernetesHosts,
        KubernetesMachines,
    )
    from aoe_core.resources.provisioner import ClusterProvisioner
    from aoe_operator.guest_definition import give_up
    from aoe_operator.guest_grants import GuestGrants
    from aoe_operator.machine_disks import MachineDisks, Unseen

    guest_access.read(options.guest_access)  # A list that cannot be read is refused here, not at the first disk.
    config, holder = options.kubeconfig, "cluster"
    rules = functools.partial(guest_access.read, options.guest_access)
    disks, claims = KubernetesGuestDisks(config, holder=holder), KubernetesClaims(config, holder=holder)
    hosts = KubernetesHosts(config, holder=holder, registrations=KubernetesRegistrations(config, options.namespace))
    provisioner = ClusterProvisioner(store, patience_s=GRANTED_S)
    grants = GuestGrants(disks, claims, hosts, provisioner, rules=rules)
    kubevirt = KubernetesMachines(config, holder=holder) if options.virtual_machines else Unseen()
    machines = MachineDisks(disks, claims, kubevirt, provisioner, rules=rules)

    def let_go() -> None:
        give_up(disks, lambda disk: grants.reconcile if disk.spec.libvirt is not None else machines.reconcile)

    with Repeated(let_go, grants.follow_growth, machines.follow, name="guests", every_s=GROWN_EVERY_S, stop=stop):
        yield handlers.GuestDiskRoles(grant=grants.reconcile, plug=machines.reconcile)


@contextmanager
def _storage_profiles(options: argparse.Namespace, stop: threading.Event) -> Iterator[None]:
    if not options.storage_profiles:
        yield
        return
    from aoe_core.resources.guest_kubernetes import KubernetesProfiles
    from aoe_operator.storage_profiles import StorageProfiles

    profiles = StorageProfiles(KubernetesProfiles(options.kubeconfig, holder="aoe-csi-cluster"))
    with Repeated(profiles.tell, name="storage profiles", every_s=PROFILES_EVERY_S, stop=stop):
        yield


def _guests(options: argparse.Namespace, stop: threading.Event) -> None:
    from aoe_core import san_rules
    from aoe_core.attach.attacher import open_attacher
    from aoe_core.guests.autostart import Autostart
    from aoe_core.guests.guest_disks import open_guest_disks
    from aoe_core.host.blocking import BlockingCalls
    from aoe_core.host.libvirt import LibvirtHypervisor
    from aoe_core.host.links import boot_id
    from aoe_core.host.process_lock import guests_lock
    from aoe_core.resources.guest_kubernetes import KubernetesGuestDisks
    from aoe_core.resources.step_back import StepBack
    from aoe_operator.guests import GuestsRole
    from aoe_operator.guests_process import GuestsProcess

    settings = san_rules.resolve_here(options.san_rules, options.node)
    if not settings.san:
        raise Invalid(
            f"no rule for a SAN matches an interface of host {options.node}, so its guests reach no volume; mend the "
            "rules, or take the host's label for guests off"
        )
    attacher = open_attacher(settings, enter_host=options.enter_host)
    disks = open_guest_disks(settings, attacher, enter_host=options.enter_host)
    store = KubernetesGuestDisks(options.kubeconfig, holder=f"guests-{options.node}")
    role = GuestsRole(options.node, disks, store)
    state = Path(settings.state_directory)
    # A pod that was deleted by force may live on for a while beside its successor.
    with (
        guests_lock(state, wait_s=FORMER_S),
        GuestsProcess(
            role,
            disks,
            attacher,
            Autostart(
                boot_id(),
                disks,
                LibvirtHypervisor(BlockingCalls()),
                DurableFiles(state / "guests" / "autostart"),
                role.require_startable,
            ),
            stop=stop,
            find_change=functools.partial(san_rules.find_change, settings, options.san_rules),
        ),
    ):
        # Its watches would hear nothing from an API server that was put back.
        StepBack(store.revision, stop).start_background()
        handlers.run(handlers.guests(role.reconcile, options.node), stop=stop, liveness=options.liveness)


if __name__ == "__main__":
    sys.exit(main())
