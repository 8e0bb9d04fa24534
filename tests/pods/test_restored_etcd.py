"""etcd put back to a backup under running pods: no grant is revoked or brought back, nothing is deleted or blanked,
what is unknown is reported; and then the runbook, to its end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .writer import Writer

if TYPE_CHECKING:
    from aoe_lab.evidence import Evidence
    from aoe_lab.kubernetes.cluster import Cluster
    from aoe_lab.machine import Machine

    from .claims import Claims

FOLLOW = "aoe-csi.dev/follow-restored"
# Tags that an AoEVolume made by hand has to repeat.
SIZE, POOL = "64Mi", "thick"


def test_a_restored_etcd_takes_nothing_back(cluster: Cluster, claims: Claims, evidence: Evidence) -> None:
    (storage,), (one, two) = cluster.storage_machines, cluster.compute_machines
    plane = cluster.plane
    for name in ("kept", "moved", "deleted"):
        claims.claim(name, size=SIZE, storage_class="at-once")
    kept = Writer.start(claims, "kept", "kept", one.name)
    before = Writer.start(claims, "moved-before", "moved", one.name)
    claims.pod("deleted", "deleted", node=two.name)
    claims.await_running("deleted")
    claims.delete_pod("deleted")
    moved, deleted = claims.volume_of("moved"), claims.volume_of("deleted")

    backup = plane.back_up()
    cluster.await_ready()
    written_before = before.acknowledged()
    claims.delete_pod("moved-before")
    Writer.start(claims, "moved-after", "moved", two.name)
    claims.kubectl("delete", "pvc", "deleted", "--timeout=120s", timeout_s=150)
    cluster.await_(lambda: logical_volumes(storage).get(deleted), "the deleted volume to be gone")
    claims.claim("made", size=SIZE, storage_class="at-once")
    Writer.start(claims, "made", "made", two.name)
    made = claims.volume_of("made")
    granted, there = live_exports(storage), logical_volumes(storage)
    assert {volume for volume, _ in granted} == {claims.volume_of("kept"), moved, made}

    plane.restore(backup)
    # As docs/runbooks.md has it, and Kubernetes too: else they go on with pods of a time that never was.
    for machine in cluster.lab.machines:
        machine.run(["systemctl", "restart", "kubelet"])

    def told() -> str | None:
        volumes = {
            name: condition(plane.kubectl("get", "aoevolume", name, "-ojson").stdout) for name in (moved, deleted)
        }
        orphans = plane.kubectl("get", "aoenodes", "-ojsonpath={.items[*].status.orphans[*].name}").stdout.split()
        good = (
            volumes[moved].get("Current") == "Restored" and volumes[deleted].get("Ready") == "Lost" and made in orphans
        )
        return None if good else f"{volumes}, orphans {orphans}"

    cluster.await_(told, "what is of the past, lost or unknown to be reported", 400)
    cluster.await_ready()
    assert live_exports(storage) == granted, "a restored backup granted or revoked something"
    assert logical_volumes(storage) == there, "a restored backup made or deleted something"
    kept.await_more()
    assert (kept.missing(), kept.restarts()) == (0, 0)

    follow(cluster, claims, moved)
    assert before.seen_by("moved-again") >= written_before
    assert int(claims.run("moved-again", "grep -c '^moved-after ' /data/log").stdout) > 3
    adopt(cluster, claims, made)
    assert int(claims.run("made-again", "grep -c '^made ' /data/log").stdout) > 3
    evidence(
        f"etcd restored: {len(granted)} live exports and {len(there)} logical volumes as before; a volume of the past"
        " held back, a deleted one Lost, a new one an orphan; followed and adopted, both have all that was written"
    )
    for pod in ("moved-again", "made-again", "kept"):
        claims.delete_pod(pod)
    claims.kubectl("delete", "pvc", "--all", "--timeout=180s", timeout_s=200)
    # The attacher keeps the PersistentVolume until it is detached.
    cluster.await_(lambda: attachment(cluster, made) or None, "the adopted volume to be detached")
    plane.kubectl("delete", "pv", made, "--timeout=120s", timeout_s=150)
    plane.kubectl("delete", "aoevolume", made, "--timeout=120s", timeout_s=150)


def follow(cluster: Cluster, claims: Claims, volume: str) -> None:
    """As docs/runbooks.md has it: the pod of the past goes; what is wished for then is what is so, and is followed."""
    claims.kubectl("delete", "pod", "moved-before", "--force", "--grace-period=0")
    bound = claims.get("pvc", "moved")["spec"]["volumeName"]
    # It names an address that is revoked: the next pod must not find it.
    cluster.await_(lambda: None if attachment(cluster, bound).endswith("going") else "still wanted", "the detachment")
    follow_spec(cluster, volume)
    cluster.await_(lambda: attachment(cluster, bound) or None, "the old attachment to be gone")
    claims.pod("moved-again", "moved", node=cluster.compute_machines[0].name)
    claims.await_running("moved-again")


def attachment(cluster: Cluster, bound: str) -> str:
    """Return the attachment of a PersistentVolume, with `going` once it is being deleted; empty when there is none."""
    items = json.loads(cluster.plane.kubectl("get", "volumeattachments", "-ojson").stdout)["items"]
    return " ".join(
        f"{one['metadata']['name']} {'going' if one['metadata'].get('deletionTimestamp') else 'there'}"
        for one in items
        if one["spec"]["source"].get("persistentVolumeName") == bound
    )


def follow_spec(cluster: Cluster, volume: str) -> None:
    """Say that what the resource says now is what is meant, and wait until it is followed."""
    (storage,), plane = cluster.storage_machines, cluster.plane
    seen = json.loads(storage.run(["cat", f"/var/lib/aoe-csi/seen/{volume}"]).stdout)
    plane.kubectl("annotate", "--overwrite", "aoevolume", volume, f"{FOLLOW}={seen['generation']}")

    def held_back() -> str | None:
        told = condition(plane.kubectl("get", "aoevolume", volume, "-ojson").stdout)
        return told.get("Current")

    cluster.await_(held_back, "the volume to be followed")
    plane.kubectl("annotate", "aoevolume", volume, f"{FOLLOW}-")


def adopt(cluster: Cluster, claims: Claims, volume: str) -> None:
    """As docs/runbooks.md has it: a volume that no resource speaks of is given one, and a PersistentVolume by hand."""
    plane = cluster.plane
    plane.kubectl("apply", "-f", "-", stdin=json.dumps(adopted(volume, cluster.storage_machines[0].name)))
    # The storage node has seen another one of this name, of a later revision it may be.
    follow_spec(cluster, volume)

    def not_ready() -> str | None:
        phase = plane.kubectl("get", "aoevolume", volume, "-ojsonpath={.status.phase}").stdout
        return None if phase == "Ready" else f"it is {phase}"

    cluster.await_(not_ready, "the adopted volume")
    claims.apply(by_hand(volume))
    claims.claim("made", size=SIZE, storage_class="", volume=volume)
    claims.pod("made-again", "made")
    claims.await_running("made-again")


def condition(volume: str) -> dict[str, str]:
    """Return condition → reason of an AoEVolume."""
    return {one["type"]: one["reason"] for one in json.loads(volume).get("status", {}).get("conditions", [])}


def live_exports(storage: Machine) -> set[tuple[str, str]]:
    """Return volume and node of each export that serves."""
    found = storage.run(
        "cd /var/lib/aoe-csi/exports; grep -l '^STATE=live' * | xargs grep -hE '^(VOLUME|NODE)='"
    ).stdout
    words = [line.partition("=")[2].strip("\"'") for line in found.splitlines()]
    return set(zip(words[::2], words[1::2], strict=True))


def logical_volumes(storage: Machine) -> dict[str, str]:
    """Return volume id → uuid of its logical volume."""
    rows = json.loads(storage.run("lvs --reportformat json -o lv_name,lv_uuid data").stdout)["report"][0]["lv"]
    return {row["lv_name"][2:]: row["lv_uuid"] for row in rows if row["lv_name"].startswith("v-")}


def adopted(volume: str, node: str) -> dict[str, Any]:
    return {
        "apiVersion": "aoe-csi.dev/v1alpha1",
        "kind": "AoEVolume",
        "metadata": {"name": volume},
        "spec": {"size": SIZE, "pool": POOL, "node": node},
    }


def by_hand(volume: str) -> dict[str, Any]:
    """Return a PersistentVolume for an AoEVolume."""
    reach = [{"matchExpressions": [{"key": "san.aoe-csi.dev/main", "operator": "In", "values": ["true"]}]}]
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "",
        "capacity": {"storage": SIZE},
        "persistentVolumeReclaimPolicy": "Retain",
        "csi": {"driver": "aoe-csi.dev", "volumeHandle": volume, "fsType": "ext4"},
        "nodeAffinity": {"required": {"nodeSelectorTerms": reach}},
    }
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume}, "spec": spec}
