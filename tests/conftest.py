"""Figures: tests say them, every run prints them, `--evidence NAME` writes them to docs/evidence/NAME.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from aoe_lab import Lab
from aoe_lab import evidence as files

if TYPE_CHECKING:
    from collections.abc import Generator

# How long an example takes says nothing on a machine that does other work.
settings.register_profile("busy machines", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machines")
_FIGURE = "figure"
"""A property of reports: they reach the summary whichever process a test ran in."""

_HERE = Path(__file__).parent
_NEED_A_LAB = ("lab", "cluster", "pods", "demo", "guests", "kubevirt")
"""Folders whose tests need a lab: its machines, or its network at least."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents and item.path.relative_to(_HERE).parts[0] in _NEED_A_LAB:
            item.add_marker(pytest.mark.lab)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--evidence", metavar="NAME", help="write the figures to docs/evidence/NAME.md")


@pytest.fixture
def evidence(request: pytest.FixtureRequest) -> files.Evidence:
    test = request.node

    def say(sentence: str) -> None:
        test.user_properties.append((_FIGURE, f"`{test.name}`: {sentence}"))

    return say


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Of a test that failed on a lab's machines say what they said, before anything is undone."""
    report = yield
    if report.failed and report.when != "teardown":
        fixtures = getattr(item, "funcargs", {}).values()
        labs = [one if isinstance(one, Lab) else getattr(one, "lab", None) for one in fixtures]
        machines = {machine.name: machine for lab in labs if isinstance(lab, Lab) for machine in lab.machines}
        report.sections += [(f"journal of {name}", machine.last_words()) for name, machine in machines.items()]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    reports = [one for kind in terminalreporter.stats.values() for one in kind if isinstance(one, pytest.TestReport)]
    # The last report of a test has what all before it have.
    told = [pair for one in reports if one.when == "teardown" for pair in one.user_properties]
    figures = [str(sentence) for name, sentence in told if name == _FIGURE]
    counts = {kind: len(terminalreporter.stats.get(kind, [])) for kind in ("passed", "failed", "error", "skipped")}
    verdict = ", ".join(f"{number} {kind}" for kind, number in counts.items() if number)
    if figures:
        terminalreporter.section("figures")
        for line in figures:
            terminalreporter.write_line(line)
    name = config.getoption("--evidence")
    if name:
        command = f"pytest {' '.join(config.invocation_params.args)}"
        passed = [report.nodeid.rpartition("::")[2] for report in terminalreporter.stats.get("passed", [])]
        path = files.write(name, command, [*figures, *(f"passed: {one}" for one in passed)], verdict)
        terminalreporter.write_line(f"written to {path}")
