"""The `aoe-csi` command.

Exit codes: 0 done, 1 done and something needs attention, 2 not done, or not to its end (one sentence on stderr).
"""
# ruff: noqa: PLC0415 - a subcommand imports what it needs, and grpc not before its environment is set.

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from aoe_core import settings as configuration
from aoe_core.errors import AoECsiError, Invalid
from aoe_core.host import memory
from aoe_csi import __version__, logs

if TYPE_CHECKING:
    from aoe_csi.composition import Composition
    from aoe_csi.health import Check
    from aoe_csi.registration import Stoppable

DEFAULT_ENDPOINT = "unix:///run/aoe-csi/csi.sock"
OK, ATTENTION, REFUSED = 0, 1, 2

log = logging.getLogger("aoe_csi")


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    top = argparse.ArgumentParser(prog="aoe-csi", description="Block storage from LVM and ATA over Ethernet, by CSI.")
    top.add_argument("--version", action="version", version=f"aoe-csi {__version__}")
    shared = _logging(level="info")
    configured = argparse.ArgumentParser(add_help=False)
    configured.add_argument(
        "--config", type=Path, default=configuration.DEFAULT_PATH, metavar="PATH", help="default: %(default)s"
    )
    ruled = argparse.ArgumentParser(add_help=False)
    _add_node_of_a_cluster(ruled)
    clustered = argparse.ArgumentParser(add_help=False)
    clustered.add_argument("--kubeconfig", type=Path, metavar="PATH", help="default: the cluster this process runs in")
    clustered.add_argument(
        "--sidecar-timeout",
        type=float,
        default=150.0,
        metavar="SECONDS",
        help="how long the sidecars wait for a call, their --timeout; default: %(default)g",
    )
    serving = argparse.ArgumentParser(add_help=False)
    serving.add_argument(
        "--endpoint", default=DEFAULT_ENDPOINT, metavar="unix:///PATH", help="the socket; default: %(default)s"
    )
    serving.add_argument("--health", metavar="HOST:PORT", help="where to answer /healthz, /readyz and /metrics")
    printing = argparse.ArgumentParser(add_help=False)
    printing.add_argument("--json", action="store_true", help="print JSON, sizes in bytes")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, words, parents, act in (
        ("standalone", "serve all of CSI for this machine, without Kubernetes", [configured, serving], _standalone),
        (
            "controller",
            "serve the controller's part of CSI for a cluster",
            [clustered, serving],
            _controller,
        ),
        ("node", "serve the node's part of CSI", [configured, ruled, serving], _node),
        ("status", "show pools, volumes, grants and staged volumes of this machine", [configured, printing], _status),
        ("preflight", "check this machine and say what it lacks", [configured, printing], _preflight),
        ("prepare-host", "bring this machine's units, rules and module options into place", [configured], _prepare),
    ):
        command = commands.add_parser(name, help=words, description=words, parents=[shared, *parents])
        command.set_defaults(act=act)
        if name == "node":
            _add_kubelet(command)
        if name == "prepare-host":
            command.add_argument("--check", action="store_true", help="change nothing, say what differs")
    # For people: what they wait for is said, and what the host did is told from --log-level info on.
    _add_guest(commands, [_logging(level="warning"), configured, ruled])
    return top


def _logging(*, level: str) -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("--log-format", choices=("text", "json"), default="text")
    parent.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default=level)
    return parent


def _add_guest(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", parents: list[argparse.ArgumentParser]
) -> None:
    words = "attach volumes to libvirt guests of this machine"
    command = commands.add_parser("guest", help=words, description=words)
    command.set_defaults(act=_guest)
    from aoe_csi import guest_arguments

    guest_arguments.add_arguments(command, parents)


def _add_node_of_a_cluster(parent: argparse.ArgumentParser) -> None:
    group = parent.add_argument_group("on a node of a cluster")
    group.add_argument(
        "--san-rules", type=Path, metavar="PATH", help="rules for all nodes of a cluster, instead of --config"
    )
    group.add_argument("--node-name", metavar="NAME", help="this node's name in the cluster")
    group.add_argument(
        "--enter-host", action="store_true", help="run commands in the namespaces of process 1: for a container"
    )


def _add_kubelet(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("beside kubelet")
    group.add_argument(
        "--registration-directory", type=Path, metavar="PATH", help="where kubelet looks for plugins to register"
    )
    group.add_argument("--prepare-host", action="store_true", help="first do what `aoe-csi prepare-host` does")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parser().parse_args(arguments)
    memory.forgo_huge_pages()
    logs.start(options.log_format, options.log_level)
    act: Callable[[argparse.Namespace], int] = options.act
    try:
        return act(options)
    except AoECsiError as error:
        sys.stderr.write(f"aoe-csi {options.command}: {error}\n")
        return REFUSED


def _standalone(options: argparse.Namespace) -> int:
    settings = configuration.read(options.config)
    _disable_fork_support()
    from aoe_csi.composition import compose_standalone

    return _serve(options, compose_standalone(settings))


def _controller(options: argparse.Namespace) -> int:
    _disable_fork_support()
    from aoe_csi.composition import compose_controller

    return _serve(options, compose_controller(options.kubeconfig, options.sidecar_timeout))


def _node(options: argparse.Namespace) -> int:
    _disable_fork_support()
    if options.san_rules is not None:
        return _cluster_node(options)
    settings = configuration.read(options.config)
    from aoe_csi.composition import compose_node

    return _serve(options, compose_node(settings))


def _cluster_node(options: argparse.Namespace) -> int:
    from aoe_csi import registration
    from aoe_csi.cluster_node import ClusterNode
    from aoe_csi.composition import compose_cluster_node
    from aoe_csi.endpoint import parse_endpoint
    from aoe_csi.server import Server

    machine = ClusterNode(options.san_rules, _node_name(options), enter_host=options.enter_host)
    if options.prepare_host:
        machine.prepare_host()
    composition = compose_cluster_node(machine)

    def lack(registered: registration.Registration | None) -> str | None:
        if not machine.takes_part:
            return None
        return machine.find_lack() or (registered.problem if registered is not None else None)

    if options.registration_directory is None:
        return _serve(options, composition, alive=machine.find_change, ready=lambda: lack(None))
    registered = registration.Registration(parse_endpoint(options.endpoint))
    socket = str(registration.socket_in(options.registration_directory))
    registrar = registration.Registrar(
        registered, lambda: Server(socket, registered), takes_part=lambda: machine.takes_part
    )
    return _serve(
        options,
        composition,
        beside=[registrar],
        alive=machine.find_change,
        ready=lambda: lack(registered),
    )


def _node_name(options: argparse.Namespace) -> str:
    if not options.node_name:
        raise Invalid("--san-rules goes with --node-name; say which node this is")
    return str(options.node_name)


def _disable_fork_support() -> None:
    # Read when grpc is imported. Its fork handlers would stop every call for each command that is started.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"


def _serve(
    options: argparse.Namespace,
    composition: "Composition",
    *,
    beside: Sequence["Stoppable"] = (),
    alive: "Check" = lambda: None,
    ready: "Check" = lambda: None,
) -> int:
    """Serve until a signal or the composition says to stop.

    `beside`: servers that begin when the driver answers, and end before it does.
    """
    from aoe_csi import health
    from aoe_csi.endpoint import parse_endpoint
    from aoe_csi.server import Server

    stop = composition.end
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server = Server(options.endpoint, composition.services)
    socket = str(parse_endpoint(options.endpoint))
    with ExitStack() as checked:
        if composition.alone is not None:
            checked.enter_context(composition.alone)
        if options.health is not None:
            is_alive: health.Check = lambda: alive() or health.probe(socket)  # noqa: E731 - of a named type.
            checked.enter_context(
                health.Health(
                    health.parse_address(options.health),
                    alive=is_alive,
                    # Not by what has changed meanwhile: a DaemonSet replaces at once all pods that are not ready.
                    ready=lambda: health.probe(socket) or ready(),
                )
            )
        server.start()
        for worker in composition.background:
            worker.start_background()
        for other in beside:
            other.start()
        stop.wait()
        for other in beside:
            other.stop()
        for worker in composition.background:
            worker.stop_background()
        ended = server.stop()
    if ended:
        return OK
    # Threads that still hold a call would keep the interpreter from ending, perhaps for as long as a target is dead.
    logging.shutdown()
    os._exit(ATTENTION)


def _status(options: argparse.Namespace) -> int:
    from aoe_csi import status
    from aoe_csi.composition import report_host

    report = report_host(configuration.read(options.config))
    _say(status.as_json(report) if options.json else status.as_text(report))
    return ATTENTION if report.orphans else OK


def _preflight(options: argparse.Namespace) -> int:
    from aoe_core import preflight

    findings = preflight.run(configuration.read(options.config))
    if options.json:
        _say(msgspec.json.format(msgspec.json.encode(findings), indent=2).decode())
    else:
        for one in findings:
            remedy = f"; {one.remedy}" if one.remedy else ""
            _say(f"{one.severity.value:8} {one.check}: {one.fact}{remedy}")
    return ATTENTION if any(one.severity is preflight.Severity.FAILURE for one in findings) else OK


def _prepare(options: argparse.Namespace) -> int:
    from aoe_core import preparation

    outcome = preparation.prepare(configuration.read(options.config), check=options.check)
    for step in outcome.done:
        _say(f"would {step}" if options.check else f"done: {step}")
    for step in outcome.remaining:
        _say(f"by hand: {step}")
    differs = outcome.remaining or (options.check and outcome.done)
    return ATTENTION if differs else OK


def _guest(options: argparse.Namespace) -> int:
    _disable_fork_support()
    from aoe_core import san_rules
    from aoe_csi import guest

    if options.san_rules is not None:
        settings = san_rules.resolve_here(options.san_rules, _node_name(options))
    elif options.node_name or options.enter_host:
        raise Invalid("--node-name and --enter-host go with --san-rules; name the cluster's rules, or leave them out")
    else:
        settings = configuration.read(options.config)
    here = guest.open_here(settings, enter_host=options.enter_host)
    return OK if guest.ACTS[options.guest_act](options, here, _say) else ATTENTION


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
