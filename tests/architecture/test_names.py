"""Module names: what they may not be, and what they may not hide."""

import importlib.machinery
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
TREES = ("csi", "core", "operator", "lab", "tests")
# A drawer takes anything; a module's name says what belongs in it and what does not.
DRAWERS = {"base", "common", "helper", "helpers", "manager", "managers", "misc", "util", "utils"}


def test_no_module_is_a_drawer() -> None:
    sources = [path.relative_to(ROOT) for tree in TREES for path in (ROOT / tree).rglob("*.py")]
    assert sources
    drawers = [str(path) for path in sources for part in path.with_suffix("").parts if DRAWERS & set(part.split("_"))]
    assert drawers == []


def test_operator_stays_the_standard_librarys() -> None:
    # Started at the repository's root, Python looks there first: a package in operator/ would be found before the
    # standard library's module. The finder is asked, since the running interpreter has long imported its own.
    found = importlib.machinery.PathFinder.find_spec("operator", [str(ROOT), *sys.path])
    assert found is not None
    assert found.origin == str(Path(sysconfig.get_path("stdlib")) / "operator.py")
