"""AoEGuestDisk: from a claim to the disk in a guest and back, by two roles that may die between any two steps."""

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import msgspec
import prometheus_client
import pytest
from tests.simulated.cluster import COMPUTE_NODES, STORAGE_NODE, Cluster
from tests.simulated.guest_api import NAMESPACE, Held
from tests.simulated.guest_disk_cluster import GuestDiskCluster
from tests.simulated.test_guests import ALIAS, GROWN_BYTES, VOLUME, on, spec
from tests.simulated.test_kill_sweep import Life, Operation, cut_power, cut_power_of_the_others, kill, sweep

from aoe_core.errors import InUse, NotFound, Unfinished, Unreachable
from aoe_core.fakes.hypervisor import Unplug
from aoe_core.guests.autostart import Autostart
from aoe_core.model import Attachment, NodeName, VolumeId
from aoe_core.resources.fields import GROUP
from aoe_core.resources.guest_access import AccessRule, AccessRules
from aoe_core.resources.guest_disk import AoEGuestDiskStatus, host_finalizer
from aoe_core.units import MIB
from aoe_lab.evidence import Evidence
from aoe_operator.guests_process import GuestsProcess

NODE, OTHER_NODE = COMPUTE_NODES
DISK, CLAIM = "disk", "claim"


by_resource = partial(on, GuestDiskCluster)


def delete(one: GuestDiskCluster) -> None:
    """End a claim that no guest has any more, and its volume."""
    one.api.delete_claim(CLAIM)
    assert one.api.claims == {}
    one.engine.delete_volume(VOLUME)


def resource_life() -> Life:
    """Return the life of a claim that is a running guest's disk, with a write in it."""

    def run(one: GuestDiskCluster) -> None:
        if not one.guest[NODE].running:
            one.compute[NODE].hypervisor.start(one.guest[NODE])

    def create(one: GuestDiskCluster) -> None:
        one.engine.create_volume(spec())
        if (NAMESPACE, CLAIM) not in one.api.claims:
            one.api.add_claim(CLAIM, VOLUME, "ReadWriteOnce")

    def attach(one: GuestDiskCluster) -> None:
        run(one)
        one.attach_by_resource(DISK, CLAIM, NODE)
        assert [disk.alias for disk in one.guest[NODE].config.values()] == [ALIAS]
        assert [disk.alias for disk in one.guest[NODE].live.values()] == [ALIAS]
        one.compute[NODE].hypervisor.write(one.guest[NODE], one.target(NODE), MIB, b"written")

    def grow(one: GuestDiskCluster) -> None:
        run(one)
        one.engine.expand_volume(VOLUME, GROWN_BYTES)
        one.sweep()
        if GROWN_BYTES not in one.guest[NODE].sizes.values():
            raise Unfinished(one.trouble(DISK))
        assert one.compute[NODE].hypervisor.read(one.guest[NODE], one.target(NODE), MIB, 7) == b"written"

    def detach(one: GuestDiskCluster) -> None:
        if (NAMESPACE, DISK) in one.api.disks:
            one.detach_by_resource(DISK)
        claim = one.api.claims[NAMESPACE, CLAIM]
        assert claim.finalizers == ()
        assert one.api.tickets == {}

    return Life(
        name="a claim that is a guest's disk",
        kind=GuestDiskCluster,
        operations=(
            Operation(name="create", act=by_resource(create)),
            Operation(name="attach", act=by_resource(attach)),
            Operation(name="grow", act=by_resource(grow)),
            Operation(name="detach", act=by_resource(detach)),
            Operation(name="sweep", act=lambda one: one.attachers[NODE].tend()),
            Operation(name="delete", act=by_resource(delete)),
        ),
        undo_from=3,
    )


@pytest.mark.parametrize("operation", ["attach", "grow", "detach"])
def test_roles_killed_anywhere_converge(operation: str, evidence: Evidence) -> None:
    life = resource_life()
    position = [one.name for one in life.operations].index(operation)
    # What else may befall machines, the calls below have been through (test_guests).
    sweep(life, position, evidence, abandoned="undone", deaths=(kill, cut_power, cut_power_of_the_others))


# --- one claim, one guest -------------------------------------------------------------------------------------------


@pytest.fixture
def cluster() -> GuestDiskCluster:
    made = GuestDiskCluster()
    made.engine.create_volume(spec())
    made.api.add_claim(CLAIM, VOLUME, "ReadWriteOnce")
    return made


@pytest.fixture
def attached(cluster: GuestDiskCluster) -> GuestDiskCluster:
    cluster.attach_by_resource(DISK, CLAIM, NODE)
    return cluster


def serve_again(cluster: GuestDiskCluster) -> None:
    """Have the node server and the role of the host's new boot."""
    cluster.attachers[NODE] = cluster._start_attacher(NODE)  # noqa: SLF001
    cluster.disks[NODE] = cluster.new_command(NODE)


def untouched(cluster: GuestDiskCluster) -> None:
    """Prove that nothing was done, or is left: no grant, no ticket, no finalizer, no disk."""
    assert cluster.held(VOLUME) == ()
    assert cluster.api.tickets == {}
    assert all(claim.finalizers == () for claim in cluster.api.claims.values())
    cluster.check_no_guest_disk_left()


def refused(cluster: GuestDiskCluster, words: str, *, claim: str = CLAIM, host: str = NODE, domain: str = "g1") -> None:
    """Prove that a disk is refused in words and nothing is left of the try, and that it can be deleted."""
    cluster.api.add_disk(DISK, claim, host, domain)
    cluster.check_refused(DISK, words, partial(untouched, cluster))


def test_its_status_tells_where_it_is(attached: GuestDiskCluster) -> None:
    status = attached.disk(DISK).status
    assert (status.guest, status.volume, status.size) == (f"{NODE}/g1", VOLUME, "12Mi")
    assert status.domain_uuid == attached.guest[NODE].uuid
    (host,) = status.hosts
    assert (host.host, host.here, host.target) == (NODE, True, "vdb")
    assert host.grant is not None
    assert host.grant.address.startswith("e10.")
    assert {one.type: one.status for one in status.conditions} == dict.fromkeys(
        ("Granted", "Attached", "Grown"), "True"
    )


def test_twenty_rounds_leak_nothing(cluster: GuestDiskCluster) -> None:
    for _ in range(20):
        cluster.attach_by_resource(DISK, CLAIM, NODE)
        assert cluster.target(NODE) == "vdb"
        cluster.detach_by_resource(DISK)
        cluster.attachers[NODE].tend()
        untouched(cluster)


def test_nothing_is_written_while_nothing_changes(attached: GuestDiskCluster) -> None:
    before = dict(attached.api.disks), dict(attached.api.claims)
    for _ in range(3):
        attached.sweep()
        attached.grants.reconcile(NAMESPACE, DISK)
        attached.role(NODE).reconcile(NAMESPACE, DISK)
    assert (attached.api.disks, attached.api.claims) == before


def test_a_claim_stays_until_the_guest_has_let_go_and_it_is_told_why(attached: GuestDiskCluster) -> None:
    attached.api.delete_claim(CLAIM)
    assert attached.api.claims[NAMESPACE, CLAIM].deleting
    attached.guest[NODE].unplug = Unplug.REFUSES
    attached.api.delete_disk(DISK)
    attached.reconcile()
    assert "keeps disk vdb" in attached.trouble(DISK)
    assert "has not let go of volume vol yet" in attached.trouble(DISK)
    assert attached.held(VOLUME)
    assert (NAMESPACE, CLAIM) in attached.api.claims
    attached.guest[NODE].unplug = Unplug.OBEYS
    attached.reconcile()
    assert attached.api.disks == {}
    assert attached.api.claims == {}
    attached.attachers[NODE].tend()
    untouched(attached)


def test_a_volume_that_can_only_be_read_is_only_read(cluster: GuestDiskCluster) -> None:
    """Whether its claim, the disk or the PersistentVolume says so."""
    name = cluster.api.claims[NAMESPACE, CLAIM].volume_name
    once = cluster.api.volumes[name]
    many = replace(once, access_modes=("ReadOnlyMany",))
    for volume, read_only in ((many, True), (once, True), (replace(once, read_only=True), False)):
        cluster.api.volumes[name] = volume
        cluster.api.add_disk(DISK, CLAIM, NODE, readOnly=read_only)
        cluster.reconcile()
        assert cluster.guest[NODE].live["vdb"].read_only
        assert all(not file.writable for file in cluster.held(VOLUME))
        cluster.detach_by_resource(DISK)
        cluster.attachers[NODE].tend()
        untouched(cluster)


def test_two_guests_may_read_one_volume(cluster: GuestDiskCluster) -> None:
    cluster.api.change_volume(CLAIM, access_modes=("ReadOnlyMany",))
    cluster.api.add_disk("first", CLAIM, NODE, readOnly=True)
    cluster.api.add_disk("second", CLAIM, OTHER_NODE, readOnly=True)
    cluster.reconcile()
    assert cluster.target(NODE) == cluster.target(OTHER_NODE) == "vdb"
    cluster.detach_by_resource("first")
    assert cluster.target(OTHER_NODE) == "vdb"
    assert len(cluster.api.claims[NAMESPACE, CLAIM].finalizers) == 1
    cluster.detach_by_resource("second")
    untouched(cluster)


# --- refusals -------------------------------------------------------------------------------------------------------


def test_a_domain_that_its_namespace_may_not_touch(cluster: GuestDiskCluster) -> None:
    cluster.api.rules = AccessRules()
    refused(cluster, f"namespace {NAMESPACE} may not attach to domain g1 of host {NODE}")


def test_a_list_that_changes_takes_nothing_from_a_guest(attached: GuestDiskCluster) -> None:
    attached.api.rules = AccessRules()
    attached.grants = attached.new_cluster_role()
    attached.reconcile()
    assert attached.says(DISK, "Granted") == "True"
    assert attached.target(NODE) == "vdb"


def test_a_claim_of_another_namespace(cluster: GuestDiskCluster) -> None:
    cluster.api.add_claim("theirs", VOLUME, "ReadWriteOnce", namespace="team-b")
    refused(cluster, f"claim {NAMESPACE}/theirs does not exist", claim="theirs")


def test_a_missing_guest(cluster: GuestDiskCluster) -> None:
    refused(cluster, "no domain 'g-none'", domain="g-none")


def test_a_guest_that_sleeps(cluster: GuestDiskCluster) -> None:
    cluster.compute[NODE].hypervisor.save(cluster.guest[NODE])
    refused(cluster, "sleeps with its memory on disk")


def test_a_host_that_is_no_compute_node(cluster: GuestDiskCluster) -> None:
    refused(cluster, f"host {STORAGE_NODE} is no compute node", host=STORAGE_NODE)


def test_a_claim_with_a_file_system(cluster: GuestDiskCluster) -> None:
    cluster.api.put_claim(replace(cluster.api.claims[NAMESPACE, CLAIM], block=False))
    refused(cluster, "use a claim with volumeMode: Block")


def test_a_claim_of_another_driver(cluster: GuestDiskCluster) -> None:
    cluster.api.change_volume(CLAIM, driver="nfs.csi.k8s.io")
    refused(cluster, "is a volume of nfs.csi.k8s.io")


def test_a_claim_that_is_read_only_for_writing(cluster: GuestDiskCluster) -> None:
    cluster.api.change_volume(CLAIM, access_modes=("ReadOnlyMany",))
    refused(cluster, "say readOnly: true")


def test_a_claim_that_is_being_deleted(cluster: GuestDiskCluster) -> None:
    claim = cluster.api.claims[NAMESPACE, CLAIM]
    cluster.api.put_claim(replace(claim, deleting=True, finalizers=("kubernetes.io/pvc-protection",)))
    cluster.api.add_disk(DISK, CLAIM, NODE)
    cluster.reconcile()
    assert "is being deleted" in cluster.trouble(DISK)
    assert cluster.api.claims[NAMESPACE, CLAIM].finalizers == ("kubernetes.io/pvc-protection",)


@pytest.mark.parametrize("node", [NODE, OTHER_NODE])
def test_a_claim_in_use_by_a_pod(cluster: GuestDiskCluster, node: str) -> None:
    cluster.api.tickets[VOLUME, node] = Held()
    cluster.api.add_disk(DISK, CLAIM, NODE)
    cluster.reconcile()
    assert f"is in use on {node}" in cluster.trouble(DISK)
    assert cluster.api.tickets == {(VOLUME, node): Held()}
    assert cluster.api.claims[NAMESPACE, CLAIM].finalizers == ()
    cluster.detach_by_resource(DISK)
    assert cluster.api.tickets == {(VOLUME, node): Held()}


@pytest.mark.parametrize("modes", [("ReadWriteOnce",), ("ReadWriteMany",)])
@pytest.mark.parametrize("node", [NODE, OTHER_NODE])
def test_a_claim_that_another_guest_has(cluster: GuestDiskCluster, node: str, modes: tuple[str, ...]) -> None:
    cluster.api.change_volume(CLAIM, access_modes=modes)
    cluster.attach_by_resource(DISK, CLAIM, NODE)
    held = cluster.api.claims[NAMESPACE, CLAIM].finalizers
    cluster.api.add_disk("second", CLAIM, node)
    cluster.reconcile()
    assert cluster.says("second", "Attached") != "True"
    assert "InUse" in cluster.trouble("second") or "has volume vol in domain g1" in cluster.trouble("second")
    assert cluster.api.claims[NAMESPACE, CLAIM].finalizers == held
    cluster.detach_by_resource("second")
    assert cluster.says(DISK, "Attached") == "True"
    assert cluster.target(NODE) == "vdb"
    assert cluster.held(VOLUME)


def test_a_claim_that_is_another_volume_by_now(attached: GuestDiskCluster) -> None:
    """Somebody forced it away and made another of its name: what the guest has is taken back all the same."""
    other = VolumeId("other")
    attached.engine.create_volume(spec(other))
    attached.api.claims.clear()
    attached.api.add_claim(CLAIM, other, "ReadWriteOnce")
    attached.grants = attached.new_cluster_role()
    attached.reconcile()
    assert "this disk is of volume vol" in attached.trouble(DISK)
    assert attached.target(NODE) == "vdb"
    attached.detach_by_resource(DISK)
    attached.attachers[NODE].tend()
    untouched(attached)
    assert attached.held(other) == ()


# --- claims that wait -----------------------------------------------------------------------------------------------


def test_a_claim_that_waits_is_bound_for_its_guest(cluster: GuestDiskCluster) -> None:
    claim = cluster.api.claims[NAMESPACE, CLAIM]
    cluster.api.waiting_classes["late"] = GROUP
    cluster.api.put_claim(replace(claim, bound=False, storage_class="late"))
    cluster.api.add_disk(DISK, CLAIM, NODE)
    cluster.reconcile()
    assert "is not bound yet" in cluster.trouble(DISK)
    chosen = cluster.api.claims[NAMESPACE, CLAIM]
    assert chosen.selected_node == NODE
    cluster.api.put_claim(replace(chosen, bound=True))
    cluster.reconcile()
    assert cluster.says(DISK, "Attached") == "True"


def test_a_claim_that_is_being_bound_for_a_pod_elsewhere(cluster: GuestDiskCluster) -> None:
    claim = cluster.api.claims[NAMESPACE, CLAIM]
    cluster.api.waiting_classes["late"] = GROUP
    cluster.api.put_claim(replace(claim, bound=False, storage_class="late", selected_node=OTHER_NODE))
    refused(cluster, f"is being bound for node {OTHER_NODE}")


def test_a_claim_that_waits_for_another_driver_is_not_bound_for_a_guest(cluster: GuestDiskCluster) -> None:
    """The other driver would make a volume where the claim's pod may not run."""
    claim = cluster.api.claims[NAMESPACE, CLAIM]
    cluster.api.waiting_classes["foreign"] = "hostpath.example.org"
    cluster.api.put_claim(replace(claim, bound=False, volume_name="", storage_class="foreign"))
    refused(cluster, "is a volume of hostpath.example.org, not of aoe-csi.dev")
    assert cluster.api.claims[NAMESPACE, CLAIM].selected_node == ""


def test_a_claim_that_waits_for_a_volume_made_by_hand_is_bound_for_its_guest(cluster: GuestDiskCluster) -> None:
    claim = cluster.api.claims[NAMESPACE, CLAIM]
    cluster.api.waiting_classes["by-hand"] = "kubernetes.io/no-provisioner"
    cluster.api.put_claim(replace(claim, bound=False, volume_name="", storage_class="by-hand"))
    cluster.api.add_disk(DISK, CLAIM, NODE)
    cluster.reconcile()
    assert cluster.api.claims[NAMESPACE, CLAIM].selected_node == NODE


# --- two of the cluster role, one slower than the other -------------------------------------------------------------


class Slow:
    """Grants of a second copy that is held up in the middle of a call."""

    def __init__(self, cluster: GuestDiskCluster, meanwhile: Callable[[], object]) -> None:
        process = cluster.world.machines["control1"].start_process("second copy")
        self.copy = cluster.copy_of_cluster_role(process)
        self._grants = self.copy._grants  # noqa: SLF001
        self._meanwhile = meanwhile
        self.copy._grants = self  # noqa: SLF001
        self.device_bytes = self._grants.device_bytes

    def publish(self, *what: object, **how: object) -> Attachment:
        self._meanwhile()
        granted: Attachment = self._grants.publish(*what, **how)  # type: ignore[arg-type]
        return granted

    def unpublish(self, volume_id: VolumeId, node: NodeName, *, guest: str) -> None:
        self._meanwhile()
        self._grants.unpublish(volume_id, node, guest=guest)


def test_a_slow_copy_takes_nothing_from_a_later_disk_of_the_same_name(attached: GuestDiskCluster) -> None:
    def made_anew() -> None:
        attached.detach_by_resource(DISK)
        attached.attachers[NODE].tend()
        attached.attach_by_resource(DISK, CLAIM, NODE)

    former = attached.disk(DISK)
    slow = Slow(attached, made_anew)
    slow.copy._take_back(former)  # noqa: SLF001 - what it came to when it had read the former disk.
    assert attached.target(NODE) == "vdb"
    assert attached.held(VOLUME)
    assert len(attached.api.claims[NAMESPACE, CLAIM].finalizers) == 1


def test_a_slow_copy_takes_back_what_it_granted_for_a_disk_that_is_gone(cluster: GuestDiskCluster) -> None:
    cluster.api.add_disk(DISK, CLAIM, NODE)
    cluster.grants.reconcile(NAMESPACE, DISK)
    cluster.role(NODE).reconcile(NAMESPACE, DISK)
    slow = Slow(cluster, lambda: cluster.detach_by_resource(DISK))
    slow.copy.reconcile(NAMESPACE, DISK)
    assert cluster.api.disks == {}
    untouched(cluster)


def test_a_process_that_is_late_attaches_nothing_that_was_deleted_meanwhile(attached: GuestDiskCluster) -> None:
    former, role = attached.disk(DISK), attached.role(NODE)
    attached.detach_by_resource(DISK)
    attached.attachers[NODE].tend()
    assert role._tried(former, role._attach) is not None  # noqa: SLF001 - what it came to when it had read the former disk.
    untouched(attached)


# --- bad endings ----------------------------------------------------------------------------------------------------


def test_a_lost_host_s_grant_is_taken_back_once_a_person_says_that_it_is_lost(attached: GuestDiskCluster) -> None:
    attached.world.power_loss(NODE)
    attached.api.delete_disk(DISK)
    attached.reconcile()
    assert attached.held(VOLUME), "nobody has said that the host is lost"
    assert f"kubectl taint node {NODE} node.kubernetes.io/out-of-service" in attached.trouble(DISK)
    attached.api.given_up.add(NODE)
    attached.reconcile()
    assert attached.api.disks == {}
    assert attached.held(VOLUME) == ()


def test_a_host_that_was_given_up_and_returns_is_told_of_and_gets_nothing_by_it(attached: GuestDiskCluster) -> None:
    attached.world.power_loss(NODE)
    attached.api.delete_disk(DISK)
    attached.api.given_up.add(NODE)
    attached.reconcile()
    attached.attach_by_resource("second", CLAIM, OTHER_NODE)
    attached.api.given_up.clear()
    attached.world.boot(NODE)
    serve_again(attached)
    (orphan,) = attached.role(NODE).find_orphans()
    assert (orphan.volume_id, orphan.domain_name) == (VOLUME, "g1")
    attached.sweep()
    assert not attached.guest[NODE].live
    assert attached.target(OTHER_NODE) == "vdb"
    attached.detach_by_resource("second")
    attached.api.add_disk("third", CLAIM, NODE)
    attached.reconcile()
    assert f"by deleting AoEGuestDisk {NAMESPACE}/{DISK}/" in attached.trouble("third")
    assert "aoe-csi guest detach g1 vol --orphan" in attached.trouble("third")
    assert attached.held(VOLUME) == ()


def test_a_cluster_put_back_to_before_the_disk_was_made_takes_nothing_away(attached: GuestDiskCluster) -> None:
    claim = attached.api.claims[NAMESPACE, CLAIM]
    attached.api.disks.clear()
    attached.api.tickets.clear()
    attached.api.put_claim(replace(claim, finalizers=()))
    attached.api.add_disk("other", CLAIM, NODE)
    attached.sweep()
    (orphan,) = attached.role(NODE).find_orphans()
    assert orphan.volume_id == VOLUME
    assert "still has volume vol in domain g1" in attached.trouble("other")
    assert attached.target(NODE) == "vdb"
    assert attached.held(VOLUME)


@pytest.mark.parametrize("finalizers", [(host_finalizer(NODE),), ()], ids=["known to the host", "new to the host"])
def test_a_disk_put_back_to_before_its_grant_is_attached_again_or_wholly_detached(
    attached: GuestDiskCluster, finalizers: tuple[str, ...]
) -> None:
    now = attached.disk(DISK)
    metadata = msgspec.structs.replace(now.metadata, finalizers=finalizers)
    earlier = msgspec.structs.replace(now, metadata=metadata, status=AoEGuestDiskStatus())
    attached.api.tickets.clear()
    attached.api.put_disk(earlier)
    attached.sweep()
    assert attached.says(DISK, "Attached") == "True"
    assert attached.target(NODE) == "vdb"
    attached.api.put_disk(earlier)
    attached.api.delete_disk(DISK)
    attached.role(NODE).reconcile(NAMESPACE, DISK)
    if finalizers:
        assert attached.guest[NODE].live == {}
    else:
        (orphan,) = attached.role(NODE).find_orphans()
        assert orphan.volume_id == VOLUME


@pytest.mark.parametrize("served", [True, False], ids=["kopf calls once more", "kopf is silent"])
def test_no_guest_loses_a_disk_whose_definition_goes(attached: GuestDiskCluster, *, served: bool) -> None:
    attached.api.definition_going = True
    attached.api.delete_disk(DISK)
    if served:
        attached.reconcile()
    else:
        attached.give_up()
    assert attached.api.disks == {}
    assert attached.target(NODE) == "vdb"
    assert attached.held(VOLUME)
    assert list(attached.api.tickets) == [(VOLUME, NODE)]
    assert attached.api.claims[NAMESPACE, CLAIM].finalizers
    (orphan,) = attached.role(NODE).find_orphans()
    assert orphan.volume_id == VOLUME


def test_a_disk_stays_that_is_not_to_go_while_its_definition_is_put_back(attached: GuestDiskCluster) -> None:
    attached.api.definition_going = True
    attached.give_up()
    attached.api.definition_going = False
    attached.sweep()
    assert attached.says(DISK, "Attached") == "True"


def test_a_disk_that_somebody_took_out_is_seen_and_put_in_again(attached: GuestDiskCluster) -> None:
    role = attached.role(NODE)
    assert role.find_drifted() == ()
    attached.compute[NODE].hypervisor.stop(attached.guest[NODE])
    attached.guest[NODE].config.clear()
    assert role.find_drifted() == ((NAMESPACE, DISK),)
    attached.sweep()
    assert list(attached.guest[NODE].config) == ["vdb"]
    assert role.find_drifted() == ()


def test_a_domain_that_is_renamed_keeps_its_disk_whoever_has_its_name_now(attached: GuestDiskCluster) -> None:
    attached.guest[NODE].name = "g9"
    attached.compute[NODE].hypervisor.define("g1")
    attached.disks[NODE] = attached.new_command(NODE)
    attached.sweep()
    assert attached.says(DISK, "Attached") == "True"
    assert "domain g1 on compute1, serial" in attached.disk(DISK).status.conditions[0].message
    attached.detach_by_resource(DISK)
    assert attached.guest[NODE].live == {}


def test_a_domain_that_is_undefined_is_told_of_and_its_disk_can_be_deleted(attached: GuestDiskCluster) -> None:
    hypervisor, guest = attached.compute[NODE].hypervisor, attached.guest[NODE]
    hypervisor.stop(guest)
    hypervisor.undefine(guest)
    attached.sweep()
    assert f"is not on host {NODE}" in attached.trouble(DISK)
    assert "delete this, and make another" in attached.trouble(DISK)
    assert attached.held(VOLUME)
    attached.detach_by_resource(DISK)
    attached.attachers[NODE].tend()
    assert attached.held(VOLUME) == ()


def test_while_libvirt_is_away_nothing_is_judged(attached: GuestDiskCluster) -> None:
    before = attached.disk(DISK).status
    attached.compute[NODE].hypervisor.answers = False
    attached.sweep()
    assert attached.disk(DISK).status == before
    attached.api.delete_disk(DISK)
    attached.reconcile()
    assert "libvirt does not answer" in attached.trouble(DISK)
    assert attached.held(VOLUME)
    attached.compute[NODE].hypervisor.answers = True
    attached.reconcile()
    assert attached.api.disks == {}


def test_what_is_missing_besides_the_domain_is_named(
    cluster: GuestDiskCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not taken for a domain that is gone, whose remedy is to delete the disk."""

    def missing(*_: object) -> None:
        raise NotFound("there is no network interface san0")

    with monkeypatch.context() as patched:
        patched.setattr(cluster.disks[NODE]._attacher, "stage", missing)  # noqa: SLF001
        cluster.api.add_disk(DISK, CLAIM, NODE)
        cluster.reconcile()
        assert "there is no network interface san0" in cluster.trouble(DISK)
        assert "delete this" not in cluster.trouble(DISK)
    cluster.reconcile(20)
    assert cluster.says(DISK, "Attached") == "True"


# --- live migration -------------------------------------------------------------------------------------------------


@pytest.fixture
def movable(cluster: GuestDiskCluster) -> GuestDiskCluster:
    """A running guest whose claim two nodes may have; the other host has no guest of its name."""
    cluster.api.change_volume(CLAIM, access_modes=("ReadWriteMany",))
    cluster.attach_by_resource(DISK, CLAIM, NODE)
    cluster.compute[NODE].hypervisor.write(cluster.guest[NODE], "vdb", MIB, b"written")
    other = cluster.compute[OTHER_NODE].hypervisor
    other.stop(cluster.guest[OTHER_NODE])
    other.undefine(cluster.guest[OTHER_NODE])
    return cluster


def migrated(cluster: GuestDiskCluster) -> None:
    """Move the guest, as virsh does."""
    source, target = (cluster.compute[node].hypervisor for node in (NODE, OTHER_NODE))
    cluster.guest[OTHER_NODE] = target.receive(cluster.guest[NODE], source)


def ready_to_move(cluster: GuestDiskCluster) -> None:
    cluster.api.move_disk(DISK, host=NODE, migrate_to=OTHER_NODE)
    cluster.reconcile()
    assert cluster.says(DISK, "Migratable") == "True", cluster.trouble(DISK)
    assert len(cluster.held(VOLUME)) == 2


def test_a_running_guest_moves_with_its_disk(movable: GuestDiskCluster) -> None:
    ready_to_move(movable)
    assert movable.target(NODE) == "vdb"
    migrated(movable)
    movable.compute[OTHER_NODE].hypervisor.write(movable.guest[OTHER_NODE], "vdb", 2 * MIB, b"moved")
    movable.sweep()
    assert (movable.is_on(DISK, NODE), movable.is_on(DISK, OTHER_NODE)) == (False, True)
    movable.api.move_disk(DISK, host=OTHER_NODE, migrate_to=None)
    movable.reconcile()
    assert movable.says(DISK, "Attached") == "True"
    assert {one.type for one in movable.disk(DISK).status.conditions} == {"Attached", "Granted", "Grown"}
    (held,) = movable.held(VOLUME)
    assert held.node == OTHER_NODE
    assert [one.host for one in movable.disk(DISK).status.hosts] == [OTHER_NODE]
    hypervisor = movable.compute[OTHER_NODE].hypervisor
    assert hypervisor.read(movable.guest[OTHER_NODE], "vdb", MIB, 7) == b"written"
    assert movable.records(NODE).all() == ()
    movable.detach_by_resource(DISK)
    for node in (NODE, OTHER_NODE):
        movable.attachers[node].tend()
    untouched(movable)


def test_a_move_that_is_called_off_leaves_the_guest_where_it_is(movable: GuestDiskCluster) -> None:
    ready_to_move(movable)
    movable.api.move_disk(DISK, host=NODE, migrate_to=None)
    movable.reconcile()
    (held,) = movable.held(VOLUME)
    assert held.node == NODE
    assert movable.records(OTHER_NODE).all() == ()
    assert {one.type for one in movable.disk(DISK).status.conditions} == {"Attached", "Granted", "Grown"}
    assert movable.compute[NODE].hypervisor.read(movable.guest[NODE], "vdb", MIB, 7) == b"written"


def test_a_host_with_a_running_guest_is_never_told_to_let_go_of_its_disk(movable: GuestDiskCluster) -> None:
    """Whichever way a person has it wrong: the host set too early, or the move called off after it."""
    ready_to_move(movable)
    movable.api.move_disk(DISK, host=OTHER_NODE, migrate_to=None)
    movable.reconcile()
    assert "domain g1 runs on this host with volume vol" in movable.trouble(DISK)
    assert f"if it is on host {NODE}, set libvirt.host to that" in movable.trouble(DISK)
    assert movable.target(NODE) == "vdb"
    movable.api.move_disk(DISK, host=NODE, migrate_to=OTHER_NODE)
    movable.sweep()
    movable.reconcile(20)
    assert movable.says(DISK, "Migratable") == "True", movable.trouble(DISK)
    migrated(movable)
    movable.api.move_disk(DISK, host=NODE, migrate_to=None)
    movable.reconcile(20)
    assert f"host {OTHER_NODE} has not let go of volume vol yet: domain g1 runs on this host" in movable.trouble(DISK)
    assert movable.target(OTHER_NODE) == "vdb"
    assert len(movable.held(VOLUME)) == 2
    movable.api.move_disk(DISK, host=OTHER_NODE, migrate_to=None)
    movable.reconcile(20)
    assert movable.says(DISK, "Attached") == "True"
    assert [file.node for file in movable.held(VOLUME)] == [OTHER_NODE]


def test_a_claim_for_one_node_does_not_move(attached: GuestDiskCluster) -> None:
    attached.api.move_disk(DISK, host=NODE, migrate_to=OTHER_NODE)
    attached.reconcile()
    assert "live migration takes a claim that is ReadWriteMany" in attached.trouble(DISK)
    assert attached.says(DISK, "Attached") == "True"
    assert [file.node for file in attached.held(VOLUME)] == [NODE]


def test_a_host_that_its_namespace_may_not_touch_is_not_moved_to(movable: GuestDiskCluster) -> None:
    movable.api.rules = AccessRules(access=(AccessRule(namespaces=("*",), domains=("*",), hosts=(NODE,)),))
    movable.api.move_disk(DISK, host=NODE, migrate_to=OTHER_NODE)
    movable.reconcile()
    assert f"may not attach to domain g1 of host {OTHER_NODE}" in movable.trouble(DISK)
    assert [file.node for file in movable.held(VOLUME)] == [NODE]


@pytest.mark.parametrize("away", ["in the look", "after it"])
def test_a_host_whose_libvirt_is_away_lets_go_of_nothing_that_may_run(movable: GuestDiskCluster, away: str) -> None:
    """The host is set too early; what the daemon cannot say is not taken for a no."""
    ready_to_move(movable)
    movable.api.move_disk(DISK, host=OTHER_NODE, migrate_to=None)
    hypervisor, role = movable.compute[NODE].hypervisor, movable.role(NODE)
    hypervisor.answers = away == "after it"
    role.reconcile(NAMESPACE, DISK)
    hypervisor.answers = True
    assert movable.records(NODE).all()[0].wanted
    movable.reconcile(20)
    assert movable.target(NODE) == "vdb"
    assert [disk.target for disk in movable.guest[NODE].config.values()] == ["vdb"]


def test_a_guest_goes_on_from_host_to_host(cluster: GuestDiskCluster) -> None:
    """The third is asked for before the first has let go; the storage machine is one of them, without any wire."""
    cluster = GuestDiskCluster(same_host=True)
    cluster.engine.create_volume(spec())
    cluster.api.add_claim(CLAIM, VOLUME, "ReadWriteMany")
    cluster.attach_by_resource(DISK, CLAIM, NODE)
    cluster.compute[NODE].hypervisor.write(cluster.guest[NODE], "vdb", MIB, b"written")
    hosts = (NODE, STORAGE_NODE, OTHER_NODE, NODE)
    for node in hosts[1:3]:
        cluster.compute[node].hypervisor.stop(cluster.guest[node])
        cluster.compute[node].hypervisor.undefine(cluster.guest[node])
    for source, target in itertools.pairwise(hosts):
        cluster.api.move_disk(DISK, host=source, migrate_to=target)
        cluster.reconcile(20)
        assert cluster.says(DISK, "Migratable") == "True", cluster.trouble(DISK)
        moved = cluster.compute[target].hypervisor.receive(cluster.guest[source], cluster.compute[source].hypervisor)
        cluster.guest[target] = moved
        cluster.api.move_disk(DISK, host=target, migrate_to=None)
    cluster.reconcile(20)
    assert cluster.says(DISK, "Attached") == "True"
    assert [file.node for file in cluster.held(VOLUME)] == [NODE]
    assert cluster.compute[NODE].hypervisor.read(cluster.guest[NODE], "vdb", MIB, 7) == b"written"


def test_a_volume_that_grows_in_a_move_is_large_where_the_guest_comes_to(movable: GuestDiskCluster) -> None:
    ready_to_move(movable)
    movable.engine.expand_volume(VOLUME, GROWN_BYTES)
    movable.sweep()
    assert movable.disk(DISK).status.size == "20Mi"
    migrated(movable)
    assert movable.guest[OTHER_NODE].sizes["vdb"] == GROWN_BYTES
    hypervisor = movable.compute[OTHER_NODE].hypervisor
    hypervisor.write(movable.guest[OTHER_NODE], "vdb", GROWN_BYTES - MIB, b"at its end")


def test_a_guest_that_left_its_definition_behind_is_not_started_there_again(movable: GuestDiskCluster) -> None:
    ready_to_move(movable)
    source, target = (movable.compute[node].hypervisor for node in (NODE, OTHER_NODE))
    left = movable.guest[NODE]
    movable.guest[OTHER_NODE] = target.receive(left, source, undefine_source=False)
    movable.sweep()
    assert movable.is_on(DISK, OTHER_NODE)
    assert f"domain g1 is on host {OTHER_NODE} now" in said(movable, "Migratable")
    for node in (NODE, OTHER_NODE):  # There its host is not set yet.
        with pytest.raises(InUse):
            movable.role(node).require_startable(left.uuid)
    movable.api.move_disk(DISK, host=OTHER_NODE, migrate_to=None)
    movable.reconcile(20)
    assert left.config == {}
    movable.role(OTHER_NODE).require_startable(left.uuid)
    assert [file.node for file in movable.held(VOLUME)] == [OTHER_NODE]


def said(cluster: GuestDiskCluster, type_: str) -> str:
    return next(one.message for one in cluster.disk(DISK).status.conditions if one.type == type_)


def test_a_host_that_died_and_whose_guest_was_started_elsewhere_starts_no_second_one(
    movable: GuestDiskCluster,
) -> None:
    ready_to_move(movable)
    former = movable.guest[NODE]
    movable.world.power_loss(NODE)
    target = movable.compute[OTHER_NODE].hypervisor
    guest = movable.guest[OTHER_NODE] = target.define("g1")
    target.guests.pop(guest.uuid)
    guest.uuid = former.uuid
    guest.config = dict(former.config)
    target.guests[guest.uuid] = guest
    target.start(guest)
    movable.api.move_disk(DISK, host=OTHER_NODE, migrate_to=None)
    movable.reconcile()
    starter = late(movable, lambda uuid: movable.role(NODE).require_startable(uuid))
    assert starter.start() == ("g1",)
    movable.disks[NODE].ready(VOLUME)
    assert starter.start() == ("g1",)
    assert not former.running


def read_only(cluster: GuestDiskCluster) -> None:
    """Have the guest's disk one that it may only read."""
    cluster.detach_by_resource(DISK)
    cluster.api.add_disk(DISK, CLAIM, NODE, readOnly=True)
    cluster.reconcile()


@pytest.mark.parametrize("writes", [True, False], ids=["to write", "to read"])
@pytest.mark.parametrize("seen", [True, False], ids=["its new host has said so", "its new host has not said so yet"])
def test_a_host_that_was_away_while_its_guest_went_starts_no_second_one(
    movable: GuestDiskCluster, seen: bool, writes: bool
) -> None:
    """Neither does the role, nor libvirt, which may still be at its autostart when the role comes to its devices."""
    if not writes:
        read_only(movable)
    ready_to_move(movable)
    left, source = movable.guest[NODE], movable.compute[NODE].hypervisor
    target = movable.compute[OTHER_NODE].hypervisor
    movable.guest[OTHER_NODE] = target.receive(left, source, undefine_source=False)
    if seen:
        movable.sweep()
    late(movable)
    process = process_of(movable)
    source.answers = False
    with pytest.raises(Unreachable):
        process.start_guests()
    process.ready()
    assert source.autostart() == ("g1",), "its device is not there"
    source.answers = True
    for _ in range(2):
        process.start_guests()
        process.ready()
        assert not left.running
    assert target.read(movable.guest[OTHER_NODE], "vdb", MIB, 7) == b"written"


def test_a_host_whose_grant_is_still_being_revoked_counts(movable: GuestDiskCluster) -> None:
    """Its export may be open, whatever its status says no more."""
    ready_to_move(movable)
    late(movable)
    disk = movable.disk(DISK)
    hosts = tuple(
        one if one.host == NODE else msgspec.structs.replace(one, grant=None, here=False) for one in disk.status.hosts
    )
    movable.api.put_disk(msgspec.structs.replace(disk, status=msgspec.structs.replace(disk.status, hosts=hosts)))
    with pytest.raises(InUse, match=f"may be on host {OTHER_NODE}"):
        movable.role(NODE).require_startable(movable.guest[NODE].uuid)


def test_devices_that_nobody_else_can_have_come_back_without_the_api_server(
    cluster: GuestDiskCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, second = VolumeId("other"), "second"
    cluster.engine.create_volume(spec(other))
    cluster.api.add_claim(second, other, "ReadWriteMany")
    cluster.attach_by_resource(DISK, CLAIM, NODE)
    cluster.attach_by_resource(second, second, NODE)
    late(cluster)
    process = process_of(cluster)

    def silent(*_: object) -> None:
        assert set(cluster.compute[NODE].links) == {VOLUME}, "they wait for no answer"
        raise Unreachable("the API server does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(process._role._store, "list", silent)  # noqa: SLF001
        process.ready()
        assert set(cluster.compute[NODE].links) == {VOLUME}
    process.ready()
    assert set(cluster.compute[NODE].links) == {VOLUME, other}


def test_a_guest_that_sleeps_can_be_woken_after_a_boot_though_its_disk_is_to_go(movable: GuestDiskCluster) -> None:
    """Nothing is taken from a guest that sleeps, so that it has to be woken first."""
    hypervisor, guest = movable.compute[NODE].hypervisor, movable.guest[NODE]
    hypervisor.save(guest)
    movable.api.delete_disk(DISK)
    movable.reconcile()
    assert "sleeps with its memory on disk" in movable.trouble(DISK)
    late(movable)
    process_of(movable).ready()
    hypervisor.start(guest)
    movable.reconcile(20)
    assert movable.api.disks == {}


def test_a_guest_that_was_to_move_and_did_not_starts_with_its_host_once_the_move_is_called_off(
    movable: GuestDiskCluster, caplog: pytest.LogCaptureFixture
) -> None:
    ready_to_move(movable)
    late(movable)
    process, guest = process_of(movable), movable.guest[NODE]
    process.start_guests()
    process.ready()
    process.start_guests()
    assert not guest.running
    assert any("see that libvirt.migrateTo is removed" in str(vars(one).get("problem")) for one in caplog.records)
    movable.api.move_disk(DISK, host=NODE, migrate_to=None)
    movable.reconcile()
    process.ready()
    process.start_guests()
    assert (guest.running, list(guest.live)) == (True, ["vdb"])


def test_a_host_that_boots_before_a_guest_comes_to_it_is_ready_again(movable: GuestDiskCluster) -> None:
    ready_to_move(movable)
    movable.world.power_loss(OTHER_NODE)
    movable.world.boot(OTHER_NODE)
    movable.attachers[OTHER_NODE] = movable._start_attacher(OTHER_NODE)  # noqa: SLF001
    movable.disks[OTHER_NODE] = movable.new_command(OTHER_NODE)
    (drifted,) = movable.role(OTHER_NODE).find_drifted()
    assert movable.role(OTHER_NODE).reconcile(*drifted) is None
    migrated(movable)
    assert movable.compute[OTHER_NODE].hypervisor.read(movable.guest[OTHER_NODE], "vdb", MIB, 7) == b"written"


@pytest.mark.parametrize("runs", [False, True], ids=["that is off", "that runs"])
def test_what_a_guest_left_at_an_earlier_move_gets_no_disk_while_it_runs_elsewhere(
    movable: GuestDiskCluster, runs: bool
) -> None:
    """The host is set too early, and what has its UUID there could be started, or was."""
    left = replace(movable.guest[NODE], running=runs, live={}, config={}, open={}, sizes={}, plugged=set())
    target = movable.compute[OTHER_NODE].hypervisor
    target.guests[left.uuid] = movable.guest[OTHER_NODE] = left
    ready_to_move(movable)
    movable.sweep()
    assert "is ready: virsh migrate" in said(movable, "Migratable")
    movable.api.move_disk(DISK, host=OTHER_NODE, migrate_to=None)
    movable.reconcile()
    assert f"does not run here with it yet, and {NODE} may still have it" in movable.trouble(DISK)
    assert left.config == {}
    assert not movable.is_on(DISK, OTHER_NODE)
    assert movable.is_on(DISK, NODE)
    # It comes to an end where it was; then it is this host's.
    movable.compute[NODE].hypervisor.stop(movable.guest[NODE])
    movable.reconcile(20)
    assert movable.says(DISK, "Attached") == "True", movable.trouble(DISK)
    assert list(left.config) == ["vdb"]
    assert [file.node for file in movable.held(VOLUME)] == [OTHER_NODE]


def test_a_libvirt_that_is_lost_in_an_attach_does_not_say_where_the_guest_is(
    attached: GuestDiskCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    hypervisor, guest = attached.compute[NODE].hypervisor, attached.guest[NODE]
    hypervisor.stop(guest)
    guest.config.clear()

    def lost(*_: object) -> None:
        hypervisor.answers = False
        raise Unfinished("the connection broke")

    with monkeypatch.context() as patched:
        patched.setattr(hypervisor, "attach_config", lost)
        attached.role(NODE).reconcile(NAMESPACE, DISK)
    assert "the connection broke" in attached.trouble(DISK)
    assert attached.is_on(DISK, NODE)
    hypervisor.answers = True
    attached.sweep()
    assert list(guest.config) == ["vdb"]


def test_a_guest_that_ends_where_it_came_to_before_that_is_its_host_waits_for_the_other(
    movable: GuestDiskCluster,
) -> None:
    ready_to_move(movable)
    migrated(movable)
    movable.sweep()
    assert movable.is_on(DISK, OTHER_NODE)
    movable.world.power_loss(NODE)
    movable.compute[OTHER_NODE].hypervisor.stop(movable.guest[OTHER_NODE])
    movable.api.move_disk(DISK, host=OTHER_NODE, migrate_to=None)
    movable.reconcile()
    assert f"{NODE} may still have it" in movable.trouble(DISK)
    assert "out-of-service" in movable.trouble(DISK)
    assert not movable.is_on(DISK, OTHER_NODE)
    movable.api.given_up.add(NODE)
    movable.reconcile(20)
    assert movable.says(DISK, "Attached") == "True", movable.trouble(DISK)
    movable.compute[OTHER_NODE].hypervisor.start(movable.guest[OTHER_NODE])
    assert movable.compute[OTHER_NODE].hypervisor.read(movable.guest[OTHER_NODE], "vdb", MIB, 7) == b"written"


def test_a_guest_that_is_still_coming_is_not_said_to_have_come(movable: GuestDiskCluster) -> None:
    ready_to_move(movable)
    coming = replace(movable.guest[NODE], config={}, open={}, sizes={}, plugged=set(), persistent=False)
    target = movable.compute[OTHER_NODE].hypervisor
    target.guests[coming.uuid] = movable.guest[OTHER_NODE] = coming
    coming.arriving = True
    movable.sweep()
    assert not movable.is_on(DISK, OTHER_NODE)
    assert "is ready: virsh migrate" in said(movable, "Migratable")
    coming.arriving = False
    movable.sweep()
    assert movable.is_on(DISK, OTHER_NODE)
    assert f"is on host {OTHER_NODE} now" in said(movable, "Migratable")


def test_a_move_that_is_called_off_and_on_again_comes_to_its_end(movable: GuestDiskCluster) -> None:
    ready_to_move(movable)
    record = movable.records(OTHER_NODE).all()[0]
    movable.records(OTHER_NODE).put(msgspec.structs.replace(record, wanted=False))  # A killed process left it so.
    movable.role(OTHER_NODE).reconcile(NAMESPACE, DISK)
    assert movable.records(OTHER_NODE).all()[0].wanted
    migrated(movable)


def test_what_a_host_still_has_after_it_was_given_up_is_told_of(movable: GuestDiskCluster) -> None:
    ready_to_move(movable)
    movable.world.power_loss(OTHER_NODE)
    movable.api.given_up.add(OTHER_NODE)
    movable.api.move_disk(DISK, host=NODE, migrate_to=None)
    movable.reconcile(20)
    assert [file.node for file in movable.held(VOLUME)] == [NODE]
    movable.world.boot(OTHER_NODE)
    movable.disks[OTHER_NODE] = movable.new_command(OTHER_NODE)
    (orphan,) = movable.role(OTHER_NODE).find_orphans()
    assert orphan.volume_id == VOLUME
    assert movable.role(NODE).find_orphans() == ()


def test_a_grant_that_is_on_its_way_back_is_not_used(movable: GuestDiskCluster) -> None:
    ready_to_move(movable)
    seen = movable.disk(DISK)
    movable.api.move_disk(DISK, host=NODE, migrate_to=None)
    movable.reconcile(20)
    movable.api.move_disk(DISK, host=NODE, migrate_to=OTHER_NODE)
    role = movable.role(OTHER_NODE)
    assert role._tried(seen, role._prepare) is not None  # noqa: SLF001 - what it came to with what it had read before.
    assert movable.records(OTHER_NODE).all() == ()


def move_life(*, stays: bool) -> Life:
    """Return the life of a claim whose guest moves to another host, or `stays`, the move being called off."""

    def create(one: GuestDiskCluster) -> None:
        one.engine.create_volume(spec())
        if (NAMESPACE, CLAIM) not in one.api.claims:
            one.api.add_claim(CLAIM, VOLUME, "ReadWriteMany")
        other = one.compute[OTHER_NODE].hypervisor
        other.stop(one.guest[OTHER_NODE])
        other.undefine(one.guest[OTHER_NODE])
        one.attach_by_resource(DISK, CLAIM, NODE)
        one.compute[NODE].hypervisor.write(one.guest[NODE], one.target(NODE), MIB, b"written")

    def prepare(one: GuestDiskCluster) -> None:
        one.api.move_disk(DISK, host=NODE, migrate_to=OTHER_NODE)
        one.reconcile()
        if one.says(DISK, "Migratable") != "True":
            raise Unfinished(one.trouble(DISK))

    def move(one: GuestDiskCluster) -> None:
        if not one.guest[NODE].running:
            one.compute[NODE].hypervisor.start(one.guest[NODE])
        migrated(one)

    def settle(one: GuestDiskCluster) -> None:
        host = NODE if stays else OTHER_NODE
        one.api.move_disk(DISK, host=host, migrate_to=None)
        one.reconcile()
        one.sweep()
        if [file.node for file in one.held(VOLUME)] != [host] or one.says(DISK, "Attached") != "True":
            raise Unfinished(one.trouble(DISK))
        if not one.guest[host].running:
            one.compute[host].hypervisor.start(one.guest[host])
        assert one.compute[host].hypervisor.read(one.guest[host], one.target(host), MIB, 7) == b"written"

    def detach(one: GuestDiskCluster) -> None:
        if (NAMESPACE, DISK) in one.api.disks:
            one.detach_by_resource(DISK)

    def sweep_all(one: Cluster) -> None:
        for attacher in one.attachers.values():
            attacher.tend()

    middle = [Operation(name="prepare", act=by_resource(prepare))]
    if not stays:
        middle.append(Operation(name="move", act=by_resource(move)))
    middle.append(Operation(name="settle", act=by_resource(settle)))
    return Life(
        name="a guest that stays" if stays else "a guest that moves",
        kind=GuestDiskCluster,
        operations=(
            Operation(name="create", act=by_resource(create)),
            *middle,
            Operation(name="detach", act=by_resource(detach)),
            Operation(name="sweep", act=sweep_all),
            Operation(name="delete", act=by_resource(delete)),
        ),
        undo_from=1 + len(middle),
    )


@pytest.mark.parametrize(
    ("stays", "operation"), [(False, "prepare"), (False, "settle"), (True, "settle")], ids=["prepare", "move", "stay"]
)
def test_roles_killed_anywhere_in_a_move_converge(stays: bool, operation: str, evidence: Evidence) -> None:
    life = move_life(stays=stays)
    position = [one.name for one in life.operations].index(operation)
    deaths = (kill, cut_power) if operation == "prepare" else (kill,)
    sweep(life, position, evidence, abandoned="undone", deaths=deaths)


# --- after a boot of the host ---------------------------------------------------------------------------------------


def _anywhere(_: str) -> None:
    """Have no other host that a guest could be on."""


def late(cluster: GuestDiskCluster, require_startable: Callable[[str], None] = _anywhere) -> Autostart:
    """Cut the power of the guest's host, and let libvirt come up before the devices: its guest does not start."""
    machine = cluster.compute[NODE]
    if machine.powered:
        cluster.world.power_loss(NODE)
    cluster.world.boot(NODE)
    assert machine.hypervisor.autostart() == ("g1",)
    serve_again(cluster)
    return autostart(cluster, require_startable)


def autostart(cluster: GuestDiskCluster, require_startable: Callable[[str], None] = _anywhere) -> Autostart:
    """Return what the role's process starts guests with; one process after the other may."""
    process = cluster.compute[NODE].start_process("autostart")
    return Autostart(
        cluster.compute[NODE].boot_id,
        cluster.disks[NODE],
        process.hypervisor,
        process.records("autostart"),
        require_startable,
    )


def test_a_guest_whose_disks_come_after_libvirt_is_started_once(attached: GuestDiskCluster) -> None:
    starter, guest = late(attached), attached.guest[NODE]
    assert starter.start() == ("g1",)
    assert not guest.running, "its disk has no device yet"
    attached.disks[NODE].ready(VOLUME)
    assert autostart(attached).start() == ()
    assert (guest.running, list(guest.live)) == (True, ["vdb"])
    attached.compute[NODE].hypervisor.stop(guest)
    assert autostart(attached).start() == ()
    assert not guest.running, "a person has shut it down"


def test_who_is_started_meanwhile_or_undefined_waits_no_more(attached: GuestDiskCluster) -> None:
    starter, guest = late(attached), attached.guest[NODE]
    assert starter.start() == ("g1",)
    attached.disks[NODE].ready(VOLUME)
    attached.compute[NODE].hypervisor.start(guest)
    assert starter.start() == ()
    attached.compute[NODE].hypervisor.stop(guest)
    assert starter.start() == ()
    assert not guest.running
    starter = late(attached)
    assert starter.start() == ("g1",)
    attached.compute[NODE].hypervisor.undefine(guest)
    assert starter.start() == ()


def test_a_guest_that_a_person_shut_down_before_anybody_looked_stays_off(attached: GuestDiskCluster) -> None:
    """Its device is there, so that libvirt cannot have been refused it."""
    attached.compute[NODE].hypervisor.stop(attached.guest[NODE])
    assert autostart(attached).start() == ()
    assert not attached.guest[NODE].running


def test_who_waits_is_found_out_anew_when_it_cannot_be_read(attached: GuestDiskCluster) -> None:
    starter = late(attached)
    attached.compute[NODE].record_directory("autostart").seen["waiting"] = "{"
    assert starter.start() == ("g1",)


def test_guests_without_disks_of_ours_or_not_to_start_with_the_host_are_left_alone(attached: GuestDiskCluster) -> None:
    hypervisor = attached.compute[NODE].hypervisor
    attached.guest[NODE].autostart = False
    other = hypervisor.define("other", autostart=True)
    attached.world.power_loss(NODE)
    attached.world.boot(NODE)
    serve_again(attached)
    attached.disks[NODE].ready(VOLUME)
    assert autostart(attached).start() == ()
    assert not attached.guest[NODE].running
    assert not other.running


def process_of(
    cluster: GuestDiskCluster,
    stop: threading.Event | None = None,
    find_change: Callable[[], str | None] = lambda: None,
) -> GuestsProcess:
    """Return the role's process of the host's present boot."""
    role = cluster.role(NODE)
    return GuestsProcess(
        role,
        cluster.disks[NODE],
        cluster.attachers[NODE],
        autostart(cluster, role.require_startable),
        stop=stop or threading.Event(),
        find_change=find_change,
        sweep_s=5.0,
    )


def test_the_process_readies_devices_and_starts_who_waited_for_them(attached: GuestDiskCluster) -> None:
    late(attached)
    process, guest = process_of(attached), attached.guest[NODE]
    process.start_guests()
    assert not guest.running
    process.ready()
    process.start_guests()
    assert (guest.running, list(guest.live)) == (True, ["vdb"])


def test_who_waits_is_noted_while_libvirt_is_too_busy_to_answer(attached: GuestDiskCluster) -> None:
    """Else the devices would be there at the first look that it answers, and nobody would seem to have waited."""
    late(attached)
    process, guest, hypervisor = process_of(attached), attached.guest[NODE], attached.compute[NODE].hypervisor
    hypervisor.answers = False
    with pytest.raises(Unreachable):
        process.start_guests()
    process.ready()
    hypervisor.answers = True
    process.start_guests()
    assert guest.running


def test_the_process_mends_and_tells(attached: GuestDiskCluster, caplog: pytest.LogCaptureFixture) -> None:
    process = process_of(attached)
    attached.compute[NODE].hypervisor.stop(attached.guest[NODE])
    attached.guest[NODE].config.clear()
    process.sweep()
    assert list(attached.guest[NODE].config) == ["vdb"]
    gone = attached.api.disks.pop((NAMESPACE, DISK))
    for _ in range(2):
        process.sweep()
    told = [one for one in caplog.records if "AoEGuestDisk that is no more" in one.message]
    assert len(told) == 1, "once, and not at every sweep"
    assert prometheus_client.REGISTRY.get_sample_value("aoe_csi_guest_orphans") == 1
    attached.api.disks[NAMESPACE, DISK] = gone
    process.sweep()
    assert prometheus_client.REGISTRY.get_sample_value("aoe_csi_guest_orphans") == 0


def test_the_process_ends_when_its_host_is_not_what_it_was(attached: GuestDiskCluster) -> None:
    changes = [None, "rules or interfaces have changed"]
    stop = threading.Event()
    process = process_of(attached, stop, lambda: changes.pop(0))
    process.end_if_changed()
    assert not stop.is_set()
    process.end_if_changed()
    assert stop.is_set()


def test_the_process_outlives_what_fails_and_ends_when_it_is_told_to(attached: GuestDiskCluster) -> None:
    attached.compute[NODE].hypervisor.answers = False
    before = threading.active_count()
    with process_of(attached):
        assert threading.active_count() > before
    assert threading.active_count() == before
    assert attached.guest[NODE].open, "it lets go of nothing"
