"""The `aoe-operator` command: one role of the operator, until SIGTERM.

Exit codes: 0 asked to end (or the node's resource has changed: start it anew), 2 refused before anything began.
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from aoe_core.errors import AoECsiError
from aoe_core.resources.fields import GROUP
from aoe_core.resources.kubernetes import KubernetesLeases, KubernetesStore
from aoe_core.resources.leases import LiveNodes
from aoe_core.volumes.engine import open_engine
from aoe_operator import handlers
from aoe_operator.placing import ClusterRole
from aoe_operator.storage import FINALIZER
from aoe_operator.storage_process import StorageProcess, card_status

OK, REFUSED = 0, 2
NAMESPACE = "aoe-csi"


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    top = argparse.ArgumentParser(prog="aoe-operator", description="Makes true what AoE resources of a cluster say.")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--kubeconfig", type=Path, metavar="PATH", help="default: the cluster this process runs in")
    shared.add_argument("--namespace", default=NAMESPACE, help="where the Leases are; default: %(default)s")
    shared.add_argument("--liveness", metavar="URL", help="where to answer probes, like http://0.0.0.0:8080/healthz")
    shared.add_argument("--log-format", choices=("text", "json"), default="text")
    shared.add_argument("--debug", action="store_true")
    roles = top.add_subparsers(dest="role", required=True, metavar="ROLE")
    storage = roles.add_parser("storage", parents=[shared], help="this storage node's volumes, exports and snapshots")
    storage.add_argument("--node", required=True, metavar="NAME", help="this node's AoENode")
    storage.set_defaults(act=_storage)
    cluster = roles.add_parser("cluster", parents=[shared], help="what is decided once for all: placement")
    cluster.set_defaults(act=_cluster)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parser().parse_args(arguments)
    handlers.start_logs(as_json=options.log_format == "json", debug=options.debug)
    if options.kubeconfig is not None:
        os.environ["KUBECONFIG"] = str(options.kubeconfig)  # kopf's own client looks there.
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    act: Callable[[argparse.Namespace, threading.Event], None] = options.act
    try:
        act(options, stop)
    except AoECsiError as error:
        sys.stderr.write(f"aoe-operator {options.role}: {error}\n")
        return REFUSED
    return OK


def _storage(options: argparse.Namespace, stop: threading.Event) -> None:
    store = KubernetesStore(options.kubeconfig, holder=f"storage-{options.node}")
    leases = KubernetesLeases(options.kubeconfig, options.namespace)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    with StorageProcess(options.node, store, leases, open_engine, card_status, boot=boot, stop=stop) as process:
        registry = handlers.storage(process.role, options.node)
        handlers.run("storage", FINALIZER, registry, stop=stop, liveness=options.liveness)


def _cluster(options: argparse.Namespace, stop: threading.Event) -> None:
    store = KubernetesStore(options.kubeconfig, holder="cluster")
    live = LiveNodes(KubernetesLeases(options.kubeconfig, options.namespace))
    watching = live.watch(stop)
    registry = handlers.cluster(ClusterRole(store, live))
    handlers.run("cluster", f"{GROUP}/cluster", registry, stop=stop, liveness=options.liveness)
    stop.set()
    watching.join()


if __name__ == "__main__":
    sys.exit(main())
