"""A compute node of a cluster: its settings out of rules that all nodes share, and what it lacks.

It asks no API server. What it lacks is told where somebody looks: NodeGetInfo fails with it, so that kubelet does not
register the driver and no pod is sent here; /readyz and a metric say the same. A machine that no rule ever spoke of
takes no part: NodeGetInfo fails there too, but nothing is amiss, and its pod is ready; else it held up every update.
"""

import logging
from pathlib import Path

import prometheus_client

from aoe_core import preflight, preparation, san_rules
from aoe_core.host.runner import HostRunner
from aoe_core.recent import RecentLook

log = logging.getLogger(__name__)

_LACKING = prometheus_client.Gauge(
    "aoe_csi_node_lacking", "Findings of preflight that keep this node from taking volumes."
)
_SANS = prometheus_client.Gauge(
    "aoe_csi_node_sans", "SANs this node is on; at 0 no rule matches its interfaces, and it takes no part."
)
_MARK = "compute-node"
"""A file in the state directory of who has taken part once: a lost card, or a wrong rule, is a lack there."""
_LOOK_EVERY_S = 30.0
"""A look costs a dozen commands, and probes come every few seconds."""


class ClusterNode:
    """One compute node, as its rules and its interfaces said when the process began."""

    def __init__(
        self,
        rules: Path,
        name: str,
        *,
        enter_host: bool,
        interfaces: Path = san_rules.INTERFACES,
        state: Path | None = None,
    ) -> None:
        """`state`: the settings' state directory, unless said.

        Raises: Invalid when the rules cannot be read, or say two things of this node.
        """
        self.enter_host = enter_host
        self._rules = rules
        self._name = name
        self._interfaces = interfaces
        self._runner = HostRunner(enter_host=enter_host)
        self._lack = RecentLook(self._look, age_s=_LOOK_EVERY_S)
        self._logged: str | None = None
        self.settings = san_rules.resolve_here(rules, name, interfaces)
        _SANS.set(len(self.settings.san))
        self._mark = (state or Path(self.settings.state_directory)) / _MARK
        if self.settings.san:
            self._mark.parent.mkdir(parents=True, exist_ok=True)
            self._mark.touch()
        if not self.takes_part:
            log.warning("takes no part", extra={"node": name, "why": self._no_match()})

    @property
    def takes_part(self) -> bool:
        """Whether this machine is on a SAN, or ever was."""
        return bool(self.settings.san) or self._mark.exists()

    def prepare_host(self) -> None:
        """Bring the host's units, rules and module options into place, if the host is on a SAN."""
        if not self.settings.san:
            return
        preparation.try_to_prepare(self.settings, self._runner)

    def find_change(self) -> str | None:
        """Say that rules or interfaces are not what they were when the process began: it must be started anew."""
        return san_rules.find_change(self.settings, self._rules, self._interfaces)

    def find_lack(self) -> str | None:
        """Say what keeps this node from taking volumes, with the remedy; None when nothing does."""
        return self._lack.take()

    def _no_match(self) -> str:
        present = ", ".join(sorted(path.name for path in self._interfaces.iterdir()))
        return f"no rule for a SAN matches an interface of node {self._name} (it has {present}); mend the rules"

    def _look(self) -> str | None:
        lack = self._judge()
        if self.takes_part and lack != self._logged:
            self._logged = lack
            log.log(
                logging.WARNING if lack else logging.INFO, "what this node lacks", extra={"lack": lack or "nothing"}
            )
        return lack

    def _judge(self) -> str | None:
        if not self.settings.san:
            _LACKING.set(int(self.takes_part))
            return self._no_match()
        failures = [
            one
            for one in preflight.run(self.settings, self._runner, shared=True)
            if one.severity is preflight.Severity.FAILURE
        ]
        _LACKING.set(len(failures))
        return "; ".join(f"{one.check}: {one.fact}; {one.remedy}" for one in failures) or None
