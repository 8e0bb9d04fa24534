"""The programs of Kubernetes, built from their Go modules.

Owns: which there are, and their cache. A folder of modules/ is a module of ours that requires the program's: such
programs' own go.mod carry replace lines, which `go install` refuses, and which therefore stand again in ours.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aoe_lab import process
from aoe_lab.cachedir import built, content_key

if TYPE_CHECKING:
    from collections.abc import Sequence

MODULES = Path(__file__).parent / "modules"


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """Programs of a folder of modules/: program name → package."""

    name: str
    folder: str
    """Programs that share one share what it compiles; each alone would compile client-go and all below it anew."""
    packages: dict[str, str]
    link: str = ""
    """What else the linker is told; `{version}` stands for the version of `versioned`."""
    versioned: str = ""
    cgo: bool = False
    """Whether it links against the host's C libraries."""

    @property
    def source(self) -> Path:
        """The folder."""
        return MODULES / self.folder

    @property
    def version(self) -> str:
        """The version of `versioned`, as its go.mod says."""
        text = (self.source / "go.mod").read_text(encoding="utf-8")
        match = re.search(rf"^\s*(?:require )?{re.escape(self.versioned)} (v\S+)", text, re.MULTILINE)
        return match[1] if match else "v0.0.0"

    def link_flags(self) -> str:
        major, minor = self.version.lstrip("v").split(".")[:2]
        return f"-s -w {self.link.format(version=self.version, major=major, minor=minor)}".strip()


ETCD = Module(
    name="etcd", folder="etcd", packages={"etcd": "go.etcd.io/etcd/server/v3"}, versioned="go.etcd.io/etcd/server/v3"
)
_BASE = "k8s.io/component-base/version"
KUBERNETES = Module(
    name="kubernetes",
    folder="kubernetes",
    packages={
        name: f"k8s.io/kubernetes/cmd/{name}"
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl")
    },
    # Without it they call themselves v0.0.0, and refuse each other.
    link=f"-X {_BASE}.gitVersion={{version}} -X {_BASE}.gitMajor={{major}} -X {_BASE}.gitMinor={{minor}}",
    versioned="k8s.io/kubernetes",
)

_CSI = "github.com/kubernetes-csi"
SIDECARS = Module(
    name="sidecars",
    folder="kubernetes",
    packages={
        "csi-attacher": f"{_CSI}/external-attacher/v4/cmd/csi-attacher",
        "csi-resizer": f"{_CSI}/external-resizer/v2/cmd/csi-resizer",
        "csi-snapshotter": f"{_CSI}/external-snapshotter/v8/cmd/csi-snapshotter",
        "snapshot-controller": f"{_CSI}/external-snapshotter/v8/cmd/snapshot-controller",
    },
    versioned=f"{_CSI}/external-snapshotter/v8",
)
PROVISIONER = Module(
    name="provisioner",
    folder="provisioner",
    packages={"csi-provisioner": f"{_CSI}/external-provisioner/v6/cmd/csi-provisioner"},
    versioned=f"{_CSI}/external-provisioner/v6",
)
HELM = Module(
    name="helm",
    folder="kubernetes",
    packages={"helm": "helm.sh/helm/v4/cmd/helm"},
    link="-X helm.sh/helm/v4/internal/version.version={version}",
    versioned="helm.sh/helm/v4",
)

HELM_3 = Module(
    name="helm3",
    folder="helm3",
    packages={"helm": "helm.sh/helm/v3/cmd/helm"},
    link="-X helm.sh/helm/v3/internal/version.version={version}",
    versioned="helm.sh/helm/v3",
)

# Newer ones require modules that cannot be had. go.sum was KubeVirt's own at first: the checksum database lacks some of
# what it lists. Linked against Debian's libvirt-dev, whose library every later libvirt has, too.
KUBEVIRT = Module(
    name="kubevirt",
    folder="kubevirt",
    packages={
        name: f"kubevirt.io/kubevirt/cmd/{name}"
        for name in (
            *("virt-api", "virt-chroot", "virt-controller", "virt-handler", "virt-launcher", "virt-launcher-monitor"),
            *("virt-operator", "virt-tail"),
        )
    },
    versioned="kubevirt.io/kubevirt",
    cgo=True,
)


def ensure_programs(modules: Sequence[Module] = (ETCD, KUBERNETES)) -> dict[str, Path]:
    """Return program name → path, built where the cache lacks them (minutes)."""
    return {name: directory / name for module in modules for directory in [_built(module)] for name in module.packages}


def snapshot_definitions() -> Path:
    """Return the directory of the snapshot API's custom resource definitions, as the snapshotter's client has them."""

    def build(place: Path) -> None:
        definitions = source_of(f"{_CSI}/external-snapshotter/client/v8", SIDECARS.source) / "config" / "crd"
        for file in definitions.glob("snapshot.storage.k8s.io_*.yaml"):
            (place / file.name).write_bytes(file.read_bytes())

    return built("snapshot-definitions", content_key(SIDECARS.source), "fetching the snapshot API's definitions", build)


def source_of(dependency: str, source: Path) -> Path:
    """Return the directory in Go's cache of what a module requires. `source`: that module's folder."""
    with tempfile.TemporaryDirectory() as copy:
        _copy(source, Path(copy))
        process.run(["go", "mod", "download", dependency], cwd=Path(copy), timeout_s=600)
        found = process.run(["go", "list", "-m", "-f", "{{.Dir}}", dependency], cwd=Path(copy), timeout_s=60)
    return Path(found.stdout.strip())


def _copy(source: Path, place: Path) -> None:
    """Go works in a copy of a module, so that nothing is ever written to the checkout."""
    for file in source.iterdir():
        (place / file.name).write_bytes(file.read_bytes())


def _built(module: Module) -> Path:
    def build(place: Path) -> None:
        _copy(module.source, place)
        packages = list(module.packages.values())
        process.run(
            [
                "go",
                "build",
                "-mod=readonly",
                "-trimpath",
                # Nobody debugs them; that the linker drops it all spares the compiler nothing.
                "-gcflags=all=-dwarf=false",
                f"-ldflags={module.link_flags()}",
                "-o",
                f"{place}/",
                *packages,
            ],
            cwd=place,
            env={"CGO_ENABLED": "1" if module.cgo else "0"},
            timeout_s=3600,
        )
        for name, package in module.packages.items():
            # go names a program after its package, which may end in a major version.
            made = place / (
                package.split("/")[-2] if re.fullmatch(r"v\d+", package.split("/")[-1]) else package.split("/")[-1]
            )
            if made != place / name:
                made.rename(place / name)

    key = content_key(module.source, *sorted(module.packages.values()), module.link_flags())
    return built(module.name, key, f"building {module.name} {module.version}", build)
