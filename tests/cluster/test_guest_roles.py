"""The two roles of a guest's disk under kopf and on a real API server; host, guest and tickets are fakes.

What the roles do when they are killed is swept in tests/simulated. Here it is shown that kopf calls them, and what for.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.cluster.operators import operator_thread
from tests.cluster.test_guest_disks import CLASSES, define, manifest
from tests.cluster.test_virtual_machines import define_kubevirt, instance, virtual_machine
from tests.simulated.cluster import COMPUTE_NODES
from tests.simulated.guest_disk_cluster import GuestDiskCluster, TicketGrants
from tests.simulated.test_guests import VOLUME, spec

from aoe_core.fakes.hypervisor import Unplug
from aoe_core.model import NodeName, VolumeId, serial_of
from aoe_core.resources.guest_access import AccessRule, AccessRules
from aoe_core.resources.guest_disk import AoEGuestDisk, host_finalizer
from aoe_core.resources.guest_kubernetes import KubernetesClaims, KubernetesGuestDisks, KubernetesMachines
from aoe_core.units import MIB
from aoe_lab.kubernetes.control_plane import ControlPlane
from aoe_operator import handlers
from aoe_operator.guest_definition import give_up
from aoe_operator.guest_grants import GuestGrants
from aoe_operator.guests import GuestsRole
from aoe_operator.machine_disks import MachineDisks

NODE, OTHER_NODE = COMPUTE_NODES
NAMESPACE = "roles"
LIMIT_S = 120.0
RULE = AccessRule(namespaces=(NAMESPACE,), domains=("g1",), virtual_machines=("vm1",))
ALLOWED = AccessRules(access=(RULE,))
CLAIM = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: roles}
spec:
  accessModes: [MODE]
  storageClassName: at-once
  volumeMode: Block
  resources: {requests: {storage: 1Mi}}
"""
PERSISTENT_VOLUME = f"""
apiVersion: v1
kind: PersistentVolume
metadata: {{name: pv-roles}}
spec:
  accessModes: [MODE]
  capacity: {{storage: 1Mi}}
  storageClassName: at-once
  volumeMode: Block
  persistentVolumeReclaimPolicy: Retain
  claimRef: {{namespace: roles, name: data}}
  csi: {{driver: aoe-csi.dev, volumeHandle: {VOLUME}}}
"""


class _NoPlacement:
    """The cluster role's other half, which is not asked for anything here."""

    def place(self, name: str) -> float | None:
        raise AssertionError(name)

    decommission = place

    def knows_live(self, node: str) -> bool:
        raise AssertionError(node)


@dataclass(frozen=True, slots=True)
class _Hosts:
    """Nodes, all of them registered."""

    machines: GuestDiskCluster

    def node_ids(self) -> Mapping[str, str]:
        return {node: str(self.machines.identity(node)) for node in COMPUTE_NODES}

    def is_given_up(self, node: str) -> bool:
        assert node in COMPUTE_NODES
        return False


@dataclass(slots=True)
class Roles:
    """The cluster role and a role for each host, each under a kopf of its own; machines are a cluster of fakes."""

    plane: ControlPlane
    machines: GuestDiskCluster
    disks: KubernetesGuestDisks
    claims: KubernetesClaims
    virtual_machines: KubernetesMachines
    guard: threading.Lock = field(default_factory=threading.Lock)
    """The fakes are for one thread at a time."""
    grants: GuestGrants = field(init=False)
    machine_disks: MachineDisks = field(init=False)
    hosts: dict[str, GuestsRole] = field(default_factory=dict)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Begin, as fresh processes do."""
        self._stopped = threading.Event()
        process = self.machines.compute[NODE].start_process("cluster role")
        self.grants = GuestGrants(
            self.disks,
            self.claims,
            _Hosts(self.machines),
            TicketGrants(self.machines, process),
            rules=lambda: self.machines.api.rules,
        )
        self.machine_disks = MachineDisks(
            self.disks,
            self.claims,
            self.virtual_machines,
            TicketGrants(self.machines, process),
            rules=lambda: self.machines.api.rules,
        )
        seen_to = handlers.GuestDiskRoles(
            grant=self._one_at_a_time(self.grants.reconcile), plug=self._one_at_a_time(self.machine_disks.reconcile)
        )
        told = [handlers.cluster(_NoPlacement(), seen_to)]  # type: ignore[arg-type]
        for node in COMPUTE_NODES:
            role = self.hosts[node] = GuestsRole(node, self.machines.disks[node], self.disks)
            told.append(handlers.guests(self._one_at_a_time(role.reconcile), node))
        self._threads = [operator_thread(one, self._stopped) for one in told]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _one_at_a_time(self, reconcile: handlers.ReconcileWithin) -> handlers.ReconcileWithin:
        def guarded(namespace: str, name: str) -> float | None:
            with self.guard:
                return reconcile(namespace, name)

        return guarded

    # --- what people do, and see ---

    def apply(self, **guest: str) -> None:
        """Make a guest's disk, or say where its guest is to be."""
        wanted: dict[str, Any] = {"claim": "data", "libvirt": {"host": NODE, "domain": "g1"} | guest}
        self.plane.kubectl("apply", "-f-", stdin=manifest(wanted, NAMESPACE))

    def plug(self, machine: str) -> None:
        """Make a disk of a machine of KubeVirt's."""
        wanted: dict[str, Any] = {"claim": "data", "kubevirt": {"virtualMachine": machine}}
        self.plane.kubectl("apply", "-f-", stdin=manifest(wanted, NAMESPACE))

    def disk(self) -> AoEGuestDisk | None:
        return self.disks.find(NAMESPACE, "d")

    def await_(self, what: str, holds: Callable[[AoEGuestDisk | None], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not holds(seen := self.disk()):
            assert time.monotonic() < deadline, f"waited in vain for {what}: {seen}"
            time.sleep(0.1)

    def await_said(self, type_: str, status: str) -> str:
        """Wait for a condition; return its message."""
        message = ""

        def holds(disk: AoEGuestDisk | None) -> bool:
            nonlocal message
            said = disk.status.conditions if disk is not None else ()
            found = [one for one in said if (one.type, one.status) == (type_, status)]
            message = found[0].message if found else ""
            return bool(found)

        self.await_(f"{type_} {status}", holds)
        return message

    def await_gone(self) -> None:
        self.await_("its end", lambda disk: disk is None)

    def delete(self) -> None:
        self.plane.kubectl("delete", "aoeguestdisk/d", f"--namespace={NAMESPACE}", "--wait=false", "--ignore-not-found")

    def claim_finalizers(self) -> tuple[str, ...]:
        claim = self.claims.find_claim(NAMESPACE, "data")
        assert claim is not None
        return tuple(one for one in claim.finalizers if one != "kubernetes.io/pvc-protection")

    def hosts_of(self) -> list[str]:
        disk = self.disk()
        return [] if disk is None else [one.host for one in disk.status.hosts]


@pytest.fixture(params=["ReadWriteOnce"])
def roles(plane: ControlPlane, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Roles]:
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))  # Where kopf looks.
    define(plane, NAMESPACE)
    plane.kubectl("apply", "-f-", stdin=CLASSES)
    plane.kubectl("create", "-f-", stdin=f"{PERSISTENT_VOLUME}---{CLAIM}".replace("MODE", request.param))
    plane.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "pvc/data", f"-n{NAMESPACE}", "--timeout=60s")
    machines = GuestDiskCluster()
    machines.api.rules = ALLOWED
    machines.engine.create_volume(spec())
    with (
        KubernetesGuestDisks(plane.kubeconfig, holder="test") as disks,
        KubernetesClaims(plane.kubeconfig, holder="test") as claims,
        KubernetesMachines(plane.kubeconfig, holder="test") as virtual_machines,
    ):
        made = Roles(plane, machines, disks, claims, virtual_machines)
        made.start()
        try:
            yield made
            made.delete()
            made.await_gone()
            assert made.claim_finalizers() == ()
            assert machines.api.tickets == {}
            for node in COMPUTE_NODES:
                machines.attachers[node].tend()
            machines.check_no_guest_disk_left()
            assert machines.held(VOLUME) == ()
        finally:
            made.end()
            for one in disks.list():
                disks.put_finalizers(one, ())
            plane.kubectl(
                "delete", "aoeguestdisks,pvc", "--all", f"-n{NAMESPACE}", "--wait=false", "--ignore-not-found"
            )
            plane.kubectl("delete", "pv,storageclass", "--all")


def test_a_claim_becomes_a_disk_of_a_running_guest(roles: Roles) -> None:
    roles.apply()
    assert "serial" in roles.await_said("Attached", "True")
    with roles.guard:
        guest, hypervisor = roles.machines.guest[NODE], roles.machines.compute[NODE].hypervisor
        hypervisor.write(guest, roles.machines.target(NODE), MIB, b"written")
    assert len(roles.claim_finalizers()) == 1
    disk = roles.disk()
    assert disk is not None
    assert host_finalizer(NODE) in disk.metadata.finalizers
    assert host_finalizer(OTHER_NODE) not in disk.metadata.finalizers


@pytest.mark.parametrize("roles", ["ReadWriteMany"], indirect=True)
def test_a_guest_moves_and_is_followed(roles: Roles) -> None:
    roles.apply()
    roles.await_said("Attached", "True")
    roles.apply(migrateTo=OTHER_NODE)
    roles.await_said("Migratable", "True")
    assert roles.hosts_of() == [NODE, OTHER_NODE]
    with roles.guard:
        machines = roles.machines
        source, target = (machines.compute[node].hypervisor for node in COMPUTE_NODES)
        target.stop(machines.guest[OTHER_NODE])
        target.undefine(machines.guest[OTHER_NODE])
        machines.guest[OTHER_NODE] = target.receive(machines.guest[NODE], source)
    roles.apply(host=OTHER_NODE)
    roles.await_("the former host to let go", lambda _: roles.hosts_of() == [OTHER_NODE])
    roles.await_said("Attached", "True")
    disk = roles.disk()
    assert disk is not None
    assert host_finalizer(NODE) not in disk.metadata.finalizers


def test_what_mends_a_refusal_is_seen_in_a_while(roles: Roles) -> None:
    roles.machines.api.rules = AccessRules()
    roles.apply()
    assert "an administrator allows it" in roles.await_said("Granted", "False")
    assert roles.claim_finalizers() == ()
    roles.machines.api.rules = ALLOWED
    roles.await_said("Attached", "True")


def test_roles_that_start_anew_go_on(roles: Roles) -> None:
    roles.apply()
    roles.await_said("Attached", "True")
    roles.end()
    for node in COMPUTE_NODES:
        roles.machines.disks[node] = roles.machines.new_command(node)
    roles.delete()
    roles.start()
    roles.await_gone()


def test_a_guest_that_does_not_let_go_is_waited_for(roles: Roles) -> None:
    roles.apply()
    roles.await_said("Attached", "True")
    with roles.guard:
        roles.machines.guest[NODE].unplug = Unplug.REFUSES
    roles.delete()
    assert "has not let go" in roles.await_said("Released", "False")
    assert roles.machines.api.tickets
    with roles.guard:
        roles.machines.guest[NODE].unplug = Unplug.OBEYS
    roles.await_gone()


def test_a_claim_becomes_a_disk_of_a_machine_of_kubevirt_s(roles: Roles) -> None:
    define_kubevirt(roles.plane)
    roles.plane.apply(virtual_machine(NAMESPACE), instance(NAMESPACE))
    roles.plug("vm1")
    assert "KubeVirt has not taken note of it" in roles.await_said("Attached", "False")
    machine = roles.virtual_machines.find_machine(NAMESPACE, "vm1")
    assert machine is not None
    own, volume = machine.volumes
    assert own == {"name": "root", "containerDisk": {"image": "system"}}
    assert volume["persistentVolumeClaim"] == {"claimName": "data", "hotpluggable": True}
    assert machine.disks[1] == {"name": volume["name"], "serial": serial_of(VOLUME), "disk": {"bus": "virtio"}}
    roles.plane.apply(instance(NAMESPACE, {"name": volume["name"], "phase": "Ready", "target": "vdb"}))
    assert "disk vdb of virtual machine vm1 on node node1" in roles.await_said("Attached", "True")
    roles.delete()
    assert "was asked to let go of it" in roles.await_said("Released", "False")
    roles.await_("a later look", lambda disk: "has not let go of it yet" in str(disk))
    assert len(roles.claim_finalizers()) == 1
    roles.plane.apply(instance(NAMESPACE))
    roles.await_gone()
    machine = roles.virtual_machines.find_machine(NAMESPACE, "vm1")
    assert machine is not None
    assert (machine.volumes, len(machine.disks)) == ((own,), 1)


def test_no_guest_loses_a_disk_whose_definition_goes(roles: Roles) -> None:
    """Nobody has asked for its end; and what is there can be cleared away by hand, as docs/runbooks.md has it."""
    roles.apply()
    roles.await_said("Attached", "True")
    roles.plane.kubectl("delete", "crd", "aoeguestdisks.aoe-csi.dev", "--wait=false")
    deadline = time.monotonic() + LIMIT_S
    while roles.plane.kubectl("get", "crd", "aoeguestdisks.aoe-csi.dev", check=False).code == 0:
        assert time.monotonic() < deadline, "the definition never went"
        with roles.guard:  # As the process does now and then.
            give_up(roles.disks, lambda _: roles.grants.reconcile)
        time.sleep(0.5)
    with roles.guard:
        (orphan,) = roles.hosts[NODE].find_orphans()
        assert roles.hosts[NODE].find_drifted() == ()
        assert roles.machines.target(NODE)
        assert roles.machines.held(VOLUME)
        assert roles.machines.api.tickets
    assert len(roles.claim_finalizers()) == 1

    define(roles.plane, NAMESPACE)
    with roles.guard:
        roles.machines.disks[NODE].detach(orphan.domain_uuid, orphan.volume_id, wait_s=10)
        for volume_id, node in tuple(roles.machines.api.tickets):
            del roles.machines.api.tickets[volume_id, node]
            roles.machines.engine.unpublish(VolumeId(volume_id), NodeName(node))
    words = ("data", f"--namespace={NAMESPACE}", "--type=merge", '-p={"metadata":{"finalizers":null}}')
    roles.plane.kubectl("patch", "pvc", *words)
