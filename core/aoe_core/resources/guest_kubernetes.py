"""Guests' disks, claims, nodes, KubeVirt's machines and CDI's profiles on a real API server, as the stores of
`guest_disk`, `claims`, `virtual_machine` and the cluster role want them.

Whatever is changed is changed over what was read: each write names the resource version that it is meant for, and a
merge patch (RFC 7386) leaves alone what this code does not know.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import lightkube
import msgspec
from lightkube.generic_resource import create_global_resource, create_namespaced_resource
from lightkube.resources.apiextensions_v1 import CustomResourceDefinition
from lightkube.types import PatchType

from aoe_core.errors import Conflict, Invalid, NotFound, Unreachable
from aoe_core.resources import first_use
from aoe_core.resources.claims import SELECTED_NODE, Claim, PersistentVolume, StorageClass
from aoe_core.resources.fields import GROUP, VERSION, parse_quantity
from aoe_core.resources.guest_disk import AoEGuestDisk
from aoe_core.resources.kubernetes import (
    KubernetesRegistrations,
    connected,
    is_definition_going,
    revision_by,
    translated,
)
from aoe_core.resources.virtual_machine import Instance, VirtualMachine, VolumeState

_DISK = create_namespaced_resource(GROUP, VERSION, "AoEGuestDisk", "aoeguestdisks")
# As they come: of each a few fields are read, and what else is in them need not be known to this lightkube.
_CLAIM = create_namespaced_resource("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims")
_VOLUME = create_global_resource("", "v1", "PersistentVolume", "persistentvolumes")
_NODE = create_global_resource("", "v1", "Node", "nodes")
_CLASS = create_global_resource("storage.k8s.io", "v1", "StorageClass", "storageclasses")
_MACHINE = create_namespaced_resource("kubevirt.io", "v1", "VirtualMachine", "virtualmachines")
_INSTANCE = create_namespaced_resource("kubevirt.io", "v1", "VirtualMachineInstance", "virtualmachineinstances")
_PROFILE = create_global_resource("cdi.kubevirt.io", "v1beta1", "StorageProfile", "storageprofiles")
_WHOLE = msgspec.json.Decoder(AoEGuestDisk)
"""Never used: made before there are threads, see `first_use`."""
first_use.look_at(_DISK, _CLAIM, _VOLUME, _NODE, _CLASS, _MACHINE, _INSTANCE, _PROFILE, CustomResourceDefinition)
_EVERY_NAMESPACE = "*"
_RUNNING = "Running"
_ENDED = ("Succeeded", "Failed")
"""Phases of a VirtualMachineInstance that runs no more."""
_DEFINITION = f"aoeguestdisks.{GROUP}"
_MACHINES_DEFINITION = "virtualmachines.kubevirt.io"

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
"""The taint by which a person says that nothing runs on a node any more (KEP 2268)."""


class _Client:
    """A connection, and how it ends."""

    def __init__(self, kubeconfig: Path | None, *, holder: str) -> None:
        """`holder`: who writes, for the API server's records. Raises: Invalid when no API server is known."""
        self._client = connected(kubeconfig, field_manager=holder)

    def close(self) -> None:
        """Let go of the connections; no call may be under way."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class KubernetesGuestDisks(_Client):
    """AoEGuestDisks on an API server: a `GuestDiskStore`."""

    def find(self, namespace: str, name: str) -> AoEGuestDisk | None:
        """Return a guest's disk, None when it is not there. Raises: Unreachable."""
        found = _find(self._client, _DISK, name, namespace=namespace)
        return None if found is None else _read(found)

    def list(self) -> tuple[AoEGuestDisk, ...]:
        """Return every guest's disk, ordered by namespace and name; none when their definition is gone. Raises:
        Unreachable."""
        try:
            with translated(AoEGuestDisk, ""):
                found = [_read(one) for one in self._client.list(_DISK, namespace=_EVERY_NAMESPACE, chunk_size=500)]
        except Unreachable:
            # An API server that has begun a moment ago does not know its kinds yet, and answers just so.
            if _is_defined(self._client, _DEFINITION):
                raise
            return ()
        return tuple(sorted(found, key=lambda one: (one.metadata.namespace, one.metadata.name)))

    def update_status(self, disk: AoEGuestDisk) -> AoEGuestDisk:
        """Replace the status. Raises: NotFound, Busy, Invalid, Unreachable."""
        meta = disk.metadata
        content = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "AoEGuestDisk",
            "metadata": {
                "name": meta.name,
                "namespace": meta.namespace,
                "uid": meta.uid,
                "resourceVersion": meta.resource_version,
            },
            # Of no effect here, and yet the schema wants one.
            "spec": msgspec.to_builtins(disk.spec),
            "status": msgspec.to_builtins(disk.status),
        }
        with translated(AoEGuestDisk, f"{meta.namespace}/{meta.name}"):
            status = _DISK.Status.from_dict(content)
            return _read(self._client.replace(status, meta.name, namespace=meta.namespace))

    def put_finalizers(self, disk: AoEGuestDisk, finalizers: tuple[str, ...]) -> AoEGuestDisk:
        """Replace the finalizers. Raises: NotFound, Busy, Unreachable."""
        meta = disk.metadata
        patch = _over(meta.uid, meta.resource_version, finalizers=list(finalizers))
        with translated(AoEGuestDisk, f"{meta.namespace}/{meta.name}"):
            return _read(
                self._client.patch(_DISK, meta.name, patch, namespace=meta.namespace, patch_type=PatchType.MERGE)
            )

    def is_definition_going(self) -> bool:
        """Say whether the definition of guests' disks is being removed, or gone. Raises: Unreachable."""
        return is_definition_going(self._client, _DEFINITION)

    def revision(self) -> int:
        """Return the API server's revision, which grows with every change of anything. Raises: Unreachable."""
        # Unlike guests' disks, definitions are always there.
        return revision_by(self._client, CustomResourceDefinition)


class KubernetesClaims(_Client):
    """Claims, their volumes and classes on an API server: a `ClaimStore`."""

    def find_claim(self, namespace: str, name: str) -> Claim | None:
        """Return a claim, None when it is not there. Raises: Unreachable."""
        found = _find(self._client, _CLAIM, name, namespace=namespace)
        return None if found is None else _claim(found)

    def find_volume(self, name: str) -> PersistentVolume | None:
        """Return a PersistentVolume, None when it is not there. Raises: Unreachable."""
        found = _find(self._client, _VOLUME, name)
        return None if found is None else _volume(found)

    def find_class(self, name: str) -> StorageClass | None:
        """Return a StorageClass, None when it is not there. Raises: Unreachable."""
        found = _find(self._client, _CLASS, name)
        return None if found is None else _class(found)

    def select_node(self, claim: Claim, node: str) -> None:
        """Have a claim bound for a node. Raises: NotFound, Busy, Unreachable."""
        self._patch(claim, annotations={SELECTED_NODE: node})

    def put_claim_finalizers(self, claim: Claim, finalizers: tuple[str, ...]) -> None:
        """Replace a claim's finalizers. Raises: NotFound, Busy, Unreachable."""
        self._patch(claim, finalizers=list(finalizers))

    def _patch(self, claim: Claim, **metadata: object) -> None:
        patch = _over(claim.uid, claim.resource_version, **metadata)
        with translated(Claim, f"{claim.namespace}/{claim.name}"):
            self._client.patch(_CLAIM, claim.name, patch, namespace=claim.namespace, patch_type=PatchType.MERGE)


class KubernetesHosts(_Client):
    """The nodes that guests run on."""

    def __init__(self, kubeconfig: Path | None, *, holder: str, registrations: KubernetesRegistrations) -> None:
        """Raises: Invalid when no API server is known."""
        super().__init__(kubeconfig, holder=holder)
        self._registrations = registrations

    def node_ids(self) -> Mapping[str, str]:
        """Return node → our driver's node id there. Raises: Unreachable."""
        return self._registrations.node_ids()

    def is_given_up(self, node: str) -> bool:
        """Say whether a node is out of service, or is no more. Raises: Unreachable."""
        found = _find(self._client, _NODE, node)
        return found is None or any(
            one.get("key") == OUT_OF_SERVICE for one in _part(found, "spec").get("taints") or ()
        )


class KubernetesMachines(_Client):
    """KubeVirt's machines on an API server: a `MachineStore`. Where there is no KubeVirt, there are no machines."""

    def find_machine(self, namespace: str, name: str) -> VirtualMachine | None:
        """Return a machine, None when it is not there. Raises: Unreachable."""
        found = self._find(_MACHINE, namespace, name)
        return None if found is None else _machine(found)

    def find_instance(self, namespace: str, name: str) -> Instance | None:
        """Return what runs of a machine, None when nothing does, or all that did has ended. Raises: Unreachable."""
        found = self._find(_INSTANCE, namespace, name)
        return None if found is None or _part(found, "status").get("phase") in _ENDED else _instance(found)

    def put_disks(self, machine: VirtualMachine) -> VirtualMachine:
        """Replace the volumes and disks of a machine's template. Raises: NotFound, Busy, Invalid, Unreachable."""
        devices = {"disks": list(machine.disks)}
        spec = {"domain": {"devices": devices}, "volumes": list(machine.volumes)}
        patch = {**_over(machine.uid, machine.resource_version), "spec": {"template": {"spec": spec}}}
        with translated(_MACHINE, f"{machine.namespace}/{machine.name}"):
            return _machine(
                self._client.patch(
                    _MACHINE, machine.name, patch, namespace=machine.namespace, patch_type=PatchType.MERGE
                )
            )

    def _find(self, kind: type[Any], namespace: str, name: str) -> Any | None:
        try:
            return _find(self._client, kind, name, namespace=namespace)
        except Unreachable:
            # Of a kind that it does not know an API server says so in plain text; and so it does of all when it has
            # begun a moment ago.
            if _is_defined(self._client, _MACHINES_DEFINITION):
                raise
            return None


class KubernetesProfiles(_Client):
    """StorageClasses, and what CDI is told of them."""

    def has_profiles(self) -> bool:
        """Say whether CDI is there. Raises: Unreachable."""
        return _is_defined(self._client, "storageprofiles.cdi.kubevirt.io")

    def classes(self) -> tuple[str, ...]:
        """Return the classes of this driver, ordered by name. Raises: Unreachable."""
        with translated(_CLASS, ""):
            found = [one["metadata"]["name"] for one in self._client.list(_CLASS) if one.get("provisioner") == GROUP]
        return tuple(sorted(found))

    def apply(self, name: str, spec: Mapping[str, Any]) -> None:
        """Set what a class's profile says. Raises: Conflict, Unreachable."""
        wanted = {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "kind": "StorageProfile",
            "metadata": {"name": name},
            "spec": dict(spec),
        }
        with translated(_PROFILE, name, taken=Conflict):
            self._client.patch(_PROFILE, name, wanted, patch_type=PatchType.APPLY)


def _find(client: lightkube.Client, kind: Any, name: str, **where: str) -> Mapping[str, Any] | None:
    try:
        with translated(kind, name):
            found: Mapping[str, Any] = client.get(kind, name, **where)
            return found
    except NotFound:
        return None


def _is_defined(client: lightkube.Client, definition: str) -> bool:
    """Say whether there is a definition of a kind, also one that is not served yet. Raises: Unreachable."""
    return _find(client, CustomResourceDefinition, definition) is not None


def _over(uid: str, resource_version: str, **metadata: object) -> dict[str, Any]:
    """Return a patch of what has not changed since it was read, and is still the same object."""
    return {"metadata": {"uid": uid, "resourceVersion": resource_version, **metadata}}


def _read(raw: Mapping[str, Any]) -> AoEGuestDisk:
    try:
        return msgspec.convert(dict(raw), AoEGuestDisk)
    except msgspec.ValidationError as error:
        where = raw["metadata"]
        raise Invalid(
            f"AoEGuestDisk {where['namespace']}/{where['name']} cannot be read ({error}); was it made by another "
            "version of the definitions?"
        ) from error


def _part(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a part of an object, which may be left out or null."""
    return raw.get(name) or {}


def _claim(raw: Mapping[str, Any]) -> Claim:
    metadata, spec = raw["metadata"], _part(raw, "spec")
    return Claim(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        bound=_part(raw, "status").get("phase") == "Bound",
        volume_name=spec.get("volumeName") or "",
        block=spec.get("volumeMode") == "Block",
        storage_class=spec.get("storageClassName") or "",
        selected_node=(metadata.get("annotations") or {}).get(SELECTED_NODE, ""),
        finalizers=tuple(metadata.get("finalizers") or ()),
        deleting=metadata.get("deletionTimestamp") is not None,
    )


def _class(raw: Mapping[str, Any]) -> StorageClass:
    return StorageClass(
        name=raw["metadata"]["name"],
        provisioner=raw.get("provisioner") or "",
        waits_for_consumer=raw.get("volumeBindingMode") == "WaitForFirstConsumer",
    )


def _machine(raw: Mapping[str, Any]) -> VirtualMachine:
    metadata, machine = raw["metadata"], _part(raw, "spec")
    spec = _part(_part(machine, "template"), "spec")
    return VirtualMachine(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        deleting=metadata.get("deletionTimestamp") is not None,
        volumes=tuple(spec.get("volumes") or ()),
        disks=tuple(_part(_part(spec, "domain"), "devices").get("disks") or ()),
        migrates_volumes=machine.get("updateVolumesStrategy") == "Migration",
    )


def _capacity_bytes(state: Mapping[str, Any]) -> int:
    """Return the size of the claim that a volume is, 0 where KubeVirt tells none."""
    capacity = _part(_part(state, "persistentVolumeClaimInfo"), "capacity").get("storage")
    try:
        return parse_quantity(str(capacity)) if capacity else 0
    except Invalid:
        return 0  # In a unit that no volume of ours has.


def _instance(raw: Mapping[str, Any]) -> Instance:
    status = _part(raw, "status")
    states = {
        one["name"]: VolumeState(
            phase=one.get("phase") or "",
            message=one.get("message") or "",
            target=one.get("target") or "",
            size_bytes=_capacity_bytes(one),
        )
        for one in status.get("volumeStatus") or ()
    }
    return Instance(
        node=status.get("nodeName") or "",
        running=status.get("phase") == _RUNNING,
        volumes=frozenset([*states, *(one["name"] for one in _part(raw, "spec").get("volumes") or ())]),
        states=states,
    )


def _volume(raw: Mapping[str, Any]) -> PersistentVolume:
    spec = _part(raw, "spec")
    csi, claim = _part(spec, "csi"), _part(spec, "claimRef")
    return PersistentVolume(
        name=raw["metadata"]["name"],
        driver=csi.get("driver") or "",
        volume_handle=csi.get("volumeHandle") or "",
        claim_uid=claim.get("uid") or "",
        access_modes=tuple(spec.get("accessModes") or ()),
        read_only=bool(csi.get("readOnly")),
    )
