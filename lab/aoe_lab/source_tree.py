"""The project's code as one archive for the machines, compiled here, since an emulated processor compiles slowly.

Owns: which files go and where they land. Byte code is made with unchecked hashes: it is used without looking at the
source, so a file edited by hand on a machine has no effect until its __pycache__ is removed.
"""

from __future__ import annotations

import io
import os
import py_compile
import sys
import tarfile
from typing import TYPE_CHECKING

from aoe_lab.cachedir import CHECKOUT, cache_root, content_key
from aoe_lab.tools_disk import MACHINE_PYTHON

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TREES = ("csi", "core", "operator", "lab", "tests")
FILES = ("pyproject.toml",)
LANDS_AT = "/opt/aoe-csi/src"
#: Unpacked beside the old tree and swapped in, so that a program started meanwhile sees one or the other; written out,
#: so that a power cut does not bring the old one back. The old tree goes while nobody waits.
UNPACK = (
    f"rm -rf {LANDS_AT}.new {LANDS_AT}.old && mkdir {LANDS_AT}.new && tar -xz -C {LANDS_AT}.new"
    f" && mv {LANDS_AT} {LANDS_AT}.old && mv {LANDS_AT}.new {LANDS_AT} && sync -f {LANDS_AT}"
    f" && {{ rm -rf {LANDS_AT}.old >/dev/null 2>&1 & }}"
)


def pack() -> bytes:
    """Return the checkout's code, committed or not, as a gzipped tar archive."""
    packed = io.BytesIO()
    # Compressed, since the machine deciphers slower than it inflates.
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        for path in _files():
            name = str(path.relative_to(CHECKOUT))
            archive.add(path, arcname=name, filter=_as_root)
            if path.suffix == ".py" and sys.version_info[:2] == MACHINE_PYTHON:
                folder, _, base = name.rpartition("/")
                cached = f"{folder}/__pycache__/{base.removesuffix('.py')}.{sys.implementation.cache_tag}.pyc"
                if compiled := _compile(path, f"{LANDS_AT}/{name}"):
                    archive.add(compiled, arcname=cached, filter=_as_root)
    return packed.getvalue()


def _files() -> Iterator[Path]:
    yield from (CHECKOUT / name for name in FILES if (CHECKOUT / name).exists())
    for tree in TREES:
        for folder, subfolders, names in os.walk(CHECKOUT / tree):
            subfolders[:] = sorted(name for name in subfolders if name != "__pycache__" and not name.startswith("."))
            yield from (CHECKOUT / folder / name for name in sorted(names) if not name.endswith((".pyc", ".swp")))


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def _compile(source: Path, lands_at: str) -> Path | None:
    """Return the byte code of a file, kept by content; None if it does not compile, which the machine shall tell."""
    place = cache_root() / "bytecode"
    place.mkdir(exist_ok=True)
    compiled = place / f"{content_key(source, lands_at)}.pyc"
    if compiled.exists():
        return compiled
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    try:
        py_compile.compile(str(source), str(compiled), lands_at, doraise=True, invalidation_mode=mode)
    except py_compile.PyCompileError:
        return None
    return compiled
