"""The `python -m aoe_lab.kubernetes` command: a cluster to play with.

Exit codes: 0 done, 1 something did not come to pass (the message says what).
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from aoe_lab.errors import LabError
from aoe_lab.kubernetes.cluster import NOTHING_MORE, Cluster
from aoe_lab.kubevirt import installation
from aoe_lab.lab import end

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m aoe_lab.kubernetes", description="A cluster with aoe-csi on it.")
    parser.add_argument("--name", default="cluster", help="of the lab; default: %(default)s")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start a cluster and install aoe-csi")
    up.add_argument("--storage", type=int, default=1, help="machines with disks; default: %(default)s")
    up.add_argument("--compute", type=int, default=1, help="machines without; default: %(default)s")
    up.add_argument("--hypervisors", type=int, default=0, help="machines with libvirt; default: %(default)s")
    up.add_argument("--san", action="append", metavar="NAME", help="a segment; may be repeated; default: main")
    up.add_argument("--bare", action="store_true", help="do not install aoe-csi")
    up.add_argument("--kubevirt", action="store_true", help="with KubeVirt on the compute machines: half an hour more")
    up.set_defaults(act=_up)
    commands.add_parser("install", help="install aoe-csi, or upgrade it to the checkout").set_defaults(act=_install)
    commands.add_parser("status", help="show nodes, pods and volumes").set_defaults(act=_status)
    commands.add_parser("down", help="end the cluster").set_defaults(act=_down)
    options = parser.parse_args()
    act: Callable[[argparse.Namespace], None] = options.act
    try:
        act(options)
    except LabError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _up(options: argparse.Namespace) -> None:
    cluster = Cluster.start(
        storage=options.storage,
        compute=options.compute,
        hypervisors=options.hypervisors,
        sans=tuple(options.san or ("main",)),
        name=options.name,
        more=installation.additions() if options.kubevirt else NOTHING_MORE,
    )
    try:
        if not options.bare:
            cluster.install()
            cluster.await_ready()
        if options.kubevirt:
            installation.install(cluster)
    finally:
        # Also when it is not ready: whoever asked for it wants to look.
        cluster.lab.keep()
    sys.stdout.write(f"export KUBECONFIG={cluster.plane.kubeconfig}\n")


def _install(options: argparse.Namespace) -> None:
    cluster = Cluster.attach(options.name)
    cluster.install()
    cluster.await_ready()


def _status(options: argparse.Namespace) -> None:
    sys.stdout.write(Cluster.attach(options.name).describe())


def _down(options: argparse.Namespace) -> None:
    end(options.name)


if __name__ == "__main__":
    sys.exit(main())
