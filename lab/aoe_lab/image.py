"""The system every lab machine boots: a Debian tree as an ext4 image, with kernel, RAM disk and login key beside it.

Owns: what is in `lab/image/` and how it becomes files in the cache. Refuses: mirrors of its own: packages come from
where the host's apt takes Debian from.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aoe_lab import initramfs, process
from aoe_lab.cachedir import CHECKOUT, built, content_key
from aoe_lab.topology import Role

if TYPE_CHECKING:
    from aoe_lab.topology import MachineSpec

RELEASE = "bookworm"
ROOT_SIZE_BYTES = 8 << 30  # Sparse; what a machine writes goes to its overlay.
RECIPE = CHECKOUT / "lab" / "image"
DROPPED_PATHS = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """Paths of a built image; `key` is the private half of the login key baked into it."""

    root: Path
    kernel: Path
    initramfs: Path
    key: Path


def ensure_image(*, hypervisor: bool = False) -> Image:
    """Return the image for the current recipe, built if the cache lacks it (a minute or two).

    `hypervisor`: the one with libvirt and an emulator in it, which is twice as large.
    """
    more = RECIPE / "hypervisor-packages.txt"
    parts = [path for path in sorted(RECIPE.iterdir()) if path != more]
    recipe = content_key(*parts, Path(__file__), Path(initramfs.__file__), *([more] if hypervisor else []))
    lists = [RECIPE / "packages.txt", *([more] if hypervisor else [])]
    kind, what = ("hypervisor-image", "hypervisors' image") if hypervisor else ("image", "machine image")
    place = built(kind, recipe, f"building the {what}", lambda empty: _build(empty, lists))
    return Image(
        root=place / "root.img", kernel=place / "kernel", initramfs=place / "initramfs", key=place / "login-key"
    )


def image_of(spec: MachineSpec) -> Image:
    """Return the image a machine boots."""
    return ensure_image(hypervisor=spec.role is Role.HYPERVISOR)


def _build(place: Path, lists: list[Path]) -> None:
    key = place / "login-key"
    process.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "aoe-lab", "-f", key], timeout_s=30)
    tree = place / "tree"
    lines = [line for one in lists for line in one.read_text().splitlines()]
    packages = [line for line in lines if line and not line.startswith("#")]
    process.run(
        [
            "mmdebstrap",
            "--variant=minbase",
            *(f"--dpkgopt=path-exclude={path}" for path in DROPPED_PATHS),
            f"--include={','.join(packages)}",
            f"--customize-hook={RECIPE / 'customize.sh'}",
            RELEASE,
            tree,
            *debian_sources(),
        ],
        # INITRD=No is how Debian's kernel packages are told that nobody wants their initramfs.
        env={"INITRD": "No", "SOURCE_DATE_EPOCH": "1700000000"},
        timeout_s=1800,
    )
    login = tree / "root" / ".ssh"
    login.mkdir(mode=0o700, exist_ok=True)
    shutil.copyfile(key.with_suffix(".pub"), login / "authorized_keys")
    (vmlinuz,) = (tree / "boot").glob("vmlinuz-*")
    initramfs.unpack_kernel(vmlinuz, place / "kernel")
    initramfs.write_initramfs(tree, RECIPE / "init", place / "initramfs")
    make_ext4(tree, place / "root.img", size_bytes=ROOT_SIZE_BYTES)
    shutil.rmtree(tree)


def make_ext4(tree: Path, image: Path, *, size_bytes: int, features: str = "") -> None:
    """Write a directory tree as a sparse ext4 image; tables are initialised now rather than by each machine."""
    with image.open("wb") as file:
        file.truncate(size_bytes)
    options = ["-O", features] if features else []
    tables = "lazy_itable_init=0,lazy_journal_init=0"
    process.run(["mke2fs", "-q", "-t", "ext4", "-m", "0", "-E", tables, *options, "-d", tree, image], timeout_s=300)


def debian_sources() -> tuple[str, ...]:
    """Return sources.list lines for RELEASE from the host's own apt configuration; empty: mmdebstrap's default serves.

    Source: apt-get(8), indextargets.
    """
    targets = process.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)|$(CODENAME)|$(COMPONENT)", "Created-By: Packages"],
        timeout_s=30,
        check=False,
    )
    lines = set()
    for target in targets.stdout.split():
        address, codename, component = target.split("|")
        if codename in {RELEASE, f"{RELEASE}-updates", f"{RELEASE}-security"}:
            lines.add(f"deb {address} {codename} {component}")
    return tuple(sorted(lines)) if any(f" {RELEASE} " in line for line in lines) else ()
