"""The wire format: csi.proto is the published one, and the stubs are what comes out of it."""

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "csi/aoe_csi/proto"
# sha256 of csi.proto in the Go module github.com/container-storage-interface/spec v1.13.0.
PUBLISHED = "8c5604cb76fefff19c01cf88ebd229e4f8c88c419898b07e4914318d25d84af3"


def test_the_vendored_proto_is_the_published_one() -> None:
    assert hashlib.sha256((PROTO / "csi.proto").read_bytes()).hexdigest() == PUBLISHED


def test_the_committed_stubs_are_what_make_proto_generates(tmp_path: Path) -> None:
    # --assume-old: this environment is the one to judge, whatever make would think of its age.
    subprocess.run(
        ["make", "--assume-old=.setup/venv", "proto", f"PROTO_OUT={tmp_path}", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        check=True,
        timeout=120,
    )
    generated = {path.name: path.read_bytes() for path in (tmp_path / "aoe_csi/proto").iterdir()}
    committed = {path.name: path.read_bytes() for path in PROTO.glob("csi_pb2*")}
    assert sorted(generated) == sorted(committed)
    assert [name for name, content in generated.items() if committed[name] != content] == []
