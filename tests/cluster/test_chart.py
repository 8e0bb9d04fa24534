"""The chart: rendered, refused, installed, upgraded, rolled back and removed, on a real API server."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from aoe_core.resources import guest_access
from aoe_lab.kubernetes.helm import CHART, DEPLOY, NAMESPACE, RELEASE, Helm, rendered_manifests
from aoe_lab.kubernetes.programs import HELM_3, ensure_programs, snapshot_definitions

from .installed import TAKE, values

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aoe_lab.kubernetes.control_plane import ControlPlane

VOLUME = """
apiVersion: aoe-csi.dev/v1alpha1
kind: AoEVolume
metadata: {name: kept, finalizers: [aoe-csi.dev/storage]}
spec: {size: 1Gi, pool: thin, node: storage1}
"""


def _node(*pools: str) -> dict[str, Any]:
    """Return the values of a storage node with pools."""
    return {
        "name": "storage1",
        "pools": [{"name": pool, "volumeGroup": pool} for pool in pools],
        "sans": [{"name": "main", "interface": "eth1", "shelves": [{"first": 1, "last": 2}]}],
    }


@pytest.fixture
def helm(clean: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Helm]:
    """Helm, and no release of ours when the test has ended."""
    clean.kubectl("create", "namespace", NAMESPACE)
    made = Helm(kubeconfig=clean.kubeconfig, place=tmp_path_factory.mktemp("helm"))
    yield made
    made.run("uninstall", RELEASE, "--ignore-not-found")
    clean.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=60s", timeout_s=90)


def test_helm_finds_nothing_to_criticise(helm: Helm) -> None:
    helm.lint(values())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"storageNodse": []}, "storageNodse"),
        ({"storageNodes": []}, "storage.nodesByHand=true"),
        ({"sans": []}, "which network interface"),
        ({"sans": [{"name": "main"}]}, "interfaces"),
        ({"sans": [{"name": "Main", "interfaces": ["eth1"]}]}, "/sans/0/name"),
        ({"initiator": {"deadSeconds": 0}}, "deadSeconds"),
        ({"initiator": {"deadSeconds": 700}}, "give it restSeconds of more than that"),
        ({"controller": {"replicas": "two"}}, "replicas"),
        ({"storageClasses": [{"name": "a", "durability": "maybe"}]}, "durability"),
        ({"storageClasses": [{"name": "a", "fsType": "btrfs"}]}, "fsType"),
        ({"storageClasses": [{"name": "a", "pool": "fast"}]}, "a is of pool fast, which none of storageNodes offers"),
        ({"storageClasses": [{"name": "a", "san": "far"}]}, "SAN far, on which none of storageNodes offers pool thin"),
        ({"storageClasses": [{"name": name, "default": True} for name in "ab"]}, "a and b are both the default"),
        (
            {"storageNodes": [_node("fast", "slow")], "storageClasses": [{"name": "a"}]},
            "names no pool, and storageNodes offer several (fast, slow)",
        ),
        ({"storageNodes": [{"name": "s", "pools": [], "sans": []}]}, "/storageNodes/0/pools"),
        ({"log": {"level": "loud"}}, "/log/level"),
        ({"guests": {"access": [{"namespaces": ["shop"]}]}}, "domains"),
        ({"guests": {"access": [{"namespaces": [], "domains": ["*"]}]}}, "/guests/access/0/namespaces"),
        ({"guests": {"access": [{"namespaces": ["a/b"], "domains": ["*"]}]}}, "/guests/access/0/namespaces/0"),
        ({"sidecars": {"attacher": {"workers": 49}}}, "the sidecars may make 129 calls at once"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_wrong_values_are_refused_by_name(helm: Helm, changed: dict[str, Any], said: str) -> None:
    refused = helm.template(values(**changed), check=False)
    assert refused.code != 0
    assert said in refused.stderr


def test_classes_of_nodes_that_a_person_applies_are_taken_at_their_word(helm: Helm) -> None:
    elsewhere = {"name": "a", "pool": "fast", "san": "far"}
    assert "far" in helm.template(values(storageClasses=[elsewhere], storage={"nodesByHand": True})).stdout


def test_monitoring_is_rendered_when_it_is_asked_for(helm: Helm) -> None:
    off = helm.template(values()).stdout
    on = helm.template(
        values(metrics={"podMonitor": {"enabled": True}, "alerts": {"enabled": True}, "dashboard": {"enabled": True}})
    ).stdout
    for kind in ("PodMonitor", "PrometheusRule", "grafana_dashboard"):
        assert kind not in off
        assert kind in on
    assert "AoeStorageNodeSilent" in on
    assert "--metrics=127.0.0.1:19810" in off
    assert "--metrics=$(HOST_IP):19810" in on


def test_guests_are_rendered_when_they_are_asked_for(helm: Helm, tmp_path: Path) -> None:
    off = helm.template(values(kubevirt={"storageProfiles": False})).stdout
    rules = [
        {"namespaces": ["shop"], "domains": ['say-"hi"', "db-*"]},
        {"namespaces": ["*"], "domains": ["g1"], "hosts": ["h1"], "virtualMachines": ["vm*"]},
    ]
    on = helm.template(values(guests={"enabled": True, "access": rules}, kubevirt={"storageProfiles": True})).stdout
    for words in (
        "aoe-csi-guests",
        "--guest-access",
        "aoe-csi-cluster-guests",
        "--storage-profiles",
        "storageprofiles]",
    ):
        assert words not in off, words
        assert words in on, words
    (written,) = (
        one["data"]["access.toml"]
        for one in yaml.safe_load_all(on)
        if one and one["kind"] == "ConfigMap" and one["metadata"]["name"] == "aoe-csi-guest-access"
    )
    path = tmp_path / "access.toml"
    path.write_text(written)
    read = guest_access.read(path)
    assert [one.domains for one in read.access] == [('say-"hi"', "db-*"), ("g1",)]
    assert [one.hosts for one in read.access] == [("*",), ("h1",)]
    assert [one.virtual_machines for one in read.access] == [(), ("vm*",)]


def test_machines_of_kubevirt_are_seen_to_without_libvirt_when_that_is_asked_for(helm: Helm) -> None:
    rules = [{"namespaces": ["shop"], "virtualMachines": ["vm*"]}]
    on, both, off = (
        list(filter(None, yaml.safe_load_all(helm.template(values(**changed)).stdout)))
        for changed in (
            {"kubevirt": {"guestDisks": True}, "guests": {"access": rules}},
            {"kubevirt": {"guestDisks": True}, "guests": {"enabled": True, "access": rules}},
            {"guests": {"enabled": True, "access": rules}},
        )
    )

    def named(objects: list[dict[str, Any]], kind: str, name: str) -> list[dict[str, Any]]:
        return [one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name)]

    for objects, machines, libvirt in ((on, True, False), (both, True, True), (off, False, True)):
        (cluster,) = named(objects, "Deployment", "aoe-csi-cluster")
        words = cluster["spec"]["template"]["spec"]["containers"][0]["args"]
        assert ("--virtual-machines" in words) is machines
        assert "--guest-access=/etc/aoe-csi-guests/access.toml" in words
        (config,) = named(objects, "ConfigMap", "aoe-csi-guest-access")
        assert 'virtual_machines = ["vm*"]' in config["data"]["access.toml"]
        (rights,) = named(objects, "ClusterRole", "aoe-csi-cluster-guests")
        assert any("virtualmachines" in rule["resources"] for rule in rights["rules"]) is machines
        assert bool(named(objects, "DaemonSet", "aoe-csi-guests")) is libvirt
        assert bool(named(objects, "ServiceAccount", "aoe-csi-guests")) is libvirt


def test_what_snapshots_need_is_asked_for(helm: Helm, clean: ControlPlane) -> None:
    refused = helm.upgrade(values(snapshots={"enabled": True}), TAKE, check=False)
    assert refused.code != 0
    assert "does not know VolumeSnapshots" in refused.stderr
    clean.kubectl("apply", "--server-side", "-f", snapshot_definitions())
    clean.await_defined("-f", snapshot_definitions())
    helm.upgrade(values(snapshots={"enabled": True}), TAKE)
    assert clean.kubectl("get", "volumesnapshotclass", "aoe-csi", "-o", "name").stdout
    helm.run("uninstall", RELEASE)
    # The API server lets a definition go once it has looked through all there is of it, one after the other.
    clean.kubectl("delete", "-f", snapshot_definitions(), timeout_s=300)


def test_deploy_is_what_the_chart_renders() -> None:
    assert (DEPLOY / "aoe-csi.yaml").read_text() == rendered_manifests(), "run `make deploy`"


def test_a_release_lives_and_goes_and_the_resources_stay(helm: Helm, clean: ControlPlane) -> None:
    helm.upgrade(values(), TAKE)
    told = helm.run("get", "notes", RELEASE).stdout
    assert "helm uninstall stops no I/O, and keeps the definitions, every AoE resource and all data" in told
    pods = json.loads(clean.kubectl("get", "deploy,daemonset", f"-n{NAMESPACE}", "-ojson").stdout)["items"]
    assert {pod["metadata"]["name"] for pod in pods} == {
        "aoe-csi-controller", "aoe-csi-cluster", "aoe-csi-storage", "aoe-csi-node",
    }  # fmt: skip
    upgrade_roll_back_and_uninstall(helm, clean)
    left = clean.kubectl(
        "get", "clusterroles,clusterrolebindings,validatingadmissionpolicies,csidrivers,storageclasses", "-o", "name"
    )
    assert [name for name in left.stdout.split() if "aoe" in name] == []

    helm.upgrade(values(), TAKE)
    assert clean.kubectl("get", "aoevolume", "kept", "-o", "jsonpath={.spec.size}").stdout == "1Gi"
    clean.kubectl("patch", "aoevolume", "kept", "--type=merge", '-p={"metadata":{"finalizers":[]}}')


def test_a_purge_in_the_order_that_helm_tells_leaves_nothing(helm: Helm, clean: ControlPlane) -> None:
    helm.upgrade(values(), TAKE)
    told = helm.run("get", "notes", RELEASE).stdout
    last = told[told.index("To be rid of the data too") :].strip().splitlines()[-1]
    helm.run("uninstall", RELEASE)
    assert clean.kubectl("get", "aoenodes", "-oname").stdout
    program, *words = last.split()
    assert program == "kubectl"
    try:
        clean.kubectl(*words, "--timeout=60s", timeout_s=90)
        kinds = "crd,clusterroles,clusterrolebindings,validatingadmissionpolicies,csidrivers,storageclasses"
        left = clean.kubectl("get", kinds, "-oname").stdout.split()
        assert [name for name in left if "aoe" in name] == []
    finally:
        clean.define_resources()


def test_a_kubelet_elsewhere_is_found(helm: Helm) -> None:
    rendered = helm.template(values(kubeletDirectory="/var/lib/k0s/kubelet")).stdout
    assert "--registration-directory=/var/lib/k0s/kubelet/plugins_registry" in rendered
    assert "/var/lib/kubelet" not in rendered


def upgrade_roll_back_and_uninstall(helm: Helm, clean: ControlPlane) -> None:
    """Take an installed release through its life beside a volume; the resources stay."""
    clean.kubectl("apply", "-f-", stdin=VOLUME)

    helm.upgrade(values(log={"level": "debug"}))
    assert "debug" in clean.kubectl("get", "ds/aoe-csi-node", f"-n{NAMESPACE}", "-oyaml").stdout
    helm.run("rollback", RELEASE, "1")
    assert "debug" not in clean.kubectl("get", "ds/aoe-csi-node", f"-n{NAMESPACE}", "-oyaml").stdout

    helm.run("uninstall", RELEASE)
    kept = clean.kubectl("get", "aoevolumes,aoenodes", "-o", "name").stdout.split()
    assert kept == [
        "aoevolume.aoe-csi.dev/kept", "aoenode.aoe-csi.dev/storage1", "aoenode.aoe-csi.dev/storage2",
    ]  # fmt: skip


@pytest.mark.long
def test_helm_3_serves_as_well(helm: Helm, clean: ControlPlane) -> None:
    """It knows no server-side apply, and makes hooks and keeps resources its own way."""
    old = dataclasses.replace(helm, program=ensure_programs((HELM_3,))["helm"])
    assert old.run("version", "--short").stdout.startswith("v3.")
    old.lint(values())
    refused = old.template(values(sans=[]), "--kube-version=1.37.0", check=False)
    assert "which network interface" in refused.stderr
    for plural in ("aoevolumes", "aoesnapshots", "aoenodes", "aoeshelves", "aoeguestdisks"):
        clean.kubectl("delete", "crd", f"{plural}.aoe-csi.dev", "--timeout=60s", timeout_s=90)
    old.upgrade(values())
    upgrade_roll_back_and_uninstall(old, clean)
    old.upgrade(values())
    clean.kubectl("patch", "aoevolume", "kept", "--type=merge", '-p={"metadata":{"finalizers":[]}}')
    old.run("uninstall", RELEASE)


def test_definitions_follow_the_release_and_volumes_stay(helm: Helm, clean: ControlPlane, tmp_path: Path) -> None:
    older = dataclasses.replace(helm, chart=chart_without_progress(tmp_path / "older"))
    older.upgrade(values(), TAKE, "--force-conflicts")
    clean.kubectl("apply", "-f-", stdin=VOLUME)

    def progress() -> str:
        clean.kubectl(
            "patch", "aoevolume", "kept", "--subresource=status", "--type=merge",
            '-p={"status":{"progress":{"work":"wiping","percent":7}}}',
        )  # fmt: skip
        return clean.kubectl("get", "aoevolume", "kept", "-ojsonpath={.status.progress.percent}").stdout

    made = clean.kubectl("get", "aoevolume", "kept", "-ojsonpath={.metadata.uid} {.spec}").stdout
    assert progress() == ""
    helm.upgrade(values())
    assert progress() == "7"
    assert "DONE" in clean.kubectl("get", "aoevolumes", "-owide").stdout
    helm.run("rollback", RELEASE, "1")
    assert "DONE" not in clean.kubectl("get", "aoevolumes", "-owide").stdout
    assert clean.kubectl("get", "aoevolume", "kept", "-ojsonpath={.metadata.uid} {.spec}").stdout == made
    helm.upgrade(values())
    clean.kubectl("patch", "aoevolume", "kept", "--type=merge", '-p={"metadata":{"finalizers":[]}}')


def chart_without_progress(place: Path) -> Path:
    """Copy the chart, its AoEVolume as it was before copies and wipes told how far they are."""
    chart = shutil.copytree(CHART, place)
    file = chart / "files" / "crds" / "aoevolumes.yaml"
    definition = yaml.safe_load(file.read_text())
    (version,) = definition["spec"]["versions"]
    columns = version["additionalPrinterColumns"]
    version["additionalPrinterColumns"] = [one for one in columns if "progress" not in one["jsonPath"]]
    del version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["progress"]
    file.write_text(yaml.safe_dump(definition))
    return chart
