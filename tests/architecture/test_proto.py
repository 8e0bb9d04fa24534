"""The wire formats: the protos are the published ones, and the stubs are what comes out of them."""

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "csi/aoe_csi/proto"
PUBLISHED = {
    # In the Go module github.com/container-storage-interface/spec v1.13.0.
    "csi.proto": "8c5604cb76fefff19c01cf88ebd229e4f8c88c419898b07e4914318d25d84af3",
    # pkg/apis/pluginregistration/v1/api.proto in the Go module k8s.io/kubelet v0.37.2.
    "pluginregistration.proto": "7a67a0000a1a167c155286834bc9ccb489f8bcdb394e006daba270189c272afa",
}
"""File → sha256."""


def test_the_vendored_protos_are_the_published_ones() -> None:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in PROTO.glob("*.proto")}
    assert found == PUBLISHED


def test_the_committed_stubs_are_what_make_proto_generates(tmp_path: Path) -> None:
    # --assume-old: this environment is the one to judge, whatever make would think of its age.
    subprocess.run(
        ["make", "--assume-old=.setup/venv", "proto", f"PROTO_OUT={tmp_path}", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        check=True,
        timeout=120,
    )
    generated = {path.name: path.read_bytes() for path in (tmp_path / "aoe_csi/proto").iterdir()}
    committed = {path.name: path.read_bytes() for path in PROTO.glob("*_pb2*")}
    assert sorted(generated) == sorted(committed)
    assert [name for name, content in generated.items() if committed[name] != content] == []
