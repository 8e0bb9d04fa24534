"""Guests' disks of a namespace: what a user of the cluster does with them, and sees."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.pods.claims import Claims

    from aoe_lab.guest import Guest, SeenDisk

LET_GO_S = 300.0


@dataclass(frozen=True, slots=True)
class GuestDisks:
    """AoEGuestDisks beside a namespace's claims."""

    claims: Claims

    def attach(self, name: str, claim: str, domain: str, *, host: str | None = None, **spec: Any) -> None:
        """Ask for a claim as a disk of a domain."""
        where = {"host": host or self.claims.cluster.hypervisors[0].name, "domain": domain}
        self._make(name, {"claim": claim, "libvirt": where, **spec})

    def plug(self, name: str, claim: str, machine: str, **spec: Any) -> None:
        """Ask for a claim as a disk of a machine of KubeVirt's."""
        self._make(name, {"claim": claim, "kubevirt": {"virtualMachine": machine}, **spec})

    def _make(self, name: str, spec: dict[str, Any]) -> None:
        head = {"apiVersion": "aoe-csi.dev/v1alpha1", "kind": "AoEGuestDisk", "metadata": {"name": name}}
        self.claims.apply({**head, "spec": spec})

    def say_where(self, name: str, **guest: str | None) -> None:
        """Change where a disk's domain is, or is to move to."""
        patch = json.dumps({"spec": {"libvirt": guest}})
        self.claims.kubectl("patch", "aoeguestdisk", name, "--type=merge", f"--patch={patch}")

    def await_said(self, name: str, type_: str, status: str, *, timeout_s: float = 300) -> str:
        """Wait for a condition of the present spec. Returns: its message. Raises: LabError with the status as it is."""
        said = {"message": ""}

        def missing() -> str | None:
            disk = self.claims.get("aoeguestdisk", name)
            seen = disk.get("status", {})
            for one in seen.get("conditions", []):
                present = one.get("observedGeneration") == disk["metadata"]["generation"]
                if present and (one["type"], one["status"]) == (type_, status):
                    said["message"] = one["message"]
                    return None
            return str(seen)

        self.claims.await_(f"{type_} {status} of AoEGuestDisk {name}", missing, timeout_s)
        return said["message"]

    def attached(self, name: str, claim: str, guest: Guest, *, timeout_s: float = 300) -> SeenDisk:
        """Ask for a claim as a disk of a running guest, and wait until its kernel has it. Raises: LabError."""
        self.attach(name, claim, guest.name)
        return self.await_attached(name, guest, timeout_s=timeout_s)

    def await_attached(self, name: str, guest: Guest, *, timeout_s: float = 300) -> SeenDisk:
        """Wait until a guest's kernel has a disk that was asked for. Raises: LabError."""
        self.await_said(name, "Attached", "True", timeout_s=timeout_s)
        (entry,) = self.claims.get("aoeguestdisk", name)["status"]["hosts"]
        return guest.await_disk(entry["grant"]["serial"])

    def detach(self, name: str, *, timeout_s: float = LET_GO_S) -> None:
        """Ask for a disk's end and wait for it."""
        words = ("--ignore-not-found", f"--timeout={timeout_s:g}s")
        self.claims.kubectl("delete", "aoeguestdisk", name, *words, timeout_s=timeout_s + 30)

    def delete_all(self) -> None:
        """End all of the namespace."""
        self.claims.kubectl("delete", "aoeguestdisks", "--all", f"--timeout={LET_GO_S:g}s", timeout_s=LET_GO_S + 30)
