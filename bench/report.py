"""What was measured, line by line on the terminal and in a file of docs/evidence/."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from aoe_lab import evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Ours against theirs, round by round, taken in turns.

    The ratio is the median of the rounds' own: a host that is slower for some rounds is slower for both.
    """

    what: str
    ours: Sequence[float]
    theirs: Sequence[float]
    unit: str
    bar: float | None = None
    """The most the ratio may be; None when it is only told."""

    @property
    def ratio(self) -> float:
        return statistics.median(one / other for one, other in zip(self.ours, self.theirs, strict=True))

    @property
    def holds(self) -> bool:
        return self.bar is None or self.ratio <= self.bar

    def __str__(self) -> str:
        bar = "" if self.bar is None else f" (bar {self.bar}: {'holds' if self.holds else 'MISSED'})"
        ours, theirs = statistics.median(self.ours), statistics.median(self.theirs)
        return (
            f"{self.what}: {ours:.0f} against {theirs:.0f} {self.unit}, "
            f"ratio {self.ratio:.2f}{bar}; ours {_range(self.ours)}, theirs {_range(self.theirs)}, "
            f"{len(self.ours)} rounds"
        )


@dataclass(slots=True)
class Report:
    """Lines, in the order they were found, and whether every bar holds; for docs/evidence/<name>.md."""

    name: str
    command: str
    lines: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.lines.append(line)
        print(f"bench: {line}", flush=True)

    def add(self, ratio: Ratio) -> None:
        self.say(str(ratio))
        if not ratio.holds:
            self.missed.append(ratio.what)

    def require(self, holds: bool, what: str) -> None:
        self.say(f"{what}: {'holds' if holds else 'MISSED'}")
        if not holds:
            self.missed.append(what)

    def write(self, more: str = "") -> None:
        """Write it; `more`: what follows after the lines."""
        verdict = f"missed: {', '.join(self.missed)}" if self.missed else "every bar holds"
        path = evidence.write(self.name, self.command, self.lines, verdict)
        with path.open("a", encoding="utf-8") as handle:
            handle.write(more)
        print(f"bench: {verdict}; written to {path}", flush=True)


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.0f}–{max(values):.0f}"
