"""helm, as an administrator runs it on one cluster, and the manifests rendered for those who do without.

`python -m aoe_lab.kubernetes.helm` writes deploy/aoe-csi.yaml; a test holds the committed file to it.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aoe_lab import process
from aoe_lab.cachedir import CHECKOUT
from aoe_lab.kubernetes.programs import HELM, ensure_programs

if TYPE_CHECKING:
    from aoe_lab.process import Finished

NAMESPACE = RELEASE = "aoe-csi"
CHART = CHECKOUT / "charts" / "aoe-csi"
DEPLOY = CHECKOUT / "deploy"
KNOWN = "aoe-csi.dev/v1alpha1/AoENode"
"""Who applies manifests applies the definitions first, so nothing has to wait for them as under helm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Helm:
    """The cluster a kubeconfig names; `place` is for files of its own."""

    kubeconfig: Path
    place: Path
    chart: Path = CHART
    program: Path = field(default_factory=lambda: ensure_programs((HELM,))["helm"])

    def run(self, *words: str | Path, check: bool = True) -> Finished:
        """Run helm in our namespace. Raises: CommandFailed unless `check` is false."""
        self.place.mkdir(exist_ok=True)
        return process.run(
            [self.program, f"--kubeconfig={self.kubeconfig}", f"--namespace={NAMESPACE}", *words],
            timeout_s=300,
            check=check,
            # Its own directories would be the user's.
            env={name: str(self.place) for name in ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")},
        )

    def lint(self, values: dict[str, Any]) -> None:
        """Have helm look for mistakes. Raises: CommandFailed with what it found."""
        self.run("lint", "--strict", self.chart, self._values(values))

    def template(self, values: dict[str, Any], *words: str, check: bool = True) -> Finished:
        """Render the chart without asking the cluster."""
        return self.run("template", RELEASE, self.chart, self._values(values), *words, check=check)

    def upgrade(self, values: dict[str, Any], *words: str, check: bool = True) -> Finished:
        """Install the chart, or upgrade the release."""
        return self.run("upgrade", "--install", RELEASE, self.chart, self._values(values), *words, check=check)

    def _values(self, values: dict[str, Any]) -> str:
        self.place.mkdir(exist_ok=True)
        file = self.place / "values.json"
        file.write_text(json.dumps(values, indent=1))
        return f"--values={file}"


def rendered_manifests() -> str:
    """Return what deploy/aoe-csi.yaml has to be."""
    with tempfile.TemporaryDirectory() as place:
        helm = Helm(kubeconfig=Path("/dev/null"), place=Path(place))
        values = f"--values={DEPLOY / 'values.yaml'}"
        done = helm.run("template", RELEASE, CHART, values, f"--api-versions={KNOWN}", "--kube-version=1.32.0")
    return "# Made by `make deploy` from charts/aoe-csi and deploy/values.yaml; do not edit.\n" + done.stdout


if __name__ == "__main__":
    (DEPLOY / "aoe-csi.yaml").write_text(rendered_manifests())
