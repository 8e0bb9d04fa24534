"""What tokens of storage nodes and of guests' hosts may do, and what they may not: one line for each rule of the chart.

Every attempt that is refused is made by an administrator too, who is not: the request itself is sound.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from aoe_core.resources.guest_disk import host_finalizer
from aoe_lab.kubernetes.helm import NAMESPACE, RELEASE, Helm

from .installed import STORAGE_NODES, TAKE, values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aoe_lab.kubernetes.control_plane import ControlPlane
    from aoe_lab.process import Finished

ACCOUNT, KEPT = "aoe-csi-storage", "aoe-csi.dev/storage"
GUESTS, TEAM, ON_HOST = "aoe-csi-guests", "shop", "guests.aoe-csi.dev/host1"
LONG_HOST = f"{'h' * 40}.{'x' * 40}"
"""Too long for the name of a finalizer or an annotation, which has its digest instead."""
LEFT = {"left": "host1", "left-long": LONG_HOST}
"""Disk → the host that it has left, and that has its progress there yet."""
Change = "Callable[[dict[str, Any]], object]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One request: what is read is changed and written back, or a verb of kubectl's alone."""

    what: str
    """Kind and name, or the words of kubectl; after `new` or `apply`, what is made or applied whole."""
    change: Callable[[dict[str, Any]], object] | None = None
    status: bool = False
    refused: str = ""
    """What the answer says, empty: it is let through."""

    def make(self, plane: ControlPlane, as_: str) -> Finished:
        dry = "--dry-run=server"
        if self.change is None:
            words = self.what.split()
            return plane.kubectl(*words, *([] if words[0] == "get" else [dry]), as_=as_, check=False)
        words = self.what.split()
        if words[0] in ("new", "apply"):
            content: dict[str, Any] = {}
            self.change(content)
            verb = ("create",) if words[0] == "new" else ("apply", "--server-side", "--force-conflicts")
            return plane.kubectl(*verb, dry, "-f-", stdin=json.dumps(content), as_=as_, check=False)
        content = json.loads(plane.kubectl("get", *words, "-ojson").stdout)
        self.change(content)
        subresource = ["--subresource=status"] if self.status else []
        return plane.kubectl("replace", dry, *subresource, "-f-", stdin=json.dumps(content), as_=as_, check=False)


def add_to_spec(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["spec"].update(fields)


def set_status(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.setdefault("status", {}).update(fields)


def put_metadata(field: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["metadata"].update({field: value})


def shelf(node: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.update(
        apiVersion="aoe-csi.dev/v1alpha1", kind="AoEShelf", metadata={"name": "main-150"},
        spec={"san": "main", "shelf": 150, "node": node},
    )  # fmt: skip


def lease(node: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.update(
        apiVersion="coordination.k8s.io/v1", kind="Lease",
        metadata={"name": f"aoe-csi-storage-{node}", "namespace": NAMESPACE}, spec={"holderIdentity": node},
    )  # fmt: skip


def event(namespace: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.update(
        apiVersion="v1", kind="Event", metadata={"name": "e", "namespace": namespace},
        # The API server wants both to be of one namespace.
        involvedObject={"kind": "AoEVolume", "name": "mine", "namespace": namespace},
        reason="R", message="m", type="Normal",
    )  # fmt: skip


def volume(content: dict[str, Any]) -> None:
    content.update(
        apiVersion="aoe-csi.dev/v1alpha1", kind="AoEVolume", metadata={"name": "new"},
        spec={"size": "1Gi", "pool": "thin"},
    )  # fmt: skip


OWNER = {"apiVersion": "v1", "kind": "Node", "name": "storage1", "uid": "1-2-3"}
LET_THROUGH = (
    Attempt(what="aoevolume mine", change=set_status(phase="Ready", node="storage1"), status=True),
    Attempt(what="aoesnapshot mine", change=set_status(ready=True), status=True),
    Attempt(what="aoenode storage1", change=set_status(volumes=1), status=True),
    Attempt(what="aoevolume mine", change=put_metadata("finalizers", [KEPT])),
    Attempt(what="aoesnapshot mine", change=put_metadata("finalizers", [KEPT])),
    Attempt(what="aoevolume mine", change=put_metadata("annotations", {"storage.aoe-csi.dev/progress": "x"})),
    Attempt(what="new shelf", change=shelf("storage1")),
    Attempt(what="new lease", change=lease("storage1")),
    Attempt(what="apply lease", change=lease("storage1")),
    Attempt(what="new event", change=event("default")),
    Attempt(what="get aoevolumes"),
    Attempt(what="get crd aoevolumes.aoe-csi.dev"),
)
REFUSED = (
    Attempt(what="aoevolume other", change=set_status(phase="Ready"), status=True, refused="writes the status only"),
    Attempt(what="aoesnapshot other", change=set_status(ready=True), status=True, refused="writes the status only"),
    Attempt(what="aoevolume nowhere", change=set_status(phase="Ready"), status=True, refused="writes the status only"),
    Attempt(what="aoenode storage2", change=set_status(volumes=1), status=True, refused="of its own name only"),
    Attempt(what="aoenode storage1", change=add_to_spec(unschedulable=True), refused="cannot update resource"),
    Attempt(what="aoevolume other", change=put_metadata("finalizers", [KEPT]), refused="are placed on it"),
    Attempt(what="aoesnapshot other", change=put_metadata("finalizers", [KEPT]), refused="are placed on it"),
    Attempt(what="aoesnapshot mine", change=put_metadata("labels", {"a": "b"}), refused="changes no labels"),
    Attempt(what="aoesnapshot mine", change=put_metadata("finalizers", ["a.b/c"]), refused="no finalizer but"),
    Attempt(what="aoesnapshot mine", change=put_metadata("annotations", {"a": "b"}), refused="no annotations but"),
    Attempt(what="aoesnapshot mine", change=put_metadata("ownerReferences", [OWNER]), refused="makes nobody the owner"),
    Attempt(what="aoevolume held", change=put_metadata("finalizers", [KEPT]), refused="no finalizer but"),
    Attempt(what="aoevolume held", change=put_metadata("annotations", {}), refused="no annotations but"),
    Attempt(what="aoevolume nowhere", change=add_to_spec(node="storage1"), refused="are placed on it"),
    Attempt(what="aoevolume mine", change=add_to_spec(size="2Gi"), refused="does not change it"),
    Attempt(what="aoevolume mine", change=add_to_spec(node="storage2"), refused="does not change it"),
    Attempt(
        what="aoevolume mine",
        change=add_to_spec(
            tickets=[{"node": "c", "nodeId": "c", "mode": "single-node-single-writer", "writable": True, "block": True}]
        ),
        refused="does not change it",
    ),
    Attempt(what="aoevolume mine", change=put_metadata("labels", {"a": "b"}), refused="changes no labels"),
    Attempt(what="aoevolume mine", change=put_metadata("finalizers", ["a.b/c"]), refused="no finalizer but"),
    Attempt(what="aoevolume mine", change=put_metadata("annotations", {"a": "b"}), refused="no annotations but"),
    Attempt(what="aoevolume mine", change=put_metadata("ownerReferences", [OWNER]), refused="makes nobody the owner"),
    Attempt(what="new shelf", change=shelf("storage2"), refused="for itself only"),
    Attempt(what="new lease", change=lease("storage2"), refused="its own Lease only"),
    Attempt(what="apply lease", change=lease("storage3"), refused="its own Lease only"),
    Attempt(what="new event", change=event(NAMESPACE), refused="cannot create resource"),
    Attempt(what="new volume", change=volume, refused="cannot create resource"),
    Attempt(what="delete aoevolume mine", refused="cannot delete resource"),
    Attempt(what="delete aoesnapshot mine", refused="cannot delete resource"),
    Attempt(what="delete aoenode storage1", refused="cannot delete resource"),
    Attempt(what="delete aoeshelf main-199", refused="cannot delete resource"),
    Attempt(what="aoeshelf main-199", change=put_metadata("labels", {"a": "b"}), refused="cannot update resource"),
    Attempt(what=f"get secret -n {NAMESPACE}", refused="cannot list resource"),
    Attempt(what="get secret -A", refused="cannot list resource"),
    Attempt(what="get persistentvolumes", refused="cannot list resource"),
    Attempt(what="get pvc -A", refused="cannot list resource"),
    Attempt(what="get pods -A", refused="cannot list resource"),
    Attempt(what="get nodes", refused="cannot list resource"),
    Attempt(what=f"get leases -n {NAMESPACE}", refused="cannot list resource"),
)
REFUSED_AT_ANY_RATE = (
    Attempt(what="aoenode storage1", change=add_to_spec(unschedulable=True), refused="the rest is the administrator's"),
    Attempt(what="delete aoenode storage1", refused="the rest is the administrator's"),
    Attempt(what="aoeshelf main-199", change=put_metadata("labels", {"a": "b"}), refused="neither changes nor gives"),
    Attempt(what="delete aoeshelf main-199", refused="neither changes nor gives up a claim"),
)
"""What the policies alone keep back, should somebody give the account more than the chart does."""


def grant(address: str) -> dict[str, Any]:
    return {"serial": "0123abcd", "writable": True, "transport": "aoe", "address": address, "size": "1Gi"}


def guest_disk(name: str, host: str, *, granted: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a guest's disk, and its status."""
    disk = {
        "apiVersion": "aoe-csi.dev/v1alpha1", "kind": "AoEGuestDisk",
        "metadata": {"name": name, "namespace": TEAM, "annotations": {"a": "b"}, "finalizers": ["aoe-csi.dev/cluster"]},
        "spec": {"claim": "data", "libvirt": {"host": host, "domain": "g1"}},
    }  # fmt: skip
    hosts = [{"host": host, "grant": grant("e10.1")}] if granted else []
    return disk, {"volume": "v", "mode": "single-node-writer", "guest": f"{host}/g1", "hosts": hosts}


def machine_disk(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a disk of a machine of KubeVirt's, which runs on a host of libvirt guests, and its status."""
    disk, status = guest_disk(name, "host1", granted=False)
    disk["spec"] = {"claim": "data", "kubevirt": {"virtualMachine": "vm1"}}
    return disk, {**status, "guest": "vm1", "hosts": [{"host": "host1", "here": True, "target": "vdb"}]}


def set_hosts(*hosts: dict[str, Any]) -> Callable[[dict[str, Any]], object]:
    return set_status(hosts=list(hosts))


def move(content: dict[str, Any]) -> None:
    content["spec"]["libvirt"]["migrateTo"] = "host3"


THERE = {"host": "host2", "grant": grant("e10.1")}
HERE = {"host": "host1", "grant": grant("e10.1"), "here": True, "target": "vdb"}
HOST_MAY = (
    Attempt(what=f"aoeguestdisk mine -n {TEAM}", change=set_hosts(HERE), status=True),
    Attempt(what=f"aoeguestdisk mine -n {TEAM}", change=set_status(domainUuid="1-2", size="1Gi"), status=True),
    Attempt(what=f"aoeguestdisk new -n {TEAM}", change=set_hosts({"host": "host1", "trouble": "t"}), status=True),
    Attempt(
        what=f"aoeguestdisk mine -n {TEAM}",
        change=put_metadata("finalizers", ["aoe-csi.dev/cluster", ON_HOST]),
    ),
    Attempt(
        what=f"aoeguestdisk mine -n {TEAM}",
        change=put_metadata("annotations", {"a": "b", "host1.guests.aoe-csi.dev/reconcile": "x"}),
    ),
    Attempt(what=f"aoeguestdisk left -n {TEAM}", change=put_metadata("annotations", {"a": "b"})),
    Attempt(
        what=f"aoeguestdisk coming -n {TEAM}", change=set_hosts(THERE, {"host": "host1", "here": True}), status=True
    ),
    Attempt(what="get aoeguestdisks -A"),
)
HOST_MAY_NOT = (
    Attempt(
        what=f"aoeguestdisk mine -n {TEAM}",
        change=put_metadata("annotations", {"a": "b", "host2.guests.aoe-csi.dev/reconcile": "x"}),
        refused="no annotations but",
    ),
    Attempt(
        what=f"aoeguestdisk coming -n {TEAM}",
        change=set_status(domainUuid="1-2"),
        status=True,
        refused="the host says that the guest is on",
    ),
    Attempt(
        what=f"aoeguestdisk other -n {TEAM}",
        change=set_status(domainUuid="1-2"),
        status=True,
        refused="that are on it",
    ),
    Attempt(what=f"aoeguestdisk other -n {TEAM}", change=put_metadata("finalizers", []), refused="that are on it"),
    Attempt(what=f"aoeguestdisk machine -n {TEAM}", change=set_hosts(), status=True, refused="that are on it"),
    Attempt(what=f"aoeguestdisk machine -n {TEAM}", change=put_metadata("finalizers", []), refused="that are on it"),
    Attempt(
        what=f"aoeguestdisk new -n {TEAM}",
        change=set_hosts({"host": "host1", "grant": grant("e10.2")}),
        status=True,
        refused="uses its grant",
    ),
    Attempt(
        what=f"aoeguestdisk mine -n {TEAM}",
        change=set_hosts({**HERE, "grant": grant("e10.2")}),
        status=True,
        refused="uses its grant",
    ),
    Attempt(
        what=f"aoeguestdisk mine -n {TEAM}", change=set_hosts({"host": "host1"}), status=True, refused="uses its grant"
    ),
    Attempt(
        what=f"aoeguestdisk mine -n {TEAM}",
        change=set_hosts(HERE, {"host": "host2", "here": True}),
        status=True,
        refused="nothing of other hosts",
    ),
    Attempt(
        what=f"aoeguestdisk mine -n {TEAM}", change=set_status(volume="w"), status=True, refused="the cluster role says"
    ),
    Attempt(
        what=f"aoeguestdisk mine -n {TEAM}",
        change=set_status(mode="multi-node-multi-writer"),
        status=True,
        refused="the cluster role says",
    ),
    Attempt(what=f"aoeguestdisk mine -n {TEAM}", change=move, refused="does not change it"),
    Attempt(
        what=f"aoeguestdisk mine -n {TEAM}", change=put_metadata("finalizers", [ON_HOST]), refused="no finalizer but"
    ),
    Attempt(what=f"aoeguestdisk mine -n {TEAM}", change=put_metadata("labels", {"a": "b"}), refused="no labels"),
    Attempt(what=f"aoeguestdisk mine -n {TEAM}", change=put_metadata("annotations", {}), refused="no annotations but"),
    Attempt(
        what=f"aoeguestdisk mine -n {TEAM}", change=put_metadata("ownerReferences", [OWNER]), refused="nobody the owner"
    ),
    Attempt(what=f"delete aoeguestdisk mine -n {TEAM}", refused="cannot delete resource"),
    Attempt(what="get aoevolumes", refused="cannot list resource"),
    Attempt(what="get secret -A", refused="cannot list resource"),
    Attempt(what="get pvc -A", refused="cannot list resource"),
)


def named(attempt: Attempt) -> str:
    return f"{attempt.what}-{attempt.refused}".replace(" ", "-")


@pytest.fixture(scope="module")
def rights(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The chart installed, a volume and a snapshot on each node and one on none. Returns: storage1's token's name."""
    helm = Helm(kubeconfig=plane.kubeconfig, place=tmp_path_factory.mktemp("helm"))
    plane.kubectl("create", "namespace", NAMESPACE)
    helm.upgrade(values(guests={"enabled": True}), TAKE)
    objects: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
        for name in (*STORAGE_NODES, "host1", LONG_HOST)
    ]
    for name, node in (("mine", "storage1"), ("other", "storage2"), ("nowhere", None), ("held", "storage1")):
        spec: dict[str, Any] = {"size": "1Gi", "pool": "thin", **({"node": node} if node else {})}
        of_others = {"finalizers": ["a.b/c"], "annotations": {"a": "b"}} if name == "held" else {}
        head = {"apiVersion": "aoe-csi.dev/v1alpha1", "metadata": {"name": name, **of_others}}
        objects.append({**head, "kind": "AoEVolume", "spec": spec})
        if node:
            objects.append({**head, "kind": "AoESnapshot", "spec": {"volume": name, "node": node}})
    claimed: dict[str, Any] = {}
    shelf("storage1")(claimed)
    claimed["metadata"]["name"], claimed["spec"]["shelf"] = "main-199", 199
    objects.append(claimed)
    there: dict[str, Any] = {}
    lease("storage3")(there)
    objects.append(there)
    # Not applied: what kubectl would note of it in an annotation is in the way of tests that write annotations.
    plane.kubectl("create", "-f-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    plane.kubectl("create", "namespace", TEAM)
    for disk, status in (
        guest_disk("mine", "host1"),
        guest_disk("other", "host2"),
        guest_disk("new", "host1", granted=False),
        guest_disk("left", "host2"),
        guest_disk("coming", "host2"),
        guest_disk("left-long", "host2"),
        machine_disk("machine"),
    ):
        if (former := LEFT.get(disk["metadata"]["name"])) is not None:
            word = host_finalizer(former).rpartition("/")[2]
            disk["metadata"]["annotations"][f"{word}.guests.aoe-csi.dev/reconcile"] = "{}"
        if disk["metadata"]["name"] == "coming":
            disk["spec"]["libvirt"]["migrateTo"] = "host1"
        plane.kubectl("create", "-f-", stdin=json.dumps(disk))
        plane.kubectl("patch", "aoeguestdisk", disk["metadata"]["name"], f"-n{TEAM}", "--subresource=status",
                      "--type=merge", "-p", json.dumps({"status": status}))  # fmt: skip
    yield plane.bearer(ACCOUNT, namespace=NAMESPACE, node="storage1").stem
    for name in ("mine", "other", "new", "left", "coming", "left-long", "machine"):
        plane.kubectl("patch", "aoeguestdisk", name, f"-n{TEAM}", "--type=merge", '-p={"metadata":{"finalizers":[]}}')
    plane.kubectl("delete", "namespace", TEAM, "--timeout=60s", timeout_s=90)
    for kind in ("aoevolume", "aoesnapshot"):
        plane.kubectl("patch", kind, "held", "--type=merge", '-p={"metadata":{"finalizers":[]}}')
    for kind in ("aoevolumes", "aoesnapshots", "aoeshelves", "aoenodes", "nodes"):
        plane.kubectl("delete", kind, "--all")
    helm.run("uninstall", RELEASE)
    plane.kubectl("delete", "namespace", NAMESPACE, "--timeout=60s", timeout_s=90)


@pytest.mark.parametrize("attempt", LET_THROUGH, ids=named)
def test_a_storage_node_may(plane: ControlPlane, rights: str, attempt: Attempt) -> None:
    done = attempt.make(plane, rights)
    assert done.code == 0, done.stderr


@pytest.mark.parametrize("attempt", REFUSED, ids=named)
def test_a_storage_node_may_not(plane: ControlPlane, rights: str, attempt: Attempt) -> None:
    by_admin = attempt.make(plane, "admin")
    assert by_admin.code == 0, by_admin.stderr
    done = attempt.make(plane, rights)
    assert done.code != 0
    assert attempt.refused in done.stderr


@pytest.fixture
def widened(plane: ControlPlane, rights: str) -> Iterator[str]:
    """The storage account with every right that RBAC can give. Returns: storage1's token's name."""
    plane.kubectl("create", "clusterrolebinding", "widened", "--clusterrole=cluster-admin",
                  f"--serviceaccount={NAMESPACE}:{ACCOUNT}")  # fmt: skip
    yield rights
    plane.kubectl("delete", "clusterrolebinding", "widened")


@pytest.mark.parametrize("attempt", REFUSED_AT_ANY_RATE, ids=named)
def test_a_storage_node_may_not_whatever_rbac_says(plane: ControlPlane, widened: str, attempt: Attempt) -> None:
    by_admin = attempt.make(plane, "admin")
    assert by_admin.code == 0, by_admin.stderr
    assert plane.kubectl("get", "secrets", "-A", as_=widened).code == 0
    done = attempt.make(plane, widened)
    assert done.code != 0
    assert attempt.refused in done.stderr


@pytest.mark.parametrize("attempt", [one for one in LET_THROUGH if one.change and "event" not in one.what], ids=named)
@pytest.mark.usefixtures("rights")
def test_a_token_that_is_of_no_node_may_write_nothing(plane: ControlPlane, attempt: Attempt) -> None:
    unbound = plane.bearer(ACCOUNT, namespace=NAMESPACE).stem
    assert "the token does not say which node" in attempt.make(plane, unbound).stderr


@pytest.fixture(scope="module")
def host1(plane: ControlPlane, rights: str) -> str:  # noqa: ARG001 - after the chart.
    """Return the name of host1's token."""
    return plane.bearer(GUESTS, namespace=NAMESPACE, node="host1").stem


@pytest.mark.parametrize("attempt", HOST_MAY, ids=named)
def test_a_host_of_guests_may(plane: ControlPlane, host1: str, attempt: Attempt) -> None:
    done = attempt.make(plane, host1)
    assert done.code == 0, done.stderr


def test_a_host_with_a_long_name_may_take_its_progress_off_a_disk_that_left_it(
    plane: ControlPlane,
    host1: str,
    rights: str,  # noqa: ARG001 - the chart.
) -> None:
    attempt = Attempt(what=f"aoeguestdisk left-long -n {TEAM}", change=put_metadata("annotations", {"a": "b"}))
    done = attempt.make(plane, plane.bearer(GUESTS, namespace=NAMESPACE, node=LONG_HOST).stem)
    assert done.code == 0, done.stderr
    assert attempt.make(plane, host1).code != 0


@pytest.mark.parametrize("attempt", HOST_MAY_NOT, ids=named)
def test_a_host_of_guests_may_not(plane: ControlPlane, host1: str, attempt: Attempt) -> None:
    by_admin = attempt.make(plane, "admin")
    assert by_admin.code == 0, by_admin.stderr
    done = attempt.make(plane, host1)
    assert done.code != 0
    assert attempt.refused in done.stderr


@pytest.mark.parametrize("attempt", [one for one in HOST_MAY if one.change], ids=named)
@pytest.mark.usefixtures("rights")
def test_a_token_that_is_of_no_host_may_write_nothing(plane: ControlPlane, attempt: Attempt) -> None:
    unbound = plane.bearer(GUESTS, namespace=NAMESPACE).stem
    assert "the token does not say which host" in attempt.make(plane, unbound).stderr
