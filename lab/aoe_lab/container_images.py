"""Container images without a Docker daemon: OCI archives made by umoci from directory trees.

Owns: our own image's recipe (image/, requirements/image.txt and the source) and the writing of archives. `make image`
builds what a registry would get; the lab's machines import the very same file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tarfile
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import aoe_csi
from aoe_lab import process
from aoe_lab.cachedir import CHECKOUT, built, content_key
from aoe_lab.image import RELEASE, debian_sources

if TYPE_CHECKING:
    from collections.abc import Iterable

RECIPE = CHECKOUT / "image"
REQUIREMENTS = CHECKOUT / "requirements" / "image.txt"
SOURCES = (CHECKOUT / "core" / "aoe_core", CHECKOUT / "csi" / "aoe_csi", CHECKOUT / "operator" / "aoe_operator")
PLATFORMS = {"amd64": "x86_64-manylinux_2_28", "arm64": "aarch64-manylinux_2_28"}
"""Debian's and OCI's name of an architecture → uv's, for its wheels."""
DROPPED = (
    *("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian", "usr/share/bug"),
    *("usr/share/bash-completion", "usr/share/zoneinfo/right", "usr/share/zoneinfo/posix", "var/lib/apt", "var/cache"),
)
KEPT = frozenset({"python3.11", "nsenter"})
"""Debian's programs that ours need; what they run besides is the host's."""
PACKAGES = {
    "aoe-csi": ("packages.txt",),
    "aoe-csi-guests": ("packages.txt", "guests-packages.txt"),
}
"""Our images → the lists of Debian packages in them: the one of all processes, and that of libvirt's hosts."""
PROGRAM = "#!/usr/bin/python3.11\nimport sys\nfrom {module}.__main__ import main\nsys.exit(main())\n"
LIBRARY = "opt/aoe-csi/lib"
EPOCH = "2024-01-01T00:00:00Z"
"""Of every file and of the image itself, so that equal content makes equal images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What an image says of itself and of how it is run."""

    name: str
    """Repository and tag, as a pod names it."""
    entrypoint: tuple[str, ...] = ()
    user: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    architecture: str = "amd64"


def write_archive(tree: Path, configuration: Configuration, archive: Path) -> None:
    """Write a directory tree as a one-layer image in an OCI archive."""
    layout = archive.with_name(f".{archive.name}.layout")
    shutil.rmtree(layout, ignore_errors=True)
    tag = configuration.name.rpartition(":")[2]
    image = f"{layout}:{tag}"
    _umoci("init", "--layout", layout)
    _umoci("new", "--image", image)
    _umoci("insert", "--image", image, "--no-history", tree, "/")
    words = [f"--config.env={name}={value}" for name, value in configuration.environment.items()]
    words += [f"--config.label={name}={value}" for name, value in configuration.labels.items()]
    words += [f"--config.entrypoint={word}" for word in configuration.entrypoint]
    if configuration.user:
        words.append(f"--config.user={configuration.user}")
    words += [f"--architecture={configuration.architecture}", "--os=linux", f"--created={EPOCH}"]
    _umoci("config", "--image", image, *words, "--no-history")
    _umoci("gc", "--layout", layout)
    index = layout / "index.json"
    content = json.loads(index.read_text())
    # What containerd names the image by when it is imported.
    content["manifests"][0]["annotations"]["io.containerd.image.name"] = _full_name(configuration.name)
    index.write_text(json.dumps(content))
    with tarfile.open(archive, "w") as tar:
        for path in sorted(layout.rglob("*")):
            tar.add(path, path.relative_to(layout), recursive=False)
    shutil.rmtree(layout)


def ensure_image(architecture: str = "amd64", name: str = "aoe-csi") -> Path:
    """Return the OCI archive of one of our own images, with its bill of materials beside it, built if the cache lacks
    it."""
    lists = [RECIPE / one for one in PACKAGES[name]]
    key = content_key(*lists, REQUIREMENTS, Path(__file__), architecture, *(_own_key(source) for source in SOURCES))
    kind = name.replace("aoe-csi", "container-image")
    place = built(f"{kind}-{architecture}", key, f"building the image {name} ({architecture})",
                  lambda place: _build(place, architecture, name))  # fmt: skip
    return place / f"{name}-{architecture}.tar"


def image_name(name: str = "aoe-csi") -> str:
    """Return what the chart asks for by default."""
    return f"{name}:{aoe_csi.__version__}"


def _build(place: Path, architecture: str, name: str) -> None:
    tree = place / "tree"
    lines = [line for one in PACKAGES[name] for line in (RECIPE / one).read_text().splitlines()]
    packages = [line for line in lines if not line.startswith("#")]
    process.run(
        ["mmdebstrap", "--variant=extract", "--skip=cleanup/apt", f"--architectures={architecture}",
         f"--include={','.join(packages)}", RELEASE, tree, *debian_sources()],
        timeout_s=900,
    )  # fmt: skip
    bill = _debian_components(tree) + _python_components()
    for unused in DROPPED:
        shutil.rmtree(tree / unused, ignore_errors=True)
    for place_of_programs in ("bin", "sbin", "usr/bin", "usr/sbin"):
        for program in (tree / place_of_programs).iterdir():
            if program.name not in KEPT:
                program.unlink()
    library = tree / LIBRARY
    process.run(
        ["uv", "pip", "install", "--quiet", "--target", library, "--python-version", "3.11", "--python-platform",
         PLATFORMS[architecture], "--only-binary", ":all:", "--require-hashes", "--no-deps",
         "--requirement", REQUIREMENTS],
        timeout_s=600,
    )  # fmt: skip
    for source in SOURCES:
        shutil.copytree(source, library / source.name, ignore=shutil.ignore_patterns("__pycache__", "fakes"))
    _compile(tree, (library, tree / "usr/lib/python3.11", tree / "usr/lib/python3/dist-packages"))
    programs = tree / "usr" / "bin"
    for command, module in (("aoe-csi", "aoe_csi"), ("aoe-operator", "aoe_operator")):
        (programs / command).write_text(PROGRAM.format(module=module))
        (programs / command).chmod(0o755)
    # As Debian has it once base-files is configured: libvirt's client looks for its socket there.
    shutil.rmtree(tree / "var" / "run", ignore_errors=True)
    (tree / "var" / "run").symlink_to("/run")
    (tree / "etc" / "passwd").write_text("root:x:0:0:root:/:/\naoe-csi:x:65532:65532:aoe-csi:/:/\n")
    (tree / "etc" / "group").write_text("root:x:0:\naoe-csi:x:65532:\n")
    document = {
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {"component": {"type": "container", "name": name, "version": aoe_csi.__version__}},
        "components": bill,
    }  # fmt: skip
    (tree / "usr" / "share" / "aoe-csi").mkdir(parents=True)
    for target in (tree / "usr" / "share" / "aoe-csi" / "bom.cdx.json", place / f"{name}-{architecture}.cdx.json"):
        target.write_text(json.dumps(document, indent=1))
    for path in tree.rglob("*"):
        # Nobody becomes root in here who is not.
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o6000:
            path.chmod(path.stat().st_mode & 0o1777)
    _settle_times(tree)
    configuration = Configuration(
        name=image_name(name),
        environment={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": f"/{LIBRARY}", "PYTHONUNBUFFERED": "1"},
        labels={
            "org.opencontainers.image.title": name,
            "org.opencontainers.image.description": "Block storage for Kubernetes from LVM and ATA over Ethernet",
            "org.opencontainers.image.version": aoe_csi.__version__,
            "org.opencontainers.image.licenses": "Apache-2.0",
        },
        # Roles that touch a host are given root by the chart, the others need nothing.
        user="65532:65532",
        architecture=architecture,
    )
    write_archive(tree, configuration, place / f"{name}-{architecture}.tar")
    shutil.rmtree(tree)


def _compile(tree: Path, sources: Iterable[Path]) -> None:
    """Have Python's files compiled, Debian's too: that does it when a package is configured, and here none is, so that
    each process would do it at each start."""
    there = [source for source in sources if source.is_dir()]
    process.run(
        ["uv", "run", "--no-project", "--quiet", "--python", "3.11", "--",
         # pycs that are never compared with their source: its times are not kept. -s and -p: the paths in tracebacks.
         "python", "-m", "compileall", "-qq", "-j2", "-s", tree, "-p", "/", "--invalidation-mode", "unchecked-hash",
         *there],
        timeout_s=300,
    )  # fmt: skip


def _own_key(source: Path) -> str:
    files = sorted(path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return content_key(*(part for path in files for part in (str(path.relative_to(CHECKOUT)), path.read_bytes())))


def _settle_times(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        os.utime(path, (1704067200, 1704067200), follow_symlinks=False)


def _debian_components(tree: Path) -> list[dict[str, str]]:
    """Return the packages that were extracted, by the names of their archives: name_version_architecture.deb."""
    archives = sorted((tree / "var/cache/apt/archives").glob("*.deb"))
    found = [urllib.parse.unquote(archive.stem).split("_") for archive in archives]
    return [
        {"type": "library", "name": name, "version": version, "purl": f"pkg:deb/debian/{name}@{version}?arch={arch}"}
        for name, version, arch in found
    ]


def _python_components() -> list[dict[str, str]]:
    pins = [line.split(" ")[0].split("==") for line in REQUIREMENTS.read_text().splitlines() if "==" in line]
    return [
        {"type": "library", "name": name, "version": version, "purl": f"pkg:pypi/{name}@{version}"}
        for name, version in pins
    ]


def _full_name(name: str) -> str:
    """Return a name as containerd writes it out."""
    if "/" not in name:
        return f"docker.io/library/{name}"
    registry = name.partition("/")[0]
    return name if "." in registry or ":" in registry else f"docker.io/{name}"


def _umoci(*words: str | Path) -> None:
    process.run(["umoci", *words], timeout_s=600)


def main() -> int:
    """Build our own images into a directory."""
    parser = argparse.ArgumentParser(prog="python -m aoe_lab.container_images", description=__doc__)
    parser.add_argument("--architecture", choices=sorted(PLATFORMS), default="amd64")
    parser.add_argument("directory", type=Path)
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    for name in PACKAGES:
        for file in sorted(ensure_image(options.architecture, name).parent.iterdir()):
            shutil.copyfile(file, options.directory / file.name)
            sys.stdout.write(f"{options.directory / file.name}: {file.stat().st_size // 1000} kB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
