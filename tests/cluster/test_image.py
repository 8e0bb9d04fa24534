"""The container image, as a registry would get it: what it says of itself, what is in it, and what is not."""

from __future__ import annotations

import io
import json
import stat
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from aoe_lab.container_images import REQUIREMENTS, ensure_image

if TYPE_CHECKING:
    from pathlib import Path

LARGEST_BYTES = {"aoe-csi": 64_000_000, "aoe-csi-guests": 84_000_000}
PYTHON_3_11 = (3495).to_bytes(2, "little") + b"\r\n"
"""What a compiled file of Python 3.11 begins with (importlib._bootstrap_external)."""
MACHINES = {"amd64": 62, "arm64": 183}
"""EM_X86_64 and EM_AARCH64 (elf.h)."""
DEBIAN = {
    "libc6",
    "libexpat1",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libssl3",
    "python3.11-minimal",
    "zlib1g",
}


@dataclass(frozen=True, slots=True)
class Image:
    """An OCI archive with one layer."""

    name: str
    architecture: str
    archive: Path
    config: dict[str, Any]
    files: dict[str, tarfile.TarInfo]
    bill: dict[str, Any]
    heads: dict[str, bytes]
    """File → what it begins with."""
    machines: dict[str, int]
    """Program or shared object → e_machine of its ELF header (elf(5))."""


@pytest.fixture(
    scope="module",
    params=[
        ("aoe-csi", "amd64"),
        ("aoe-csi-guests", "amd64"),
        pytest.param(("aoe-csi", "arm64"), marks=pytest.mark.long),
        pytest.param(("aoe-csi-guests", "arm64"), marks=pytest.mark.long),
    ],
    ids="-".join,
)
def image(request: pytest.FixtureRequest) -> Image:
    name, architecture = request.param
    archive = ensure_image(architecture, name)
    with tarfile.open(archive) as tar:

        def blob(digest: str) -> bytes:
            member = tar.extractfile(f"blobs/{digest.replace(':', '/')}")
            assert member is not None
            return member.read()

        (listed,) = json.loads(_read(tar, "index.json"))["manifests"]
        manifest = json.loads(blob(listed["digest"]))
        (layer,) = manifest["layers"]
        config = json.loads(blob(manifest["config"]["digest"]))
        with tarfile.open(fileobj=io.BytesIO(blob(layer["digest"]))) as tree:
            files = {member.name.removeprefix("./").lstrip("/"): member for member in tree.getmembers()}
            listed = next(one for one in files.values() if one.name.endswith("usr/share/aoe-csi/bom.cdx.json")).name
            bill = json.loads(_read(tree, listed))
            heads = {path: _head(tree, one) for path, one in files.items() if one.isfile()}
    machines = {
        path: int.from_bytes(head[18:20], "little") for path, head in heads.items() if head.startswith(b"\x7fELF")
    }
    return Image(name, architecture, archive, config, files, bill, heads, machines)


def _head(tar: tarfile.TarFile, file: tarfile.TarInfo) -> bytes:
    member = tar.extractfile(file)
    assert member is not None
    return member.read(20)


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    member = tar.extractfile(name)
    assert member is not None
    return member.read()


def test_it_is_small_and_says_what_it_is(image: Image) -> None:
    assert image.archive.stat().st_size < LARGEST_BYTES[image.name]
    assert (image.config["architecture"], image.config["os"]) == (image.architecture, "linux")
    assert set(image.machines.values()) == {MACHINES[image.architecture]}
    assert {"usr/bin/python3.11", "usr/bin/nsenter"} <= image.machines.keys()
    assert [name for name in image.machines if "/grpc/" in name]
    bindings = [name for name in image.files if name.endswith("dist-packages/libvirt.py")]
    assert len(bindings) == (image.name == "aoe-csi-guests")
    assert image.files["var/run"].linkname == "/run"
    labels = image.config["config"]["Labels"]
    assert labels["org.opencontainers.image.title"] == image.name
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert {"org.opencontainers.image.version", "org.opencontainers.image.description"} <= labels.keys()


def test_python_finds_all_of_it_compiled(image: Image) -> None:
    """Else each process would compile it at each start, where nothing can be kept."""
    sources = [
        path
        for path in image.files
        if path.startswith(("opt/aoe-csi/lib/", "usr/lib/python3")) and path.endswith(".py")
    ]
    assert len(sources) > 1000
    for path in sources:
        place, _, name = path.rpartition("/")
        assert image.heads.get(f"{place}/__pycache__/{name[:-3]}.cpython-311.pyc", b"")[:4] == PYTHON_3_11, path


def test_nobody_in_it_is_root_who_is_not_told_to_be(image: Image) -> None:
    assert image.config["config"]["User"] == "65532:65532"
    privileged = [
        name for name, one in image.files.items() if one.isfile() and one.mode & (stat.S_ISUID | stat.S_ISGID)
    ]
    assert privileged == []


def test_its_bill_has_all_that_is_in_it(image: Image) -> None:
    named = {(one["name"], one["version"]) for one in image.bill["components"]}
    pins = [line.split(" ")[0].split("==") for line in REQUIREMENTS.read_text().splitlines() if "==" in line]
    assert len(pins) > 5
    assert {(name, version) for name, version in pins} <= named
    assert {name for name, _ in named} >= DEBIAN
    assert all(f"arch={image.architecture}" in one["purl"] or "arch=all" in one["purl"]
               for one in image.bill["components"] if one["purl"].startswith("pkg:deb/"))  # fmt: skip


def test_our_programs_are_in_it_and_fakes_and_tools_are_not(image: Image) -> None:
    assert "opt/aoe-csi/lib/aoe_core/volumes/engine.py" in image.files
    assert not [name for name in image.files if "/aoe_core/fakes" in name or "/aoe_lab" in name]
    programs = {name for name in image.files if name.startswith(("bin/", "sbin/", "usr/bin/", "usr/sbin/"))}
    assert programs == {f"usr/bin/{name}" for name in ("aoe-csi", "aoe-operator", "python3.11", "nsenter")}
