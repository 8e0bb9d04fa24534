"""What CDI is told of our StorageClasses, on a real API server that has CDI's kind."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from aoe_core.resources.guest_kubernetes import KubernetesProfiles
from aoe_operator.storage_profiles import PROFILE, StorageProfiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aoe_lab.kubernetes.control_plane import ControlPlane

CDI = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "storageprofiles.cdi.kubevirt.io"},
    "spec": {
        "group": "cdi.kubevirt.io",
        "scope": "Cluster",
        "names": {
            "kind": "StorageProfile",
            "listKind": "StorageProfileList",
            "plural": "storageprofiles",
            "singular": "storageprofile",
        },
        "versions": [
            {
                "name": "v1beta1",
                "served": True,
                "storage": True,
                # Of CDI's own schema what our profile touches (pkg/apis/core/v1beta1/types.go).
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {
                                    "cloneStrategy": {"type": "string"},
                                    "claimPropertySets": {
                                        "type": "array",
                                        "maxItems": 8,
                                        "items": {
                                            "type": "object",
                                            "required": ["accessModes", "volumeMode"],
                                            "properties": {
                                                "accessModes": {"type": "array", "items": {"type": "string"}},
                                                "volumeMode": {"type": "string"},
                                            },
                                        },
                                    },
                                },
                            }
                        },
                    }
                },
            }
        ],
    },
}


def storage_class(name: str, provisioner: str = "aoe-csi.dev") -> dict[str, Any]:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": provisioner,
    }


def profile(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "StorageProfile",
        "metadata": {"name": name},
        "spec": spec,
    }


@pytest.fixture
def profiles(plane: ControlPlane) -> Iterator[StorageProfiles]:
    plane.apply(storage_class("fast"), storage_class("slow"), storage_class("other", "elsewhere.example"))
    with KubernetesProfiles(plane.kubeconfig, holder="aoe-csi-cluster") as store:
        yield StorageProfiles(store)
    plane.kubectl("delete", "storageclass", "fast", "slow", "other")
    plane.kubectl("delete", "crd", "storageprofiles.cdi.kubevirt.io", "--ignore-not-found")


def specs(plane: ControlPlane) -> dict[str, dict[str, Any]]:
    listed = json.loads(plane.kubectl("get", "storageprofiles", "-ojson").stdout)["items"]
    return {one["metadata"]["name"]: one.get("spec", {}) for one in listed}


def test_cdi_is_told_of_our_classes_and_a_person_s_word_stands(plane: ControlPlane, profiles: StorageProfiles) -> None:
    profiles.tell()  # There is no CDI: nothing to tell, and nothing amiss.
    plane.apply(CDI)
    plane.await_defined("crd/storageprofiles.cdi.kubevirt.io")
    # CDI has made one, empty, and a person has set another.
    by_person = {"cloneStrategy": "copy"}
    plane.apply(profile("fast"), profile("slow", **by_person))
    profiles.tell()
    profiles.tell()
    assert specs(plane) == {"fast": PROFILE, "slow": by_person}
    plane.kubectl("delete", "storageprofile", "slow")
    profiles.tell()
    assert specs(plane) == {"fast": PROFILE, "slow": PROFILE}
