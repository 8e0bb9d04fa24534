"""The examples of the documentation, so that what is tried is what is printed there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from aoe_lab.cachedir import CHECKOUT

PAGES = (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md")))


@dataclass(frozen=True, slots=True)
class Example:
    """A fenced block of a page. `place`: page and line; `heading`: what it stands under, without its number."""

    place: str
    heading: str
    text: str

    def resources(self) -> list[dict[str, Any]]:
        """Return the Kubernetes objects of a YAML example, for a namespace of a test's own; none where it is of
        something else, as a chart's values."""
        found = [one for one in yaml.safe_load_all(self.text) if "apiVersion" in one]
        for one in found:
            one["metadata"].pop("namespace", None)
        return found


def examples(language: str, page: str = "*") -> list[Example]:
    """Return the blocks of a language in the documentation, or on one page of it (`kubernetes.md`)."""
    found = []
    for path in PAGES:
        if page not in ("*", path.name):
            continue
        text = path.read_text(encoding="utf-8")
        for block in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, block.start()) + 1
            heading = re.findall(r"^##+ (?:\d+\. )?(.+)$", text[: block.start()], re.MULTILINE)
            found.append(Example(f"{path.relative_to(CHECKOUT)}:{line}", heading[-1] if heading else "", block[1]))
    return found


def documented(page: str, heading: str) -> list[dict[str, Any]]:
    """Return the Kubernetes objects that a page prints under a heading, of all its examples there."""
    found = [one for example in examples("yaml", page) if example.heading == heading for one in example.resources()]
    assert found, f"{page} has no example under {heading!r}"
    return found
