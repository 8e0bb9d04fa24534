"""The images of KubeVirt's components: its programs, and Debian's libvirt and QEMU, in one tree.

Owns: what is in lab/kubevirt/ and how it becomes archives. One tree for all components, since a lab machine unpacks
each layer by emulation. What of KubeVirt is no Go comes from its module, too.
"""

from __future__ import annotations

import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

from aoe_lab import process
from aoe_lab.cachedir import CHECKOUT, built, content_key
from aoe_lab.container_images import Configuration, write_archive
from aoe_lab.image import DROPPED_PATHS, debian_sources
from aoe_lab.image import RELEASE as HOST_RELEASE
from aoe_lab.kubernetes.programs import KUBEVIRT, ensure_programs, source_of

RECIPE = CHECKOUT / "lab" / "kubevirt"
RELEASE = "trixie"
"""KubeVirt 1.7 asks more of libvirt and QEMU than Debian 12's can do."""
REGISTRY = "docker.io/kubevirt"
COMPONENTS = {"1001": ("virt-operator", "virt-api", "virt-controller"), "": ("virt-handler", "virt-launcher")}
"""User → the components that run as him. runAsNonRoot wants a number."""
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_SOURCES = {
    "cmd/virt-launcher/qemu.conf": "etc/libvirt/qemu.conf",
    "cmd/virt-launcher/virtqemud.conf": "etc/libvirt/virtqemud.conf",
    "cmd/virt-launcher/nsswitch.conf": "etc/nsswitch.conf",
    "cmd/virt-launcher/node-labeller/node-labeller.sh": "usr/bin/node-labeller.sh",
}
"""Path in KubeVirt's module → path in the tree."""
_DISK_PROGRAM = "cmd/container-disk-v2alpha/main.c"
"""What the pod runs by which a volume comes to the node of a running machine."""
_MANIFESTS = ("manifests/generated/kv-resource.yaml", "manifests/generated/rbac-operator.authorization.k8s.yaml.in")
_QEMU = 107
_NONROOT = 1001
# CAP_NET_BIND_SERVICE, permitted and effective. Source: struct vfs_cap_data, include/uapi/linux/capability.h.
_MAY_BIND_LOW_PORTS = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """What a containerd is to have."""

    archives: dict[str, Path]
    """Name → OCI archive."""
    tags: dict[str, str]
    """Further name → the image's own."""


def name_of(component: str) -> str:
    """Return the name that virt-operator gives a component's image."""
    return f"{REGISTRY}/{component}:{KUBEVIRT.version}"


def ensure_images() -> Images:
    """Return the images of all components, built if the cache lacks them (minutes)."""
    programs, sources = ensure_programs((KUBEVIRT,)), ensure_sources()

    def build(place: Path) -> None:
        tree = place / "tree"
        _make_tree(tree, programs, sources)
        for user, components in COMPONENTS.items():
            configuration = Configuration(name=name_of(components[0]), user=user, environment=ENVIRONMENT)
            write_archive(tree, configuration, place / f"{components[0]}.tar")
        shutil.rmtree(tree)

    key = content_key(RECIPE, Path(__file__), sources, *programs.values(), RELEASE)
    place = built("kubevirt-images", key, f"building KubeVirt's images ({KUBEVIRT.version})", build)
    return Images(
        archives={name_of(first): place / f"{first}.tar" for first, *_ in COMPONENTS.values()},
        tags={name_of(one): name_of(first) for first, *rest in COMPONENTS.values() for one in rest},
    )


def ensure_sources() -> Path:
    """Return a directory with the files of KubeVirt's module that its images and its installation need."""

    def build(place: Path) -> None:
        source = source_of(KUBEVIRT.versioned, KUBEVIRT.source)
        for path in (*_SOURCES, _DISK_PROGRAM, *_MANIFESTS):
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes((source / path).read_bytes())

    key = content_key(KUBEVIRT.source, repr((_SOURCES, _DISK_PROGRAM, _MANIFESTS)))
    return built("kubevirt-sources", key, "fetching KubeVirt's manifests", build)


def manifests(namespace: str) -> tuple[str, ...]:
    """Return KubeVirt's own definition and the rights of its operator, as YAML."""
    place = ensure_sources()
    return tuple((place / path).read_text().replace("{{.Namespace}}", namespace) for path in _MANIFESTS)


def _make_tree(tree: Path, programs: dict[str, Path], sources: Path) -> None:
    packages = [line for line in (RECIPE / "packages.txt").read_text().splitlines() if not line.startswith("#")]
    lines = [
        line.replace(f" {HOST_RELEASE} ", f" {RELEASE} ") for line in debian_sources() if f" {HOST_RELEASE} " in line
    ]
    process.run(
        [
            "mmdebstrap",
            "--variant=minbase",
            "--aptopt=APT::Install-Recommends \"false\"",
            *(f"--dpkgopt=path-exclude={path}" for path in DROPPED_PATHS),
            f"--include={','.join(packages)}",
            RELEASE,
            tree,
            *lines,
        ],
        env={"SOURCE_DATE_EPOCH": "1700000000"},
        timeout_s=1800,
    )  # fmt: skip
    for name, program in programs.items():
        shutil.copy2(program, tree / "usr" / "bin" / name)
    disk_program = tree / "usr" / "bin" / "container-disk"
    process.run(["gcc", "-static", "-O2", "-o", disk_program, sources / _DISK_PROGRAM], timeout_s=120)
    os.setxattr(tree / "usr" / "bin" / "virt-launcher-monitor", "security.capability", _MAY_BIND_LOW_PORTS)
    for source, target in _SOURCES.items():
        shutil.copyfile(sources / source, tree / target)
    (tree / "usr" / "bin" / "node-labeller.sh").chmod(0o755)
    (tree / "usr" / "lib" / "libvirt").mkdir(parents=True, exist_ok=True)
    shutil.copy2(tree / "usr" / "sbin" / "libvirtd", tree / "usr" / "lib" / "libvirt" / "virtqemud")
    shutil.copyfile(RECIPE / "virtqemud", tree / "usr" / "sbin" / "virtqemud")
    (tree / "usr" / "sbin" / "virtqemud").chmod(0o755)
    # The launcher is the user qemu, and reads them.
    for path in (tree / "etc" / "libvirt", *(tree / "etc" / "libvirt").rglob("*")):
        path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
    # Relative, as elsewhere: virt-handler goes through the launcher's by /proc/PID/root, where Debian's leads it back
    # to its own, and a machine that is to move finds no socket there.
    (tree / "var" / "run").unlink()
    (tree / "var" / "run").symlink_to("../run")
    _add_user(tree, "qemu", _QEMU)
    _add_user(tree, "nonroot", _NONROOT)


def _add_user(tree: Path, name: str, number: int) -> None:
    for file, line in (
        ("passwd", f"{name}:x:{number}:{number}::/:/usr/sbin/nologin"),
        ("group", f"{name}:x:{number}:"),
    ):
        with (tree / "etc" / file).open("a") as lines:
            lines.write(f"{line}\n")
