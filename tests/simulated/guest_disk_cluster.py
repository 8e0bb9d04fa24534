"""A cluster in memory with an API server: guests' disks are resources, and the roles that see to them are processes.

The cluster role runs on a machine of its own, the guests role where the commands of `guest_cluster` run. They are
called as kopf calls: for what changed in a spec or in the fields that handlers ask for, for an end that was asked for,
and after the seconds that a call returned; and it writes beside them, finalizers first and a word about each call that
is to be repeated.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import msgspec
from tests.simulated.fake_kubevirt import FakeKubeVirt
from tests.simulated.guest_api import NAMESPACE, ApiClient, GuestApi, Held
from tests.simulated.guest_cluster import COMMAND, GuestCluster

from aoe_core.errors import AoECsiError, Busy, InUse, NotFound, Unfinished
from aoe_core.fakes.world import Process
from aoe_core.guests.guest_disks import GuestDisks
from aoe_core.model import AccessMode, Attachment, NodeIdentity, NodeName, VolumeId, VolumeStatus
from aoe_core.resources.guest_access import AccessRule, AccessRules
from aoe_core.resources.guest_disk import (
    GRANT_FINALIZER,
    AoEGuestDisk,
    host_finalizer,
    on_host,
    wanted_hosts,
)
from aoe_core.resources.virtual_machine import Instance, VirtualMachine
from aoe_operator.guest_definition import give_up
from aoe_operator.guest_grants import GuestGrants
from aoe_operator.guests import GuestsRole
from aoe_operator.machine_disks import MachineDisks

CONTROL = "control1"
CLUSTER_ROLE = "cluster role"
_CALLS = 60
_PATIENT_S = 5.0
"""What is to be looked at later than this is at rest, as far as a person can tell."""
_VERY_PATIENT_S = 20.0
"""A refusal that is judged anew only so much later holds up a deletion, too: kopf keeps to the seconds it was told."""
_AFTER_AN_ERROR_S = 1.0

Key = tuple[str, str]
Reconcile = Callable[[str, str], float | None]


@dataclass(slots=True)
class Kopf:
    """What one role's kopf knows of the disks."""

    finalizer: str
    asked_for: Callable[[AoEGuestDisk], object]
    """The fields of a status whose change calls the handler."""
    handled: dict[str, object] = field(default_factory=dict)
    """Uid → what it was when a call ended well."""
    due_s: dict[str, float] = field(default_factory=dict)
    """Uid → when to call again."""

    def essence(self, disk: AoEGuestDisk) -> object:
        """Return what calls the handler when it changes."""
        return disk.metadata.deletion_timestamp, disk.metadata.generation, self.asked_for(disk)


def _concerns(node: str, disk: AoEGuestDisk) -> bool:
    """Say whether a host's handlers want a disk."""
    return node in wanted_hosts(disk) or host_finalizer(node) in disk.metadata.finalizers


def _asked_for_on(node: str, disk: AoEGuestDisk) -> object:
    entry = on_host(disk.status, node)
    return disk.status.volume, entry.grant if entry is not None else None


class TicketGrants:
    """Tickets in memory and the engine behind them: what the cluster's Provisioner makes of them in the end."""

    def __init__(self, cluster: "GuestDiskCluster", process: Process) -> None:
        self._cluster = cluster
        self._process = process

    def publish(
        self, volume_id: VolumeId, node: NodeIdentity, mode: AccessMode, *, read_only: bool, block: bool, guest: str
    ) -> Attachment:
        api = self._cluster.api
        others = {one: held for one, held in api.tickets.items() if one[0] == volume_id and held.guest != guest}
        if any(held.writable or not read_only or one[1] == node.name for one, held in others.items()):
            nodes = ", ".join(sorted(node for _, node in others))
            raise InUse(f"volume {volume_id} is in use on {nodes}; end that first")
        if (volume_id, node.name) not in api.tickets:
            with self._process.step(f"api ticket of {volume_id}"):
                api.tickets[volume_id, node.name] = Held(guest, writable=not read_only)
        return self._cluster.engine.publish(volume_id, node, mode, read_only=read_only, block=block)

    def unpublish(self, volume_id: VolumeId, node: NodeName, *, guest: str) -> None:
        tickets = self._cluster.api.tickets
        held = tickets.get((volume_id, node))
        if held is not None and held.guest != guest:
            return
        if held is not None:
            with self._process.step(f"api no ticket of {volume_id}"):
                del tickets[volume_id, node]
        self._cluster.engine.unpublish(volume_id, node)

    def get_volume(self, volume_id: VolumeId) -> VolumeStatus:
        return self._cluster.engine.get_volume(volume_id)

    def device_bytes(self, volume_id: VolumeId) -> int:
        return self._cluster.engine.get_volume(volume_id).volume.device_bytes


class MachineClient:
    """KubeVirt's machines as one process of ours sees them."""

    def __init__(self, kubevirt: FakeKubeVirt, process: Process) -> None:
        self._kubevirt = kubevirt
        self._process = process

    def find_machine(self, namespace: str, name: str) -> VirtualMachine | None:
        with self._process.reading():
            return self._kubevirt.machines.get(name) if namespace == NAMESPACE else None

    def find_instance(self, namespace: str, name: str) -> Instance | None:
        with self._process.reading():
            return self._kubevirt.instance(name) if namespace == NAMESPACE else None

    def put_disks(self, machine: VirtualMachine) -> VirtualMachine:
        with self._process.step(f"api disks of {machine}"):
            now = self._kubevirt.machines.get(machine.name)
            if now is None or now.uid != machine.uid:
                raise NotFound(f"{machine} does not exist")
            if now.resource_version != machine.resource_version:
                raise Busy(f"{machine} has changed since it was read")
            return self._kubevirt.put(machine)


class GuestDiskCluster(GuestCluster):
    """A cluster of hypervisors under an API server."""

    def __init__(self, *, same_host: bool = False, free_addresses: int = 0) -> None:
        super().__init__(same_host=same_host, free_addresses=free_addresses)
        rule = AccessRule(namespaces=(NAMESPACE,), domains=("g*",), virtual_machines=("vm*",))
        self.api = GuestApi(rules=AccessRules(access=(rule,)))
        self.kubevirt = FakeKubeVirt(self.api)
        self._control = self.world.add_machine(CONTROL)
        self.kopfs: dict[str, Kopf] = {}
        self.grants = self.new_cluster_role()

    def new_cluster_role(self) -> GuestGrants:
        """Return the cluster role of a fresh process; a former one is dead."""
        self.kopfs[CLUSTER_ROLE] = Kopf(GRANT_FINALIZER, lambda disk: disk.status.domain_uuid)
        process = self._start(self._control, CLUSTER_ROLE)
        self.machine_disks = self.copy_of_machine_disks(process)
        return self.copy_of_cluster_role(process)

    def copy_of_machine_disks(self, process: Process) -> MachineDisks:
        """Return what the cluster role does for KubeVirt's machines as a process has it."""
        client = self._client(process)
        return MachineDisks(
            client,
            client,
            MachineClient(self.kubevirt, process),
            TicketGrants(self, process),
            rules=lambda: self.api.rules,
            now_s=self._now_s,
        )

    def copy_of_cluster_role(self, process: Process) -> GuestGrants:
        """Return the cluster role as a process has it."""
        client = self._client(process)
        return GuestGrants(
            client, client, client, TicketGrants(self, process), rules=lambda: self.api.rules, now_s=self._now_s
        )

    def role(self, node: NodeName) -> GuestsRole:
        """Return the guests role of a node's present process."""
        process = self._processes[self.compute[node].name, COMMAND]
        return GuestsRole(node, self.disks[node], self._client(process), now_s=self._now_s)

    def new_command(self, node: NodeName) -> GuestDisks:
        """As any cluster; and the role's kopf begins with nothing."""
        if hasattr(self, "kopfs"):
            self.kopfs.pop(node, None)
        return super().new_command(node)

    def _client(self, process: Process) -> ApiClient:
        return ApiClient(
            self.api,
            process,
            lambda: {node: str(self.identity(node)) for node in self.compute},
        )

    def _now_s(self) -> int:
        return int(self.world.clock.now())

    def restart(self) -> None:
        """As any cluster; and the cluster role is there again."""
        super().restart()
        if not self._processes[CONTROL, CLUSTER_ROLE].alive:
            self.grants = self.new_cluster_role()

    # --- what kopf does ---

    def reconcile(self, patient_s: float = _PATIENT_S) -> None:
        """Have the roles called until nothing is to be done within a while, or something is tried for long without
        success."""
        for _ in range(_CALLS):
            if self._call_all() | self.kubevirt.work_all():
                continue
            next_s = min((due for kopf in self.kopfs.values() for due in kopf.due_s.values()), default=None)
            if next_s is None or next_s - self.world.clock.now() > patient_s:
                return
            self.world.clock.sleep(max(next_s - self.world.clock.now(), 0.1))

    def sweep(self) -> None:
        """Do what both roles do now and then unasked."""
        for namespace, name in self.grants.find_grown():
            self.grants.reconcile(namespace, name)
        self.machine_disks.follow()
        for node in self.disks:
            if self.compute[node].runs:
                for namespace, name in self.role(node).find_drifted():
                    self.role(node).reconcile(namespace, name)
        self.reconcile()

    def _call_all(self) -> bool:
        """Call who is to be called now; say whether anybody was."""
        called = False
        for key in sorted(self.api.disks):
            called |= self._call(CLUSTER_ROLE, key, self._seen_to_by(self.api.disks[key]))
            for node in self.disks:
                disk = self.api.disks.get(key)
                if disk is not None and self.compute[node].runs and _concerns(node, disk):
                    called |= self._call(node, key, self.role(node).reconcile)
        return called

    def _seen_to_by(self, disk: AoEGuestDisk) -> Reconcile:
        return self.grants.reconcile if disk.spec.libvirt is not None else self.machine_disks.reconcile

    def give_up(self) -> None:
        """Do what the cluster role does now and then for disks whose definition is going."""
        give_up(self._client(self._processes[CONTROL, CLUSTER_ROLE]), self._seen_to_by)

    def _call(self, role: str, key: Key, reconcile: Reconcile) -> bool:
        disk = self.api.disks.get(key)
        if disk is None:
            return False
        kopf = self.kopfs.setdefault(role, Kopf(host_finalizer(role), partial(_asked_for_on, role)))
        uid, going = disk.metadata.uid, disk.metadata.deletion_timestamp is not None
        if kopf.finalizer not in disk.metadata.finalizers:
            if going:
                return False
            disk = self._put_finalizers(disk, (*disk.metadata.finalizers, kopf.finalizer))
        now_s, essence = self.world.clock.now(), kopf.essence(disk)
        if uid in kopf.due_s:
            if kopf.due_s[uid] > now_s:
                return False
        elif kopf.handled.get(uid) == essence:
            return False
        try:
            again_s = reconcile(*key)
        except AoECsiError:
            again_s = _AFTER_AN_ERROR_S
        now = self.api.disks.get(key)
        if again_s is not None:
            kopf.due_s[uid] = now_s + again_s
            if now is not None:
                self.api.put_disk(now)  # The annotation that tells of the next try.
            return True
        kopf.due_s.pop(uid, None)
        kopf.handled[uid] = essence
        if going and now is not None and now.metadata.uid == uid:
            self._put_finalizers(now, tuple(one for one in now.metadata.finalizers if one != kopf.finalizer))
        return True

    def is_on(self, name: str, node: NodeName) -> bool:
        """Say whether the status has the guest on a node."""
        return any(one.host == node and one.here for one in self.disk(name).status.hosts)

    def _put_finalizers(self, disk: AoEGuestDisk, finalizers: tuple[str, ...]) -> AoEGuestDisk:
        metadata = msgspec.structs.replace(disk.metadata, finalizers=finalizers)
        return self.api.put_disk(msgspec.structs.replace(disk, metadata=metadata))

    # --- what people do, and see ---

    def disk(self, name: str) -> AoEGuestDisk:
        """Return a guest's disk."""
        return self.api.disks[NAMESPACE, name]

    def says(self, name: str, type_: str) -> str:
        """Return the status of a condition, empty when it is not there."""
        return next((one.status for one in self.disk(name).status.conditions if one.type == type_), "")

    def plug_by_resource(self, name: str, claim: str, machine: str) -> None:
        """Make a disk of a machine of KubeVirt's and wait until it has it. Raises: Unfinished."""
        self.api.add_machine_disk(name, claim, machine)
        self.reconcile()
        if self.says(name, "Attached") != "True":
            raise Unfinished(f"{name}: {self.trouble(name)}")

    def attach_by_resource(self, name: str, claim: str, node: NodeName) -> None:
        """Make a guest's disk and wait until the guest has it. Raises: Unfinished."""
        self.api.add_disk(name, claim, node)
        self.reconcile()
        if self.says(name, "Attached") != "True":
            raise Unfinished(f"{name}: {self.trouble(name)}")

    def detach_by_resource(self, name: str) -> None:
        """Delete a guest's disk and wait until it is gone. Raises: Unfinished."""
        self.api.delete_disk(name)
        self.reconcile(_VERY_PATIENT_S)
        if (NAMESPACE, name) in self.api.disks:
            raise Unfinished(f"{name}: {self.trouble(name)}")

    def check_refused(self, name: str, words: str, untouched: Callable[[], None]) -> None:
        """Prove that a disk is refused in words and nothing is left of the try, and that it can be deleted."""
        self.reconcile()
        assert self.says(name, "Attached") != "True"
        assert words in self.trouble(name)
        untouched()
        self.detach_by_resource(name)
        untouched()

    def trouble(self, name: str) -> str:
        """Return what a person would read in the conditions."""
        said = self.disk(name).status.conditions
        return "; ".join(f"{one.type} {one.reason}: {one.message}" for one in said if one.status == "False")
