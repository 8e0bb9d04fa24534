"""An API server in memory, as far as guests' disks need one; and what a process of ours sees of it.

It keeps what it was told when its clients and their machines die. Every write passes the world's hook, so that a role
is killed between any two of them, and is refused when somebody else wrote in between.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from aoe_core.errors import Busy, NotFound
from aoe_core.fakes.world import Process
from aoe_core.resources.claims import Claim, PersistentVolume, StorageClass
from aoe_core.resources.fields import GROUP
from aoe_core.resources.guest_access import AccessRules
from aoe_core.resources.guest_disk import AoEGuestDisk, AoEGuestDiskSpec, NamespacedMeta, libvirt_guest

NAMESPACE = "team-a"
FROM_THE_BEGINNING = "2026-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Held:
    """A ticket: who holds it, and whether he may write."""

    guest: str = ""
    """The guest's disk; empty for a pod's."""
    writable: bool = True


@dataclass(slots=True, kw_only=True)
class GuestApi:
    """What there is in the cluster; tests write here as people do."""

    disks: dict[tuple[str, str], AoEGuestDisk] = field(default_factory=dict)
    claims: dict[tuple[str, str], Claim] = field(default_factory=dict)
    volumes: dict[str, PersistentVolume] = field(default_factory=dict)
    waiting_classes: dict[str, str] = field(default_factory=dict)
    """Those whose claims wait for their first consumer → the driver."""
    tickets: dict[tuple[str, str], Held] = field(default_factory=dict)
    """(Volume, node) → its ticket."""
    given_up: set[str] = field(default_factory=set)
    rules: AccessRules = field(default_factory=AccessRules)
    definition_going: bool = False
    """Whether somebody removes the definition of guests' disks, and with it all of them."""
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def version(self) -> str:
        """Return a resource version that was never there before."""
        return str(next(self._numbers))

    def add_claim(self, name: str, volume: str, *modes: str, namespace: str = NAMESPACE) -> Claim:
        """Make a claim of raw block that is bound to a volume of ours."""
        uid = f"uid-{next(self._numbers)}"
        pv = PersistentVolume(
            name=f"pv-{volume}", driver=GROUP, volume_handle=volume, claim_uid=uid, access_modes=modes
        )
        claim = Claim(
            namespace=namespace,
            name=name,
            uid=uid,
            resource_version=self.version(),
            bound=True,
            volume_name=pv.name,
            block=True,
        )
        self.volumes[pv.name] = pv
        self.claims[namespace, name] = claim
        return claim

    def change_volume(self, claim: str, **changed: Any) -> None:
        """Change what a claim's PersistentVolume says."""
        name = self.claims[NAMESPACE, claim].volume_name
        self.volumes[name] = replace(self.volumes[name], **changed)

    def add_disk(
        self, name: str, claim: str, host: str, domain: str = "g1", *, namespace: str = NAMESPACE, **spec: bool | str
    ) -> AoEGuestDisk:
        """Make a disk of a libvirt guest, unless there is one of that name."""
        return self._add(name, namespace, {"claim": claim, "libvirt": {"host": host, "domain": domain}, **spec})

    def add_machine_disk(self, name: str, claim: str, machine: str, **spec: bool | str) -> AoEGuestDisk:
        """Make a disk of a machine of KubeVirt's, unless there is one of that name."""
        return self._add(name, NAMESPACE, {"claim": claim, "kubevirt": {"virtualMachine": machine}, **spec})

    def _add(self, name: str, namespace: str, wanted: dict[str, object]) -> AoEGuestDisk:
        if (namespace, name) in self.disks:
            return self.disks[namespace, name]
        disk = self.disks[namespace, name] = AoEGuestDisk(
            metadata=NamespacedMeta(
                namespace=namespace, name=name, uid=f"uid-{next(self._numbers)}", generation=1,
                resource_version=self.version(),
            ),
            spec=msgspec.convert(wanted, AoEGuestDiskSpec),
        )  # fmt: skip
        return disk

    def delete_disk(self, name: str, namespace: str = NAMESPACE) -> None:
        """Ask for a guest's disk's end."""
        disk = self.disks.get((namespace, name))
        if disk is not None and disk.metadata.deletion_timestamp is None:
            metadata = msgspec.structs.replace(
                disk.metadata, deletion_timestamp=FROM_THE_BEGINNING, generation=disk.metadata.generation + 1
            )
            self.put_disk(msgspec.structs.replace(disk, metadata=metadata))

    def move_disk(self, name: str, *, host: str, migrate_to: str | None, namespace: str = NAMESPACE) -> None:
        """Say where a disk's guest is, and where it is to move to, if the schema's rules let it."""
        disk = self.disks[namespace, name]
        before = libvirt_guest(disk)
        granted = {one.host for one in disk.status.hosts if one.grant is not None}
        assert host == before.host or host in granted, "goes to another host by live migration"
        assert migrate_to != host, "migrateTo is the host it is on"
        assert None in (migrate_to, before.migrate_to) or migrate_to == before.migrate_to, "one host at a time"
        guest = msgspec.structs.replace(before, host=host, migrate_to=migrate_to)
        metadata = msgspec.structs.replace(disk.metadata, generation=disk.metadata.generation + 1)
        spec = msgspec.structs.replace(disk.spec, libvirt=guest)
        self.put_disk(msgspec.structs.replace(disk, metadata=metadata, spec=spec))

    def delete_claim(self, name: str, namespace: str = NAMESPACE) -> None:
        """Ask for a claim's end."""
        claim = self.claims.get((namespace, name))
        if claim is not None:
            self.put_claim(replace(claim, deleting=True))

    def put_disk(self, disk: AoEGuestDisk) -> AoEGuestDisk:
        """Write a disk; one that is to go and that nothing holds is gone."""
        key = (disk.metadata.namespace, disk.metadata.name)
        metadata = msgspec.structs.replace(disk.metadata, resource_version=self.version())
        disk = msgspec.structs.replace(disk, metadata=metadata)
        if metadata.deletion_timestamp is not None and not metadata.finalizers:
            self.disks.pop(key, None)
        else:
            self.disks[key] = disk
        return disk

    def put_claim(self, claim: Claim) -> None:
        """Write a claim; one that is to go and that nothing holds is gone."""
        claim = replace(claim, resource_version=self.version())
        if claim.deleting and not claim.finalizers:
            self.claims.pop((claim.namespace, claim.name), None)
        else:
            self.claims[claim.namespace, claim.name] = claim


class ApiClient:
    """The API as one process of ours sees it."""

    def __init__(self, api: GuestApi, process: Process, node_ids: Callable[[], Mapping[str, str]]) -> None:
        self._api = api
        self._process = process
        self._node_ids = node_ids

    # --- guests' disks ---

    def find(self, namespace: str, name: str) -> AoEGuestDisk | None:
        with self._process.reading():
            return self._api.disks.get((namespace, name))

    def list(self) -> tuple[AoEGuestDisk, ...]:
        with self._process.reading():
            return tuple(self._api.disks[key] for key in sorted(self._api.disks))

    def update_status(self, disk: AoEGuestDisk) -> AoEGuestDisk:
        with self._writing_disk(disk, "status") as now:
            return self._api.put_disk(msgspec.structs.replace(now, status=disk.status))

    def put_finalizers(self, disk: AoEGuestDisk, finalizers: tuple[str, ...]) -> AoEGuestDisk:
        with self._writing_disk(disk, "finalizers") as now:
            if now.metadata.deletion_timestamp is not None:
                assert set(finalizers) <= set(now.metadata.finalizers), "the API server lets none be added to what goes"
            metadata = msgspec.structs.replace(now.metadata, finalizers=finalizers)
            return self._api.put_disk(msgspec.structs.replace(now, metadata=metadata))

    def is_definition_going(self) -> bool:
        with self._process.reading():
            return self._api.definition_going

    @contextmanager
    def _writing_disk(self, disk: AoEGuestDisk, what: str) -> Iterator[AoEGuestDisk]:
        with self._process.step(f"api {what} of {disk.metadata.name}"):
            now = self._api.disks.get((disk.metadata.namespace, disk.metadata.name))
            if now is None:
                raise NotFound(f"AoEGuestDisk {disk.metadata.name} does not exist")
            if now.metadata.resource_version != disk.metadata.resource_version:
                raise Busy(f"AoEGuestDisk {disk.metadata.name} has changed since it was read")
            yield now

    # --- claims ---

    def find_claim(self, namespace: str, name: str) -> Claim | None:
        with self._process.reading():
            return self._api.claims.get((namespace, name))

    def find_volume(self, name: str) -> PersistentVolume | None:
        with self._process.reading():
            return self._api.volumes.get(name)

    def find_class(self, name: str) -> StorageClass | None:
        with self._process.reading():
            driver = self._api.waiting_classes.get(name)
            return StorageClass(name=name, provisioner=driver, waits_for_consumer=True) if driver else None

    def select_node(self, claim: Claim, node: str) -> None:
        with self._writing_claim(claim, "node"):
            self._api.put_claim(replace(claim, selected_node=node))

    def put_claim_finalizers(self, claim: Claim, finalizers: tuple[str, ...]) -> None:
        with self._writing_claim(claim, "finalizers"):
            self._api.put_claim(replace(claim, finalizers=finalizers))

    @contextmanager
    def _writing_claim(self, claim: Claim, what: str) -> Iterator[None]:
        with self._process.step(f"api {what} of {claim}"):
            now = self._api.claims.get((claim.namespace, claim.name))
            if now is None:
                raise NotFound(f"{claim} does not exist")
            if now.resource_version != claim.resource_version:
                raise Busy(f"{claim} has changed since it was read")
            yield

    # --- nodes ---

    def node_ids(self) -> Mapping[str, str]:
        with self._process.reading():
            return self._node_ids()

    def is_given_up(self, node: str) -> bool:
        with self._process.reading():
            return node in self._api.given_up
