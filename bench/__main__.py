"""`make bench-standalone`: boot two machines, install, measure, write docs/evidence/bench.md.

Exit 1 when a bar is missed.
"""

import argparse
import os
import sys

from aoe_lab import Lab, Topology
from aoe_lab.standalone import Standalone, Tuning
from bench import control_plane, data_path
from bench.report import Report

PARTS = ("create", "attach", "data", "many", "memory")


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description="Measure aoe-csi in the lab.")
    parser.add_argument("--rounds", type=int, default=7, help="of each call (%(default)s)")
    parser.add_argument("--fio-rounds", type=int, default=3, help="of each fio job (%(default)s)")
    parser.add_argument("--only", choices=PARTS, nargs="+", help="some parts; nothing is written then")
    options = parser.parse_args()
    report = Report("bench", "make bench-standalone")
    parts = tuple(options.only or PARTS)
    if attached := os.environ.get("AOE_LAB_ATTACH"):
        lab = Lab.attach(attached)
        lab.push_code()
        measure(lab, report, parts, options.rounds, options.fio_rounds)
    else:
        with Lab.start(Topology(storage=1, compute=1, sans=("main",)), name="bench") as lab:
            measure(lab, report, parts, options.rounds, options.fio_rounds)
    return 1 if report.missed else 0


def measure(lab: Lab, report: Report, parts: tuple[str, ...], rounds: int, fio_rounds: int) -> None:
    cluster = Standalone(lab, Tuning())
    cluster.install()
    table = ""
    try:
        if "create" in parts:
            control_plane.create(cluster, report, rounds)
        if "attach" in parts:
            control_plane.attach(cluster, report, rounds)
        if "data" in parts:
            table = data_path.measure(cluster, report, fio_rounds)
        if "many" in parts:
            control_plane.many(cluster, report)
        if "memory" in parts:
            control_plane.memory(cluster, report)
    finally:
        cluster.close()
    if parts == PARTS:
        report.write(f"\n## Data path\n\n{table}\n")


if __name__ == "__main__":
    sys.exit(main())
