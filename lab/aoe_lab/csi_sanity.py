"""csi-sanity on a lab machine: its flags, and its verdict with the names of what it skipped."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aoe_lab.errors import LabError
from aoe_lab.tools_disk import MOUNTED_AT

if TYPE_CHECKING:
    from aoe_lab.machine import Machine

_PARAMETERS = "/run/sanity-parameters.yaml"
_REPORT = "/run/sanity-report.json"
_VERDICT = re.compile(r"(\d+) Passed \| (\d+) Failed \| (\d+) Pending \| (\d+) Skipped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What Ginkgo counted; `skipped` has the names of the specs that did not run, pending ones among them."""

    summary: str
    passed: int
    failed: int
    skipped: tuple[str, ...]
    output: str

    def __str__(self) -> str:
        return f"{self.summary}; skipped: {'; '.join(self.skipped)}"


def run_csi_sanity(
    node: Machine,
    socket: str,
    *,
    controller: str | None = None,
    pool: str,
    access: str,
    leave_out: str = "",
    timeout_s: float = 1800,
) -> Verdict:
    """Run the suite on a machine against the node server's socket there, and the controller's.

    `controller`: a socket on the same machine, None: the same one. `access`: mount or block. `leave_out`: a regular
    expression of specs that are not run; the verdict names them as skipped.
    Raises: LabError when the suite says nothing that could be read.
    """
    node.run(f"printf 'pool: {pool}\\n' > {_PARAMETERS}; rm -rf /run/sanity-mount /run/sanity-stage")
    finished = node.run(
        [
            f"{MOUNTED_AT}/bin/csi-sanity",
            f"--csi.endpoint=unix://{socket}",
            "--csi.mountdir=/run/sanity-mount",
            "--csi.stagingdir=/run/sanity-stage",
            f"--csi.testvolumesize={32 << 20}",
            f"--csi.testvolumeexpandsize={48 << 20}",
            f"--csi.testvolumeaccesstype={access}",
            f"--csi.testvolumeparameters={_PARAMETERS}",
            *([f"--csi.controllerendpoint=unix://{controller}"] if controller else []),
            *([f"--ginkgo.skip={leave_out}"] if leave_out else []),
            "--ginkgo.no-color",
            f"--ginkgo.json-report={_REPORT}",
        ],
        check=False,
        timeout_s=timeout_s,
    )
    match = _VERDICT.search(finished.stdout)
    if match is None:
        raise LabError(f"csi-sanity gave no verdict: {finished.stdout[-4000:]}{finished.stderr[-2000:]}")
    return Verdict(
        summary=match[0],
        passed=int(match[1]),
        failed=int(match[2]) + (finished.code != 0 and match[2] == "0"),
        skipped=_skipped(node.run(["cat", _REPORT]).stdout),
        output=finished.stdout,
    )


def _skipped(report: str) -> tuple[str, ...]:
    names = (
        " ".join((*(spec["ContainerHierarchyTexts"] or ()), spec["LeafNodeText"]))
        for suite in json.loads(report)
        for spec in suite["SpecReports"]
        if spec["State"] in ("skipped", "pending") and spec["LeafNodeType"] == "It"
    )
    return tuple(sorted(names))
