"""Images that the lab's pods run: the sidecars, the sandbox, and a small system for workloads; nothing is pulled.

Each is an OCI archive in the cache, made of programs that the lab has anyway.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from aoe_lab import process
from aoe_lab.cachedir import built, content_key
from aoe_lab.container_images import Configuration, write_archive
from aoe_lab.image import RELEASE, debian_sources
from aoe_lab.kubernetes.programs import PROVISIONER, SIDECARS, ensure_programs

if TYPE_CHECKING:
    from pathlib import Path

SANDBOX = "lab.aoe-csi.dev/sandbox:1"
"""What keeps a pod's namespaces."""
WORKLOAD = "lab.aoe-csi.dev/workload:1"
"""A shell and its tools (busybox), for pods that read and write."""
PATH = "/bin:/usr/bin:/sbin:/usr/sbin"
_LINKS = (
    *("sh", "cat", "dd", "sync", "sleep", "ls", "mkdir", "rm", "sha256sum", "stat", "touch", "true", "df", "mount"),
    *("grep", "head", "tail", "tr", "echo"),
)


def sidecar_image(program: str) -> str:
    """Return the name of a sidecar's image in the lab."""
    return f"lab.aoe-csi.dev/{program}:1"


def ensure_images() -> dict[str, Path]:
    """Return image name → OCI archive, of all that a cluster of the lab needs."""
    programs = ensure_programs((PROVISIONER, SIDECARS))
    images = {sidecar_image(name): _of_program(name, program) for name, program in programs.items()}
    busybox = _busybox()
    images[SANDBOX] = _of_program("sandbox", busybox, ("/bin/busybox", "sleep", "2147483647"))
    images[WORKLOAD] = _of_program("workload", busybox, ())
    return images


def _of_program(name: str, program: Path, entrypoint: tuple[str, ...] | None = None) -> Path:
    def build(place: Path) -> None:
        tree = place / "tree"
        (tree / "bin").mkdir(parents=True)
        for directory in ("tmp", "etc", "proc", "sys", "dev", "var"):
            (tree / directory).mkdir()
        shutil.copy2(program, tree / "bin")
        for link in _LINKS if program.name == "busybox" else ():
            (tree / "bin" / link).symlink_to(program.name)
        configuration = Configuration(
            name=f"lab.aoe-csi.dev/{name}:1",
            entrypoint=(f"/bin/{program.name}",) if entrypoint is None else entrypoint,
            environment={"PATH": PATH},
        )
        write_archive(tree, configuration, place / f"{name}.tar")
        shutil.rmtree(tree)

    key = content_key(program, repr(entrypoint), repr(_LINKS))
    return built(f"image-{name}", key, f"building the image {name}", build) / f"{name}.tar"


def _busybox() -> Path:
    def build(place: Path) -> None:
        tree = place / "tree"
        process.run(
            ["mmdebstrap", "--variant=extract", "--include=busybox-static", RELEASE, tree, *debian_sources()],
            timeout_s=300,
        )
        shutil.copy2(tree / "bin" / "busybox", place / "busybox")
        shutil.rmtree(tree)

    return built("busybox", RELEASE, "fetching busybox", build) / "busybox"
