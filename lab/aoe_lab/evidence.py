"""Figures that tests show: printed at the end of a run, and written with the commit they were measured on.

`pytest --evidence NAME` writes docs/evidence/NAME.md. Without it figures are printed only, so that a developer's half
a run never replaces a whole one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from aoe_lab import process
from aoe_lab.cachedir import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Evidence = Callable[[str], None]
"""Called by a test with one sentence that holds its figures."""


def commit() -> str:
    """Return the checkout's commit, marked when files differ from it that are no evidence themselves."""
    git = ["git", "-C", str(CHECKOUT)]
    head = process.run([*git, "rev-parse", "HEAD"], timeout_s=10, check=False).stdout.strip() or "unknown"
    differ = ["status", "--porcelain", "-uno", "--", ":/", ":(top,exclude)docs/evidence"]
    changed = process.run([*git, *differ], timeout_s=10, check=False).stdout.strip()
    return f"{head} with changes" if changed else head


def write(name: str, command: str, lines: Sequence[str], verdict: str) -> Path:
    """Write docs/evidence/NAME.md and return its path."""
    path = CHECKOUT / "docs" / "evidence" / f"{name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = "\n".join(f"- {line}" for line in lines)
    path.write_text(
        f"# {name}\n\nCommand: `{command}`  \nCommit: {commit()}  \n"
        f"Date: {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}  \nVerdict: {verdict}\n\n{shown}\n",
        encoding="utf-8",
    )
    return path
