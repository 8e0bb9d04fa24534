"""A read-only disk every machine mounts at /opt/aoe-csi/tools: the Python packages of REQUIREMENTS, and test programs.

Owns: what is on it (`site/` for Python, `bin/` for programs) and when it is built anew. Refuses: packages that
that file does not name, and the project's own code, which is pushed into running machines instead.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from aoe_lab import process
from aoe_lab.cachedir import CHECKOUT, built, content_key
from aoe_lab.errors import LabError
from aoe_lab.image import make_ext4

if TYPE_CHECKING:
    from collections.abc import Sequence

REQUIREMENTS = CHECKOUT / "requirements" / "machine.txt"
MOUNTED_AT = "/opt/aoe-csi/tools"
MACHINE_PYTHON = (3, 11)  # Debian 12's.
PLATFORM = "x86_64-manylinux_2_28"
CSI_SANITY = ("github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity", "v5.6.0")


def ensure_tools_disk(binaries: Sequence[Path] = ()) -> Path:
    """Return the disk for the current lock file, csi-sanity and `binaries` in bin/; built if the cache lacks it."""
    for program in ("uv", "go"):
        if shutil.which(program) is None:
            raise LabError(f"`{program}` is not on the PATH: install it; the tools disk is made with it")
    requirements = REQUIREMENTS.read_text()
    programs = (_ensure_csi_sanity(), *binaries)

    def build(place: Path) -> None:
        tree = place / "tree"
        (tree / "bin").mkdir(parents=True)
        for program in programs:
            shutil.copy2(program, tree / "bin")
        _install_packages(tree / "site")
        content_bytes = sum(path.stat().st_size + 4096 for path in tree.rglob("*"))
        make_ext4(tree, place / "tools.img", size_bytes=content_bytes * 5 // 4 + (32 << 20), features="^has_journal")
        shutil.rmtree(tree)

    key = content_key(requirements, Path(__file__), *programs)
    return built("tools", key, "building the tools disk", build) / "tools.img"


def _ensure_csi_sanity() -> Path:
    module, version = CSI_SANITY

    def build(place: Path) -> None:
        process.run(
            ["go", "install", "-trimpath", "-ldflags=-s -w", f"{module}@{version}"],
            env={"GOBIN": str(place), "CGO_ENABLED": "0"},
            timeout_s=1800,
        )

    return built("csi-sanity", version, f"building csi-sanity {version}", build) / "csi-sanity"


def _install_packages(site: Path) -> None:
    version = ".".join(map(str, MACHINE_PYTHON))
    process.run(
        [
            *("uv", "pip", "install", "--quiet", "--no-deps", "--link-mode=copy"),
            *("--target", site, "--python-version", version, "--python-platform", PLATFORM),
            *("--only-binary", ":all:", "--require-hashes", "--requirement", REQUIREMENTS),
        ],
        cwd=CHECKOUT,
        timeout_s=600,
    )
    if sys.version_info[:2] == MACHINE_PYTHON:  # Another version's byte code would be ignored there.
        process.run(
            [
                *(sys.executable, "-m", "compileall", "-q", "-j0", "--invalidation-mode=unchecked-hash"),
                *("-s", site, "-p", f"{MOUNTED_AT}/site", site),
            ],
            timeout_s=300,
        )
