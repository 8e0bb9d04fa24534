"""What a user of KubeVirt's machines does with claims, and what one sees of it on the hosts."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.documented import documented
from tests.pods.claims import DEVICE, DIRECTORY, LEFT_OVER, Claims, sleeping

from aoe_core import model
from aoe_core.model import VolumeId
from aoe_lab.kubevirt.boot_disk import FILE
from aoe_lab.kubevirt.virtual_machine import READY_S
from aoe_lab.tools_disk import MOUNTED_AT

if TYPE_CHECKING:
    from aoe_lab.kubernetes.cluster import Cluster

QEMU = 107
MACHINE = ("guests-kubernetes.md", "A machine from a claim")
ROOT = "root"
"""The disk that a documented machine boots from."""
SIZE = "64Mi"


def documented_claim() -> dict[str, Any]:
    """Return the claim of the documentation's machine, of a size and a class that the lab has."""
    claim, _ = documented(*MACHINE)
    claim["spec"]["storageClassName"] = "thin"
    claim["spec"]["resources"]["requests"]["storage"] = SIZE
    return claim


def documented_machine() -> dict[str, Any]:
    """Return the machine of the documentation."""
    _, machine = documented(*MACHINE)
    return machine


def machine_of(name: str, claim: str) -> dict[str, Any]:
    """Return the machine of the documentation under another name, and from another claim."""
    machine = documented_machine()
    machine["metadata"]["name"] = name
    (root,) = machine["spec"]["template"]["spec"]["volumes"]
    root["persistentVolumeClaim"]["claimName"] = claim
    return machine


def documented_disk() -> dict[str, Any]:
    """Return the AoEGuestDisk of the documentation, for its machine."""
    (disk,) = documented("guests-kubernetes.md", "A disk by AoEGuestDisk")
    return disk


OWN_CLAIM = documented_claim()["metadata"]["name"]
"""What the machine of all tests boots from."""


def fill(claims: Claims, claim: str, *, block: bool = True) -> None:
    """Put the guests' system on a claim: as the disk itself, or as the file that KubeVirt takes for one."""
    target = DEVICE if block else f"{DIRECTORY}/disk.img"
    used = (
        {"volumeDevices": [{"name": "data", "devicePath": DEVICE}]}
        if block
        else {"volumeMounts": [{"name": "data", "mountPath": DIRECTORY}]}
    )
    used["volumeMounts"] = [*used.get("volumeMounts", []), {"name": "tools", "mountPath": "/tools"}]
    spec = sleeping(used)
    volumes = [
        {"name": "data", "persistentVolumeClaim": {"claimName": claim}},
        {"name": "tools", "hostPath": {"path": f"{MOUNTED_AT}/bin"}},
    ]
    claims.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "fill"},
            "spec": {**spec, "volumes": volumes, "securityContext": {} if block else {"fsGroup": QEMU}},
        }
    )
    claims.await_running("fill", timeout_s=READY_S)
    owned = "" if block else f" && chown {QEMU}:{QEMU} {target}"
    claims.run("fill", f"dd if=/tools/{FILE} of={target} bs=1M conv=fsync 2>/dev/null{owned}", timeout_s=600)
    claims.delete_pod("fill")


def hot_claim(claims: Claims, name: str, *, mode: str = "ReadWriteOnce") -> str:
    """Make a claim of 128 MiB for a disk that comes and goes, bound at once; return its volume's serial."""
    claims.claim(name, size="128Mi", block=True, storage_class="at-once", mode=mode)

    def unbound() -> str | None:
        phase = claims.get("pvc", name).get("status", {}).get("phase")
        return None if phase == "Bound" else str(phase)

    claims.await_(f"claim {name} to be bound", unbound)
    return model.serial_of(VolumeId(claims.volume_of(name)))


def on_machines(cluster: Cluster) -> dict[str, set[str]]:
    """Return machine → its exports, exporters, stage records, devices, kubelet's mounts and pins, a line each."""
    return {machine.name: set(machine.run(LEFT_OVER).stdout.splitlines()) for machine in cluster.lab.machines}


def left_behind(cluster: Cluster, before: dict[str, set[str]]) -> str | None:
    """Return the lines that are on the machines now and were not before, or the other way round."""
    now = on_machines(cluster)
    return "\n".join(f"{name}: {line}" for name in now for line in now[name] ^ before[name]) or None


def shape(cluster: Cluster) -> Counter[str]:
    """Return the same lines without numbers, wherever they are: a machine that moves takes its own along."""
    return Counter(re.sub(r"[0-9a-f]+", "#", line) for lines in on_machines(cluster).values() for line in lines)


def has_plug_pods(claims: Claims) -> list[str]:
    """Return the pods by which KubeVirt brings a volume to the node of a running machine."""
    names = claims.kubectl("get", "pods", "--output=name").stdout.split()
    return [name for name in names if name.startswith("pod/hp-volume-")]


def await_no_plug_pods(claims: Claims) -> None:
    claims.await_("the plug pods to be gone", lambda: " ".join(has_plug_pods(claims)) or None, READY_S)
