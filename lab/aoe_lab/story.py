"""How a demonstration is told: numbered, timed steps, and claims that are checked as they are made."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class StoryError(Exception):
    """Something the story claims is not so."""


@dataclass(slots=True)
class Story:
    """Numbered, timed steps on the terminal."""

    number: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Tell a step, and how long it took."""
        self.number += 1
        print(f"\n[{self.number:2}] {what}", flush=True)
        begin = time.monotonic()
        yield
        self.seconds[what] = time.monotonic() - begin
        print(f"     done in {self.seconds[what]:.1f} s", flush=True)

    def tell(self, text: str) -> None:
        """Say something, indented under its step."""
        for line in text.rstrip().splitlines():
            print(f"     {line}", flush=True)

    def require(self, holds: bool, claim: str) -> None:
        """Say a claim that holds. Raises: StoryError when it does not."""
        if not holds:
            raise StoryError(claim)
        print(f"     ✔ {claim}", flush=True)

    def sum_up(self) -> None:
        """Say how long each step took, and all of them."""
        for what, seconds in self.seconds.items():
            print(f"  {seconds:6.1f} s  {what}")
        print(f"  {sum(self.seconds.values()):6.1f} s  in all")
