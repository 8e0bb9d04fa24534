"""A pod that appends fsync'ed records to its volume, one after the other, and notes each that was acknowledged."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from aoe_lab.errors import LabError

from .claims import DIRECTORY, sleeping

if TYPE_CHECKING:
    from .claims import Claims

LOG = f"{DIRECTORY}/log"
_ACKNOWLEDGED, _TIMES = "/tmp/acknowledged", "/tmp/times"


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """A running writer; its records carry the pod's name."""

    claims: Claims
    name: str

    @classmethod
    def start(cls, claims: Claims, name: str, claim: str, node: str | None = None) -> Self:
        """Make the pod and wait for its first records."""
        loop = (
            f"i=0; while true; do i=$((i+1)); echo {name} $i | dd of={LOG} oflag=append conv=notrunc,fsync status=none"
            f" && echo $i > {_ACKNOWLEDGED} && read t rest < /proc/uptime && echo $t >> {_TIMES}; done"
        )
        spec: dict[str, Any] = sleeping({"volumeMounts": [{"name": "data", "mountPath": DIRECTORY}]})
        spec["containers"][0]["command"] = ["sh", "-c", loop]
        claims.pod(name, claim, node=node, containers=spec["containers"])
        claims.await_running(name)
        made = cls(claims=claims, name=name)
        made.await_more(from_=0)
        return made

    def acknowledged(self) -> int:
        """Return the number of the newest acknowledged record. Raises: LabError when nobody can be asked for long."""
        newest: list[int] = []

        def ask() -> str | None:
            try:
                said = self.claims.run(self.name, f"cat {_ACKNOWLEDGED}", check=False)
            except LabError as error:
                return str(error)
            # The file is empty for a moment at each record.
            if said.stdout.strip():
                newest.append(int(said.stdout))
                return None
            return said.stderr or "nothing is acknowledged"

        self.claims.await_(f"{self.name} to be asked", ask)
        return newest[0]

    def await_more(self, more: int = 3, *, from_: int | None = None) -> None:
        """Wait until so many more records are acknowledged than now, or than `from_`. Raises: LabError."""
        begin = self.acknowledged() if from_ is None else from_
        self.claims.await_(
            f"{self.name} to write on", lambda: None if self.acknowledged() > begin + more else f"it waits at {begin}"
        )

    def seen_by(self, pod: str) -> int:
        """Return how many of this writer's records another pod of the volume sees."""
        return int(self.claims.run(pod, f"grep -c '^{self.name} ' {LOG} || true").stdout)

    def missing(self) -> int:
        """Return how many acknowledged records are not on the storage, or more than once there."""
        last = self.acknowledged()
        # What was acknowledged is clean in a node's memory, which would show it also if the storage had lost it.
        for machine in self.claims.cluster.lab.machines:
            machine.drop_caches()
        said = self.claims.run(self.name, f"grep '^{self.name} ' {LOG}").stdout
        there = Counter(int(line.split()[1]) for line in said.splitlines() if len(line.split()) == 2)
        return sum(there[number] != 1 for number in range(1, last + 1))

    def times_s(self) -> tuple[float, ...]:
        """Return when each record was acknowledged, in seconds since the machine's boot, to a hundredth."""
        return tuple(float(line) for line in self.claims.run(self.name, f"cat {_TIMES}").stdout.split())

    def restarts(self) -> int:
        """Return how often the pod's container was started anew."""
        return int(self.claims.get("pod", self.name)["status"]["containerStatuses"][0]["restartCount"])


def longest_gap_s(times_s: tuple[float, ...]) -> float:
    """Return the longest time between two acknowledged records."""
    return max(after - before for before, after in itertools.pairwise(times_s))
