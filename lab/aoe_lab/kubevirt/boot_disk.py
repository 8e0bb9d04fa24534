"""The disk that KubeVirt's guests of a lab boot from: a boot loader, a kernel, and the RAM disk of one script.

The script is the one that libvirt's guests have (lab/guest/init); it listens on the first serial port here, the only
one that KubeVirt gives. Source: syslinux(1), which needs neither root nor a loop device for an image with FAT.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from aoe_lab import initramfs, process
from aoe_lab.cachedir import built, content_key
from aoe_lab.guest import DRIVERS, INIT
from aoe_lab.image import RELEASE, debian_sources

if TYPE_CHECKING:
    from pathlib import Path

FILE = "guest-disk.img"
SIZE_BYTES = 48 << 20
_CONFIGURATION = """\
DEFAULT guest
PROMPT 0
LABEL guest
  KERNEL kernel
  INITRD initrd
  APPEND quiet loglevel=0 mitigations=off guest.line=ttyS0
"""


def ensure_boot_disk() -> Path:
    """Return the disk as a file of SIZE_BYTES, made if the cache lacks it."""
    key = content_key(INIT, _CONFIGURATION, RELEASE, repr((DRIVERS, SIZE_BYTES)))
    return built("guest-disk", key, "building the guests' boot disk", _build) / FILE


def _build(place: Path) -> None:
    tree = place / "tree"
    process.run(
        ["mmdebstrap", "--variant=extract", "--include=busybox-static,linux-image-cloud-amd64", RELEASE, tree,
         *debian_sources()],
        timeout_s=600,
    )  # fmt: skip
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    # What the package's own script would do, were it installed and not just unpacked.
    process.run(["depmod", "--basedir", tree, kernel.name.removeprefix("vmlinuz-")], timeout_s=120)
    initramfs.write_initramfs(tree, INIT, place / "initrd", DRIVERS)
    (place / "syslinux.cfg").write_text(_CONFIGURATION)
    disk = place / FILE
    with disk.open("wb") as file:
        file.truncate(SIZE_BYTES)
    process.run(["mkfs.fat", "-F", "16", disk], timeout_s=60)
    for source, target in ((kernel, "kernel"), (place / "initrd", "initrd"), (place / "syslinux.cfg", "syslinux.cfg")):
        process.run(["mcopy", "-i", disk, source, f"::{target}"], env={"MTOOLS_SKIP_CHECK": "1"}, timeout_s=60)
    process.run(["syslinux", "--install", disk], timeout_s=60)
    shutil.rmtree(tree)
