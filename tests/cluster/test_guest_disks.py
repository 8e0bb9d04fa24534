"""Guests' disks on a real API server: what it refuses, what a person reads, and the stores the roles work with."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from aoe_core.errors import Busy, NotFound
from aoe_core.model import AccessMode, Transport
from aoe_core.resources import conditions, definitions
from aoe_core.resources.claims import Claim, StorageClass
from aoe_core.resources.guest_disk import (
    AoEGuestDisk,
    AoEGuestDiskStatus,
    HostGrant,
    HostStatus,
    LibvirtGuest,
    with_host,
)
from aoe_core.resources.guest_kubernetes import OUT_OF_SERVICE, KubernetesClaims, KubernetesGuestDisks, KubernetesHosts
from aoe_core.resources.kubernetes import KubernetesRegistrations
from aoe_lab.kubernetes.control_plane import ControlPlane

Spec = dict[str, Any]
NAMESPACE = "team"
GRANT = HostGrant(serial="0123abcd", writable=True, transport=Transport.AOE, address="e10.1", san="main", size="1Gi")


def define(plane: ControlPlane, namespace: str) -> None:
    """Define guests' disks, and make a namespace for some."""
    (kind,) = (one for one in definitions.KINDS if one.struct is AoEGuestDisk)
    plane.kubectl("apply", "--server-side", "-f-", stdin=definitions.text(kind))
    plane.await_defined("crd/aoeguestdisks.aoe-csi.dev")
    plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})


@pytest.fixture(scope="module")
def defined(plane: ControlPlane) -> ControlPlane:
    define(plane, NAMESPACE)
    return plane


@pytest.fixture
def disks(defined: ControlPlane) -> Iterator[KubernetesGuestDisks]:
    with KubernetesGuestDisks(defined.kubeconfig, holder="test") as opened:
        yield opened
        for one in opened.list():
            opened.put_finalizers(one, ())
    defined.kubectl("delete", "aoeguestdisks", "--all", f"--namespace={NAMESPACE}")


@pytest.fixture
def claims(defined: ControlPlane) -> Iterator[KubernetesClaims]:
    with KubernetesClaims(defined.kubeconfig, holder="test") as opened:
        yield opened
        if opened.find_claim(NAMESPACE, "data") is not None:
            # Whatever Kubernetes writes into it meanwhile.
            words = ("data", f"--namespace={NAMESPACE}", "--type=merge", '-p={"metadata":{"finalizers":null}}')
            defined.kubectl("patch", "pvc", *words)
    defined.kubectl("delete", "pvc", "--all", f"--namespace={NAMESPACE}")
    defined.kubectl("delete", "pv,storageclass", "--all")


def guest(**changed: object) -> Spec:
    return {"claim": "data", "libvirt": {"host": "hyper1", "domain": "db"}} | changed


def libvirt(**changed: str) -> Spec:
    return {"host": "hyper1", "domain": "db"} | changed


def manifest(spec: Spec, namespace: str = NAMESPACE) -> str:
    metadata = {"name": "d", "namespace": namespace}
    return json.dumps(
        {"apiVersion": "aoe-csi.dev/v1alpha1", "kind": "AoEGuestDisk", "metadata": metadata, "spec": spec}
    )


def made(plane: ControlPlane, disks: KubernetesGuestDisks, spec: Spec | None = None) -> AoEGuestDisk:
    plane.kubectl("apply", "-f-", stdin=manifest(spec or guest()))
    disk = disks.find(NAMESPACE, "d")
    assert disk is not None
    return disk


def on_host(disks: KubernetesGuestDisks, disk: AoEGuestDisk, host: str, *, granted: bool = True) -> AoEGuestDisk:
    entry = HostStatus(host=host, grant=GRANT if granted else None, here=granted, target="vdb")
    return disks.update_status(msgspec.structs.replace(disk, status=with_host(disk.status, entry)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"libvirt": libvirt()}, "spec.claim: Required value"),
        ({"claim": "data"}, "name one guest: libvirt, or kubevirt"),
        (guest(kubevirt={"virtualMachine": "vm1"}), "name one guest: libvirt, or kubevirt"),
        ({"claim": "data", "kubevirt": {}}, "spec.kubevirt.virtualMachine: Required value"),
        ({"claim": "data", "libvirt": {"host": "hyper1"}}, "spec.libvirt.domain: Required value"),
        (guest(claim="Not/A/Name"), "spec.claim"),
        (guest(bus="ide"), "Unsupported value"),
        (guest(readonly=True), 'unknown field "spec.readonly"'),
        (guest(libvirt=libvirt(domain="a/b")), "spec.libvirt.domain"),
        (guest(libvirt=libvirt(migrateTo="hyper1")), "migrateTo is the host it is on"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "refused",
)
def test_what_must_not_be_is_refused(
    defined: ControlPlane, disks: KubernetesGuestDisks, spec: Spec, message: str
) -> None:
    refused = defined.kubectl("create", "-f-", stdin=manifest(spec), check=False)
    assert refused.code != 0, "the API server took it"
    assert message in refused.stderr
    assert disks.list() == ()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (guest(claim="other"), "a guest's disk cannot change"),
        (guest(readOnly=True), "a guest's disk cannot change"),
        (guest(bus="scsi"), "a guest's disk cannot change"),
        (guest(libvirt=libvirt(domain="web")), "a guest's disk cannot change"),
        (guest(libvirt=libvirt(host="hyper2")), "by live migration: set libvirt.migrateTo first"),
        ({"claim": "data", "libvirt": None, "kubevirt": {"virtualMachine": "vm1"}}, "a guest's disk cannot change"),
    ],
    ids=["claim", "read-only", "bus", "domain", "host", "kind"],
)
def test_what_was_decided_stays(defined: ControlPlane, disks: KubernetesGuestDisks, spec: Spec, message: str) -> None:
    made(defined, disks)
    refused = defined.kubectl("apply", "-f-", stdin=manifest(spec), check=False)
    assert refused.code != 0, "the API server took it"
    assert message in refused.stderr


def test_a_machine_of_kubevirt_s_stays_the_guest(defined: ControlPlane, disks: KubernetesGuestDisks) -> None:
    made(defined, disks, {"claim": "data", "kubevirt": {"virtualMachine": "vm1"}})
    for changed in ({"kubevirt": {"virtualMachine": "vm2"}}, {"kubevirt": None, "libvirt": libvirt()}):
        refused = defined.kubectl(
            "patch", "aoeguestdisk/d", f"-n{NAMESPACE}", "--type=merge", f"-p={json.dumps({'spec': changed})}",
            check=False,
        )  # fmt: skip
        assert refused.code != 0, "the API server took it"
        assert "a guest's disk cannot change" in refused.stderr


def test_a_guest_moves_to_a_host_that_is_granted_and_to_one_at_a_time(
    defined: ControlPlane, disks: KubernetesGuestDisks
) -> None:
    disk = on_host(disks, made(defined, disks), "hyper1")
    moves = guest(libvirt=libvirt(migrateTo="hyper2"))
    defined.kubectl("apply", "-f-", stdin=manifest(moves))
    elsewhere = guest(libvirt=libvirt(migrateTo="hyper3"))
    refused = defined.kubectl("apply", "-f-", stdin=manifest(elsewhere), check=False)
    assert "a guest moves to one host at a time" in refused.stderr
    there = guest(libvirt=libvirt(host="hyper2"))
    for granted in (None, False):
        disk = disks.find(NAMESPACE, "d") or disk
        if granted is not None:
            on_host(disks, disk, "hyper2", granted=granted)
        refused = defined.kubectl("apply", "-f-", stdin=manifest(there), check=False)
        assert "by live migration" in refused.stderr
    on_host(disks, disks.find(NAMESPACE, "d") or disk, "hyper2")
    defined.kubectl("apply", "-f-", stdin=manifest(there))
    moved = disks.find(NAMESPACE, "d")
    assert moved is not None
    assert moved.spec.libvirt == LibvirtGuest(host="hyper2", domain="db")


def test_a_call_off_is_a_move_forgotten(defined: ControlPlane, disks: KubernetesGuestDisks) -> None:
    made(defined, disks, guest(libvirt=libvirt(migrateTo="hyper2")))
    defined.kubectl("apply", "-f-", stdin=manifest(guest()))
    defined.kubectl("apply", "-f-", stdin=manifest(guest(libvirt=libvirt(migrateTo="hyper3"))))


def test_a_table_says_where_it_is_and_what_is_wrong(defined: ControlPlane, disks: KubernetesGuestDisks) -> None:
    disk = on_host(disks, made(defined, disks), "hyper1")
    said = conditions.put(
        (), "Attached", holds=False, reason="NotFound", message="domain db is not on host hyper1", generation=1, now_s=0
    )
    status = msgspec.structs.replace(disk.status, guest="hyper1/db", serial="0123abcd", size="1Gi", conditions=said)
    disks.update_status(msgspec.structs.replace(disk, status=status))
    head, line = defined.kubectl("get", "aoeg", f"-n{NAMESPACE}", "-owide").stdout.splitlines()
    assert head.split() == ["NAME", "ATTACHED", "CLAIM", "GUEST", "SIZE", "TROUBLE", "TARGET", "SERIAL", "HOSTS", "AGE"]
    for shown in ("False", "data", "hyper1/db", "1Gi", "domain db is not on host hyper1", "vdb", "0123abcd"):
        assert shown in line
    explained = defined.kubectl("explain", "aoeguestdisk.spec.libvirt").stdout
    assert "live migration" in explained


def test_a_status_is_written_over_what_was_read(defined: ControlPlane, disks: KubernetesGuestDisks) -> None:
    stale = made(defined, disks)
    status = AoEGuestDiskStatus(
        observed_generation=1,
        volume="csi-0123456789abcdef0123456789abcdef",
        mode=AccessMode.SINGLE_NODE_WRITER,
        hosts=(HostStatus(host="hyper1", grant=GRANT),),
        domain_uuid="f1a3c1de-0000-4000-8000-000000000001",
    )
    written = disks.update_status(msgspec.structs.replace(stale, status=status))
    assert written.status == status
    assert disks.find(NAMESPACE, "d") == written
    assert written.metadata.generation == stale.metadata.generation
    with pytest.raises(Busy):
        disks.update_status(stale)
    with pytest.raises(Busy):
        disks.put_finalizers(stale, ("aoe-csi.dev/a",))
    assert disks.list() == (written,)


def test_finalizers_are_put_beside_what_others_have_written(defined: ControlPlane, disks: KubernetesGuestDisks) -> None:
    made(defined, disks)
    defined.kubectl("annotate", "aoeg", "d", f"-n{NAMESPACE}", "someone.else/says=this")
    held = disks.put_finalizers(disks.list()[0], ("aoe-csi.dev/a", "guests.aoe-csi.dev/hyper1"))
    assert held.metadata.annotations["someone.else/says"] == "this"
    defined.kubectl("delete", "aoeg", "d", f"-n{NAMESPACE}", "--wait=false")
    going = disks.find(NAMESPACE, "d")
    assert going is not None
    assert going.metadata.deletion_timestamp is not None
    disks.put_finalizers(going, ())
    assert disks.find(NAMESPACE, "d") is None
    with pytest.raises(NotFound):
        disks.put_finalizers(going, ())
    with pytest.raises(NotFound):
        disks.update_status(going)


def test_another_of_the_name_is_not_taken_for_the_first(defined: ControlPlane, disks: KubernetesGuestDisks) -> None:
    first = made(defined, disks)
    defined.kubectl("delete", "aoeg", "d", f"-n{NAMESPACE}")
    second = made(defined, disks)
    assert first.metadata.uid != second.metadata.uid
    with pytest.raises((Busy, NotFound)):
        disks.update_status(first)
    with pytest.raises((Busy, NotFound)):
        disks.put_finalizers(first, ("aoe-csi.dev/a",))
    assert disks.list() == (second,)


CLASSES = """
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: waits}
provisioner: aoe-csi.dev
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: at-once}
provisioner: aoe-csi.dev
"""
CLAIM = f"""
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: data, namespace: {NAMESPACE}}}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: waits
  volumeMode: Block
  resources: {{requests: {{storage: 1Gi}}}}
"""
VOLUME = f"""
apiVersion: v1
kind: PersistentVolume
metadata: {{name: pv}}
spec:
  accessModes: [ReadWriteOnce]
  capacity: {{storage: 1Gi}}
  storageClassName: waits
  volumeMode: Block
  claimRef: {{namespace: {NAMESPACE}, name: data, uid: UID}}
  csi: {{driver: aoe-csi.dev, volumeHandle: csi-0123456789abcdef0123456789abcdef, readOnly: true}}
"""


def test_a_claim_and_its_volume_are_read_as_they_are(defined: ControlPlane, claims: KubernetesClaims) -> None:
    defined.kubectl("create", "-f-", stdin=CLASSES + "---" + CLAIM)
    assert claims.find_class("unknown") is None
    waits, at_once = (claims.find_class(name) for name in ("waits", "at-once"))
    assert waits == StorageClass(name="waits", provisioner="aoe-csi.dev", waits_for_consumer=True)
    assert at_once is not None
    assert not at_once.waits_for_consumer
    assert claims.find_claim(NAMESPACE, "other") is None
    assert claims.find_volume("pv") is None
    claim = claims.find_claim(NAMESPACE, "data")
    assert claim is not None
    assert (claim.bound, claim.block, claim.storage_class, claim.selected_node) == (False, True, "waits", "")
    assert not claim.deleting
    defined.kubectl("create", "-f-", stdin=VOLUME.replace("UID", claim.uid))
    volume = claims.find_volume("pv")
    assert volume is not None
    assert (volume.driver, volume.claim_uid, volume.read_only) == ("aoe-csi.dev", claim.uid, True)
    assert volume.access_modes == ("ReadWriteOnce",)
    assert volume.volume_handle == "csi-0123456789abcdef0123456789abcdef"


def test_a_claim_is_changed_over_what_was_read(defined: ControlPlane, claims: KubernetesClaims) -> None:
    defined.kubectl("create", "-f-", stdin=CLASSES + "---" + CLAIM)

    def read() -> Claim:
        claim = claims.find_claim(NAMESPACE, "data")
        assert claim is not None
        return claim

    def change(act: Callable[[Claim], None]) -> Claim:
        while True:
            seen = read()
            # Kubernetes may write into it between our look and our word.
            with suppress(Busy):
                act(seen)
                return seen

    stale = change(lambda seen: claims.select_node(seen, "hyper1"))
    assert read().selected_node == "hyper1"
    with pytest.raises(Busy):
        claims.put_claim_finalizers(stale, ())
    change(lambda seen: claims.put_claim_finalizers(seen, (*seen.finalizers, "guest-disk.aoe-csi.dev/1")))
    assert read().finalizers == ("kubernetes.io/pvc-protection", "guest-disk.aoe-csi.dev/1")
    defined.kubectl("delete", "pvc", "data", f"-n{NAMESPACE}", "--wait=false")
    assert read().deleting


def test_a_node_is_given_up_by_its_taint_or_its_absence(defined: ControlPlane) -> None:
    registrations = KubernetesRegistrations(defined.kubeconfig, "default")
    with KubernetesHosts(defined.kubeconfig, holder="test", registrations=registrations) as hosts:
        assert hosts.is_given_up("hyper1")
        defined.kubectl("create", "-f-", stdin='{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "hyper1"}}')
        try:
            assert not hosts.is_given_up("hyper1")
            defined.kubectl("taint", "node", "hyper1", f"{OUT_OF_SERVICE}=lost:NoExecute")
            assert hosts.is_given_up("hyper1")
            assert hosts.node_ids() == {}
        finally:
            defined.kubectl("delete", "node", "hyper1")
    registrations.close()
