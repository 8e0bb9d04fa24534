"""What containerd of a lab machine has when it first starts: all images, imported on the host and unpacked.

Emulated machines take half a minute for each import. Here the same containerd does it on the host's own processor, and
its directory goes to the machines as one archive.
"""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

from aoe_lab import process
from aoe_lab.cachedir import built, content_key
from aoe_lab.errors import LabError
from aoe_lab.image import RELEASE, debian_sources

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ARCHIVE = "containerd.tar"
DIRECTORY = "/var/lib/containerd"
START_S = 30.0
NAMESPACE = "k8s.io"
KEPT = ("--xattrs", "--xattrs-include=*")
"""Of files, beside what tar keeps anyway: capabilities are extended attributes."""
_CONFIGURATION = """
version = 2
root = "{place}/root"
state = "{place}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{place}/socket"
"""


def ensure_store(images: Mapping[str, Path], tags: Mapping[str, str]) -> Path:
    """Return the archive of a containerd's directory that has `images` (name → OCI archive).

    `tags`: further names, each with the image's own.
    """

    def build(place: Path) -> None:
        programs = _ensure_containerd()
        (place / "config.toml").write_text(_CONFIGURATION.format(place=place))
        log = place / "log"
        daemon = process.start([programs / "containerd", "--config", place / "config.toml"], output=log)
        try:
            client = (programs / "ctr", "--address", place / "socket", "--namespace", NAMESPACE, "images")
            _await(place / "socket", log)
            for archive in images.values():
                process.run([*client, "import", archive], timeout_s=900)
            for tag, name in tags.items():
                process.run([*client, "tag", name, tag], timeout_s=60)
        finally:
            daemon.terminate()
            daemon.wait()
        process.run(
            ["tar", "--create", *KEPT, f"--file={place / ARCHIVE}", f"--directory={place / 'root'}", "."], timeout_s=900
        )
        for left in (place / "root", place / "state"):
            shutil.rmtree(left)

    key = content_key(*images.values(), repr((sorted(tags.items()), KEPT)), RELEASE, _CONFIGURATION)
    return built("containerd-store", key, "importing images", build) / ARCHIVE


def _ensure_containerd() -> Path:
    def build(place: Path) -> None:
        tree = place / "tree"
        process.run(
            ["mmdebstrap", "--variant=extract", "--include=containerd", RELEASE, tree, *debian_sources()], timeout_s=300
        )
        for program in ("containerd", "ctr"):
            shutil.copy2(tree / "usr" / "bin" / program, place)
        shutil.rmtree(tree)

    return built("containerd", RELEASE, "fetching containerd", build)


def _await(socket: Path, log: Path) -> None:
    end = time.monotonic() + START_S
    while not socket.exists():
        if time.monotonic() > end:
            raise LabError(f"containerd does not start on this host:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)
