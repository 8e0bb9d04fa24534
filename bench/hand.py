"""The same work by hand: the committed scripts, run on the machines, each timing itself there."""

from pathlib import Path

from aoe_lab import Machine

SCRIPTS = Path(__file__).with_name("scripts")


def run(machine: Machine, script: str, *arguments: str) -> float:
    """Run a script on a machine and return the milliseconds it took there, ssh not counted."""
    text = (SCRIPTS / script).read_text(encoding="utf-8")
    finished = machine.run(["sh", "-s", "--", *arguments], stdin=text, timeout_s=300)
    return float(finished.stdout.split()[-1])
