"""What a user of a cluster does with claims: kubelet, scheduler and sidecars are the real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .claims import Claims, sleeping
from .writer import Writer

if TYPE_CHECKING:
    from aoe_lab.kubernetes.cluster import Cluster


def test_ext4_and_moving_between_nodes(cluster: Cluster, claims: Claims) -> None:
    first, second, *_ = (machine.name for machine in (*cluster.compute_machines, *cluster.storage_machines))
    claims.claim("data", storage_class="thick")
    claims.pod("writer", "data", node=first)
    claims.await_running("writer")
    claims.run("writer", "echo moved > /data/file; sync")
    assert " ext4 " in claims.run("writer", "grep ' /data ' /proc/mounts").stdout
    claims.delete_pod("writer")
    claims.pod("reader", "data", node=second)
    claims.await_running("reader")
    assert claims.run("reader", "cat /data/file").stdout == "moved\n"


def test_xfs_grows_under_its_user(claims: Claims, cluster: Cluster) -> None:
    claims.claim("data", storage_class="thin-xfs", size="320Mi")
    writer = Writer.start(claims, "user", "data", cluster.compute_machines[0].name)
    assert " xfs " in claims.run("user", "grep ' /data ' /proc/mounts").stdout
    before = size_kib(claims, "user")
    grow(claims, "data", "640Mi")
    claims.await_("the file system to grow", lambda: None if size_kib(claims, "user") > before * 1.8 else "not yet")
    writer.await_more()
    assert writer.missing() == 0


def test_a_block_device_grows_under_its_user(claims: Claims, cluster: Cluster) -> None:
    claims.claim("data", block=True, size="128Mi")
    claims.pod("user", "data", block=True, node=cluster.compute_machines[0].name)
    claims.await_running("user")
    claims.run("user", "echo kept > /tmp/t; dd if=/tmp/t of=/dev/data conv=fsync 2>/dev/null")
    # In use meanwhile: each turn is read back, and the first that differs or fails ends the loop.
    in_use = (
        "i=0; while i=$((i+1)); do echo turn $i > /tmp/in; dd if=/tmp/in of=/dev/data bs=4096 seek=8 conv=sync,notrunc"
        " oflag=direct 2>/tmp/why || break; dd if=/dev/data bs=4096 skip=8 count=1 iflag=direct 2>/tmp/why"
        ' | grep -q "^turn $i$" || break; echo $i > /tmp/turns; done'
    )
    claims.run("user", f"({in_use}; echo ended at $i > /tmp/ended) >/dev/null 2>&1 &")
    grow(claims, "data", "256Mi")

    def end_is_there() -> str | None:
        done = claims.run("user", "dd if=/dev/data of=/dev/null bs=1M skip=255 count=1 2>&1", check=False)
        return None if "1+0 records in" in done.stdout else done.stdout

    claims.await_("the device to grow", end_is_there)
    before = turns(claims)
    claims.await_("its user to go on", lambda: None if turns(claims) > before else f"it is at turn {before}")
    assert claims.run("user", "cat /tmp/ended", check=False).code != 0, claims.run("user", "cat /tmp/why").stdout
    assert claims.run("user", "head -n1 /dev/data").stdout == "kept\n"


def test_a_snapshot_becomes_a_larger_claim_and_a_claim_is_cloned(claims: Claims) -> None:
    claims.claim("data", size="128Mi")
    claims.pod("writer", "data")
    claims.await_running("writer")
    claims.run("writer", "echo first > /data/file; sync")
    claims.apply(
        {
            "apiVersion": "snapshot.storage.k8s.io/v1",
            "kind": "VolumeSnapshot",
            "metadata": {"name": "taken"},
            "spec": {"volumeSnapshotClassName": "aoe-csi", "source": {"persistentVolumeClaimName": "data"}},
        }
    )

    def ready() -> str | None:
        said = claims.get("volumesnapshot", "taken").get("status", {})
        return None if said.get("readyToUse") else str(said)

    claims.await_("the snapshot", ready)
    claims.run("writer", "echo second > /data/file; sync")
    snapshot = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "taken"}
    claims.claim("restored", size="256Mi", source=snapshot)
    claims.claim("cloned", size="128Mi", source={"kind": "PersistentVolumeClaim", "name": "data"})
    claims.pod("restored", "restored")
    claims.pod("cloned", "cloned")
    claims.await_running("restored", "cloned")
    assert claims.run("restored", "cat /data/file").stdout == "first\n"
    assert claims.run("cloned", "cat /data/file").stdout == "second\n"
    assert size_kib(claims, "restored") > 1.8 * size_kib(claims, "cloned")
    claims.kubectl("delete", "volumesnapshot", "taken", "--timeout=120s", timeout_s=150)


def test_block_on_two_nodes_at_once_and_no_third_writer(claims: Claims, cluster: Cluster) -> None:
    claims.claim("shared", block=True, mode="ReadWriteMany", size="64Mi")
    names = [machine.name for machine in (*cluster.compute_machines, *cluster.storage_machines)]
    for name in names[:2]:
        claims.pod(f"on-{name}", "shared", block=True, node=name)
    claims.await_running(*(f"on-{name}" for name in names[:2]))
    write = "echo {} > /tmp/t; dd if=/tmp/t of=/dev/data oflag=direct bs=4096 conv=sync seek={} 2>/dev/null"
    for number, name in enumerate(names[:2]):
        claims.run(f"on-{name}", write.format(name, number))
    read = "dd if=/dev/data iflag=direct bs=4096 count=2 2>/dev/null | tr -d '\\0'"
    for name in names[:2]:
        assert claims.run(f"on-{name}", read).stdout.split() == names[:2]
    claims.pod(f"on-{names[2]}", "shared", block=True, node=names[2])
    claims.await_event(f"on-{names[2]}", "is published to")
    assert claims.get("pod", f"on-{names[2]}")["status"]["phase"] == "Pending"
    exporters = cluster.storage_machines[0].run("pgrep -ax vblade").stdout.splitlines()
    assert len(exporters) == 2, exporters
    granted = claims.kubectl("get", "aoevolumes", "-ojsonpath={.items[*].status.grants[*].node}").stdout.split()
    assert sorted(granted) == sorted(names[:2])
    claims.delete_pod(f"on-{names[2]}")


def test_many_readers_of_a_restored_claim(claims: Claims, cluster: Cluster) -> None:
    claims.claim("data", size="64Mi")
    claims.pod("writer", "data")
    claims.await_running("writer")
    claims.run("writer", "echo read by many > /data/file; sync")
    claims.delete_pod("writer")
    source = {"kind": "PersistentVolumeClaim", "name": "data"}
    claims.claim("shown", size="64Mi", mode="ReadOnlyMany", source=source)
    for machine in cluster.compute_machines:
        claims.pod(f"on-{machine.name}", "shown", node=machine.name, read_only=True)
    for machine in cluster.compute_machines:
        claims.await_running(f"on-{machine.name}")
        assert claims.run(f"on-{machine.name}", "cat /data/file").stdout == "read by many\n"
        assert claims.run(f"on-{machine.name}", "echo no > /data/file", check=False).code != 0
    # Not the pod's mount alone is read-only: the exporters are, those of the nodes that read over the wire.
    exporters = cluster.storage_machines[0].run("pgrep -ax vblade").stdout.splitlines()
    assert len(exporters) == len(cluster.compute_machines)
    assert all("-r" in exporter.split() for exporter in exporters), exporters


def test_read_write_once_pod_admits_one(claims: Claims) -> None:
    claims.claim("alone", mode="ReadWriteOncePod", size="64Mi")
    claims.pod("first", "alone")
    claims.await_running("first")
    claims.pod("second", "alone")
    claims.await_event("second", "ReadWriteOncePod")
    claims.delete_pod("first")
    claims.await_running("second")


def test_groups_and_parts_of_a_volume(claims: Claims) -> None:
    claims.claim("data", size="64Mi")
    mounts = [{"name": "data", "mountPath": "/data"}, {"name": "data", "mountPath": "/part", "subPath": "a/b"}]
    claims.pod("user", "data", mounts=mounts, securityContext={"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 4242})
    claims.await_running("user")
    claims.run("user", "echo mine > /data/file; echo inner > /part/file")
    assert claims.run("user", "stat -c %g /data/file; cat /data/a/b/file").stdout.split() == ["4242", "inner"]


def test_a_volume_that_lives_as_long_as_its_pod(claims: Claims) -> None:
    claim = claim_spec("64Mi")
    content: dict[str, Any] = {
        **sleeping({"volumeMounts": [{"name": "scratch", "mountPath": "/data"}]}),
        "volumes": [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}],
    }
    claims.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "user"}, "spec": content})
    claims.await_running("user")
    claims.run("user", "echo here > /data/file; sync")
    claims.delete_pod("user")
    claims.await_("its claim to go", lambda: claims.kubectl("get", "pvc", "-o", "name").stdout or None)


def test_a_stateful_set_grows_and_shrinks(claims: Claims) -> None:
    template = {
        "metadata": {"name": "data"},
        "spec": claim_spec("64Mi"),
    }
    labels = {"app": "set"}
    claims.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": {"name": "set"},
            "spec": {
                "replicas": 1,
                "serviceName": "set",
                "podManagementPolicy": "Parallel",
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": sleeping({"volumeMounts": [{"name": "data", "mountPath": "/data"}]}),
                },
                "volumeClaimTemplates": [template],
            },
        }
    )
    claims.await_running("set-0")
    claims.kubectl("scale", "statefulset/set", "--replicas=3")
    names = [f"set-{number}" for number in range(3)]
    claims.await_running(*names)
    for name in names:
        claims.run(name, f"echo {name} > /data/name; sync")
    claims.kubectl("scale", "statefulset/set", "--replicas=1")
    claims.kubectl("wait", "--for=delete", "pod/set-1", "pod/set-2", "--timeout=180s", timeout_s=200)
    claims.kubectl("scale", "statefulset/set", "--replicas=3")
    claims.await_running(*names)
    assert [claims.run(name, "cat /data/name").stdout.strip() for name in names] == names
    claims.kubectl("delete", "statefulset", "set", "--timeout=120s", timeout_s=150)


def test_a_claim_in_use_waits_for_its_user(claims: Claims) -> None:
    claims.claim("data", size="64Mi")
    claims.pod("user", "data")
    claims.await_running("user")
    claims.kubectl("delete", "pvc", "data", "--wait=false")
    claims.run("user", "echo still here > /data/file; sync; cat /data/file")
    assert claims.get("pvc", "data")["status"]["phase"] == "Bound"
    claims.delete_pod("user")
    claims.await_("the claim to go", lambda: claims.kubectl("get", "pvc", "-o", "name").stdout or None)


def test_what_cannot_be_is_said_at_the_claim(claims: Claims, cluster: Cluster) -> None:
    claims.claim("too-large", size="9Ti", storage_class="at-once")
    claims.await_event("too-large", "takes at most")
    assert claims.get("pvc", "too-large")["status"]["phase"] == "Pending"
    claims.claim("too-large-later", size="9Ti", storage_class="thick")
    claims.pod("waits", "too-large-later")
    claims.await_event("waits", "did not have enough free storage")
    wrong = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "wrong"},
        "provisioner": "aoe-csi.dev",
        "parameters": {"pool": "thin", "colour": "blue"},
        "volumeBindingMode": "Immediate",
    }
    claims.apply(wrong)
    try:
        claims.claim("wrong", storage_class="wrong")
        claims.await_event("wrong", "colour")
    finally:
        cluster.plane.kubectl("delete", "storageclass", "wrong")
        claims.delete_pod("waits")
        claims.kubectl("delete", "pvc", "--all", "--timeout=120s", timeout_s=150)


def turns(claims: Claims) -> int:
    """Return how often a device was written and read back; the file is empty for a moment at each turn."""
    return int(claims.run("user", "cat /tmp/turns", check=False).stdout.strip() or 0)


def size_kib(claims: Claims, pod: str) -> int:
    # Without -P, the line of a device with a long name, such as a logical volume, is broken in two.
    return int(claims.run(pod, "df -kP /data | tail -n1").stdout.split()[1])


def grow(claims: Claims, claim: str, size: str) -> None:
    claims.kubectl("patch", "pvc", claim, f'-p={{"spec":{{"resources":{{"requests":{{"storage":"{size}"}}}}}}}}')


def claim_spec(size: str) -> dict[str, Any]:
    return {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "thin",
        "resources": {"requests": {"storage": size}},
    }
