"""The lab from the command line: `python -m aoe_lab --help`."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from aoe_lab import progress
from aoe_lab.emulator import MachineState
from aoe_lab.errors import LabError
from aoe_lab.lab import Lab, default_name, end, is_running
from aoe_lab.topology import Topology

if TYPE_CHECKING:
    from collections.abc import Callable

    from aoe_lab.machine import Machine


def main() -> int:
    options = _parser().parse_args()
    try:
        return int(options.act(options) or 0)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aoe_lab", description="Boot and steer the lab's machines.")
    parser.add_argument("--name", default=default_name(), help="which lab (default: $AOE_LAB_NAME, else %(default)s)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(command: str, act: Callable[[argparse.Namespace], int | None], help_text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(command, help=help_text, description=help_text)
        sub.set_defaults(act=act)
        return sub

    default = Topology()
    up = add("up", _up, "build what is missing and boot a lab; it runs until `down`")
    up.add_argument("--storage", type=int, default=default.storage, metavar="N", help="storage machines (%(default)s)")
    up.add_argument("--compute", type=int, default=default.compute, metavar="N", help="compute machines (%(default)s)")
    up.add_argument(
        "--hypervisors", type=int, default=default.hypervisors, metavar="N", help="machines with libvirt (%(default)s)"
    )
    up.add_argument("--san", nargs="+", default=list(default.sans), metavar="NAME", help="SAN segments (main)")
    up.add_argument("--memory-mib", type=int, default=default.memory_mib, metavar="N", help="per machine (%(default)s)")
    add("down", lambda options: end(options.name), "end a lab and remove all it left, a crashed one too")
    add("status", _status, "show the machines and their state")
    push = add("push", _push, "copy the current code into running machines")
    push.add_argument("machine", nargs="*", help="all, if none is named")
    shell = add("shell", _shell, "run a command on a machine, or a login shell")
    shell.add_argument("machine")
    shell.add_argument("command", nargs=argparse.REMAINDER)
    for command, act, help_text in (
        ("power-cut", _on_machine(lambda machine: machine.power_cut()), "end a machine without warning"),
        ("boot", _on_machine(_boot), "start a machine that is off"),
        ("reboot", _on_machine(lambda machine: machine.reboot()), "shut a machine down and start it again"),
        ("pause", _on_machine(lambda machine: machine.pause()), "stop a machine's processors"),
        ("resume", _on_machine(lambda machine: machine.resume()), "let a paused machine run on, its clock set"),
    ):
        add(command, act, help_text).add_argument("machine")
    link = add("link", _link, "pull or plug a machine's SAN cable")
    link.add_argument("machine")
    link.add_argument("san")
    link.add_argument("state", choices=("up", "down"))
    netem = add("netem", _netem, "make what a machine sends on a SAN late or lossy")
    netem.add_argument("machine")
    netem.add_argument("san")
    effect = netem.add_argument_group("effect")
    effect.add_argument("--delay-ms", type=float, default=0)
    effect.add_argument("--loss-percent", type=float, default=0)
    effect.add_argument("--clear", action="store_true", help="neither")
    console = add("console", _console, "show a machine's console and follow it")
    console.add_argument("machine")
    return parser


def _on_machine(act: Callable[[Machine], object]) -> Callable[[argparse.Namespace], None]:
    def run(options: argparse.Namespace) -> None:
        act(Lab.attach(options.name).machine(options.machine))

    return run


def _up(options: argparse.Namespace) -> None:
    topology = Topology(
        storage=options.storage,
        compute=options.compute,
        hypervisors=options.hypervisors,
        sans=tuple(options.san),
        memory_mib=options.memory_mib,
    )
    if is_running(options.name):
        lab = Lab.attach(options.name)
        if lab.topology != topology:
            raise LabError(f"lab {options.name!r} runs with other machines: `down` it first, or use another --name")
        progress.say(f"lab {options.name!r} runs already: healing it and pushing the code")
        lab.heal()
        lab.push_code()
    else:
        Lab.start(topology, name=options.name).keep()
    _status(options)


def _status(options: argparse.Namespace) -> None:
    lab = Lab.attach(options.name)
    rows = [("MACHINE", "STATE", "ADDRESS", "SANS", "BOOT")]
    for machine in lab.machines:
        sans = ", ".join(
            f"{san}={machine.san_interface(san)}" + ("" if machine.link_is_up(san) else " (unplugged)")
            for san in machine.spec.sans
        )
        rows.append((machine.name, machine.state(), machine.address, sans, machine.console.ready_boot_id() or "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"network namespace: {lab.network.netns}")


def _push(options: argparse.Namespace) -> None:
    lab = Lab.attach(options.name)
    named = [lab.machine(name) for name in options.machine]
    lab.push_code(named or [machine for machine in lab.machines if machine.state() is MachineState.RUNNING])


def _shell(options: argparse.Namespace) -> int:
    machine = Lab.attach(options.name).machine(options.machine)
    # A terminal's program is not run beside us but instead of us.
    argv = machine.shell_argv(options.command, terminal=sys.stdin.isatty())
    os.execvp(argv[0], argv)


def _boot(machine: Machine) -> None:
    with progress.step("booting 1 machine"):
        machine.boot()
        machine.wait_ready()


def _link(options: argparse.Namespace) -> None:
    machine = Lab.attach(options.name).machine(options.machine)
    (machine.link_up if options.state == "up" else machine.link_down)(options.san)


def _netem(options: argparse.Namespace) -> None:
    if options.clear == bool(options.delay_ms or options.loss_percent):
        raise LabError("netem: give --delay-ms or --loss-percent or both, or else --clear")
    machine = Lab.attach(options.name).machine(options.machine)
    machine.netem(options.san, delay_ms=options.delay_ms, loss_percent=options.loss_percent)


def _console(options: argparse.Namespace) -> None:
    machine = Lab.attach(options.name).machine(options.machine)
    os.execvp("tail", ["tail", "-n", "1000", "-F", str(machine.console.file)])


if __name__ == "__main__":
    sys.exit(main())
