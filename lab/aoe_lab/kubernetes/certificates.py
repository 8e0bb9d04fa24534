"""A cluster's certificate authority, and the identities it vouches for.

Owns: the files `<name>.crt`, `<name>.key` and `<name>.conf` (a kubeconfig) in one directory. openssl makes them.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aoe_lab import process

if TYPE_CHECKING:
    from pathlib import Path

DAYS = "365"


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """The authority whose files are in `directory`."""

    directory: Path

    @property
    def certificate(self) -> Path:
        return self.directory / "ca.crt"

    @property
    def key(self) -> Path:
        return self.directory / "ca.key"

    def create(self) -> None:
        """Make the authority, and the key that service account tokens are signed with (sa.key, sa.pub)."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", self.key, "-out", self.certificate,
                      "-subj", "/CN=aoe-lab", "-days", DAYS)  # fmt: skip
        self._openssl("genrsa", "-out", self.directory / "sa.key", "2048")
        self._openssl("rsa", "-in", self.directory / "sa.key", "-pubout", "-out", self.directory / "sa.pub")

    def issue(self, name: str, *, user: str, group: str = "", hosts: tuple[str, ...] = ()) -> None:
        """Make `<name>.crt` and `<name>.key` for a Kubernetes user; `hosts` (IP:… or DNS:…) if it also serves."""
        place = self.directory
        subject = (f"/O={group}" if group else "") + f"/CN={user}"
        self._openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", place / f"{name}.key",
                      "-out", place / f"{name}.csr", "-subj", subject)  # fmt: skip
        usage = "extendedKeyUsage=clientAuth,serverAuth\n"
        extensions = place / f"{name}.ext"
        extensions.write_text(usage + (f"subjectAltName={','.join(hosts)}\n" if hosts else ""))
        self._openssl("x509", "-req", "-in", place / f"{name}.csr", "-CA", self.certificate, "-CAkey", self.key,
                      "-CAcreateserial", "-days", DAYS, "-extfile", extensions,
                      "-out", place / f"{name}.crt")  # fmt: skip

    def kubeconfig(self, name: str, server: str) -> Path:
        """Write and return a kubeconfig that is sufficient by itself, for an identity issued before."""
        credentials = {
            "client-certificate-data": _data(self.directory / f"{name}.crt"),
            "client-key-data": _data(self.directory / f"{name}.key"),
        }
        return self._write_kubeconfig(name, server, credentials)

    def token_kubeconfig(self, name: str, server: str, token: str) -> Path:
        """The same for the bearer of a token."""
        return self._write_kubeconfig(name, server, {"token": token})

    def _write_kubeconfig(self, name: str, server: str, credentials: dict[str, str]) -> Path:
        data = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "lab", "cluster": {"server": server, "certificate-authority-data": _data(self.certificate)}}
            ],
            "users": [{"name": name, "user": credentials}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": name}}],
            "current-context": "lab",
        }
        path = self.directory / f"{name}.conf"
        path.write_text(json.dumps(data, indent=1))  # YAML is a superset of JSON.
        path.chmod(0o600)
        return path

    @staticmethod
    def _openssl(*words: str | Path) -> None:
        process.run(["openssl", *words], timeout_s=60)


def _data(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
