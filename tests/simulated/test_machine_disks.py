"""AoEGuestDisk of KubeVirt's machines: a claim into a machine's spec and out, by a role that may die at any step."""

from dataclasses import replace
from functools import partial

import pytest
from tests.simulated.cluster import COMPUTE_NODES
from tests.simulated.guest_api import NAMESPACE
from tests.simulated.guest_disk_cluster import GuestDiskCluster
from tests.simulated.test_guests import VOLUME, on, spec
from tests.simulated.test_kill_sweep import Life, Operation, kill, sweep

from aoe_core.errors import Unsupported
from aoe_core.fakes.world import Step
from aoe_core.model import AccessMode, NodeName, VolumeId, serial_of
from aoe_core.resources.fields import GROUP
from aoe_core.resources.guest_access import AccessRules
from aoe_core.resources.virtual_machine import READY, volume_name, without_disk
from aoe_lab.evidence import Evidence
from aoe_operator.machine_disks import Unseen

NODE, OTHER_NODE = COMPUTE_NODES
DISK, CLAIM, MACHINE = "disk", "claim", "vm1"
OWN = "root"

by_resource = partial(on, GuestDiskCluster)


def plugged(one: GuestDiskCluster, machine: str = MACHINE) -> set[str]:
    """Return the volumes of a machine's spec besides its own, after proving that each has a disk."""
    found = one.kubevirt.machines[machine]
    volumes = {str(volume["name"]) for volume in found.volumes}
    assert volumes == {str(disk["name"]) for disk in found.disks}
    return volumes - {OWN}


def untouched(one: GuestDiskCluster) -> None:
    """Prove that nothing was done, or is left."""
    assert all(plugged(one, name) == set() for name in one.kubevirt.machines)
    assert all(not running.phases for running in one.kubevirt.running.values())
    assert all(claim.finalizers == () for claim in one.api.claims.values())


def plug_life(*, running: bool) -> Life:
    """Return the life of a claim that is a disk of a machine, running or not."""

    def create(one: GuestDiskCluster) -> None:
        one.engine.create_volume(spec())
        if (NAMESPACE, CLAIM) not in one.api.claims:
            one.api.add_claim(CLAIM, VOLUME, "ReadWriteOnce")
        if MACHINE not in one.kubevirt.machines:
            one.kubevirt.add(MACHINE, NODE if running else "")

    def attach(one: GuestDiskCluster) -> None:
        one.plug_by_resource(DISK, CLAIM, MACHINE)
        (volume,) = plugged(one)
        if running:
            assert one.kubevirt.running[MACHINE].phases == {volume: READY}
            assert one.kubevirt.running[MACHINE].serials == {volume: serial_of(VOLUME)}

    def detach(one: GuestDiskCluster) -> None:
        if (NAMESPACE, DISK) in one.api.disks:
            one.detach_by_resource(DISK)
        untouched(one)

    def delete(one: GuestDiskCluster) -> None:
        one.api.delete_claim(CLAIM)
        assert one.api.claims == {}
        one.engine.delete_volume(VOLUME)

    return Life(
        name="a claim that is a machine's disk",
        kind=GuestDiskCluster,
        operations=(
            Operation(name="create", act=by_resource(create)),
            Operation(name="attach", act=by_resource(attach)),
            Operation(name="detach", act=by_resource(detach)),
            Operation(name="delete", act=by_resource(delete)),
        ),
        undo_from=2,
    )


@pytest.mark.parametrize("running", [True, False], ids=["running", "not running"])
@pytest.mark.parametrize("operation", ["attach", "detach"])
def test_a_role_killed_anywhere_converges(operation: str, running: bool, evidence: Evidence) -> None:
    life = plug_life(running=running)
    position = [one.name for one in life.operations].index(operation)
    sweep(life, position, evidence, abandoned="undone", deaths=(kill,))


@pytest.fixture
def cluster() -> GuestDiskCluster:
    made = GuestDiskCluster()
    made.engine.create_volume(spec())
    made.api.add_claim(CLAIM, VOLUME, "ReadWriteOnce")
    made.kubevirt.add(MACHINE, NODE)
    return made


@pytest.fixture
def attached(cluster: GuestDiskCluster) -> GuestDiskCluster:
    cluster.plug_by_resource(DISK, CLAIM, MACHINE)
    return cluster


def refused(cluster: GuestDiskCluster, words: str, *, claim: str = CLAIM, machine: str = MACHINE) -> None:
    """Prove that a disk is refused in words and nothing is left of the try, and that it can be deleted."""
    cluster.api.add_machine_disk(DISK, claim, machine)
    cluster.check_refused(DISK, words, partial(untouched, cluster))


def test_its_status_tells_where_it_is(attached: GuestDiskCluster) -> None:
    status = attached.disk(DISK).status
    assert (status.guest, status.volume, status.serial, status.size) == (MACHINE, VOLUME, serial_of(VOLUME), "12Mi")
    (where,) = status.hosts
    assert (where.host, where.here, where.target, where.grant) == (NODE, True, "vdb", None)
    assert {one.type: one.status for one in status.conditions} == {"Attached": "True"}


def test_nothing_is_written_while_nothing_changes(attached: GuestDiskCluster) -> None:
    before = dict(attached.api.disks), dict(attached.api.claims), dict(attached.kubevirt.machines)
    for _ in range(3):
        attached.sweep()
        attached.machine_disks.reconcile(NAMESPACE, DISK)
    assert (attached.api.disks, attached.api.claims, attached.kubevirt.machines) == before


def test_twenty_rounds_leak_nothing(cluster: GuestDiskCluster) -> None:
    for _ in range(20):
        cluster.plug_by_resource(DISK, CLAIM, MACHINE)
        cluster.detach_by_resource(DISK)
        untouched(cluster)


def test_the_machine_is_followed_when_it_stops_and_starts_elsewhere(attached: GuestDiskCluster) -> None:
    attached.kubevirt.stop(MACHINE)
    attached.sweep()
    assert attached.disk(DISK).status.hosts == ()
    assert "which does not run" in attached.disk(DISK).status.conditions[0].message
    attached.kubevirt.start(MACHINE, OTHER_NODE)
    attached.sweep()
    assert [one.host for one in attached.disk(DISK).status.hosts] == [OTHER_NODE]


def test_a_machine_has_several(attached: GuestDiskCluster) -> None:
    second = VolumeId("second")
    attached.engine.create_volume(spec(second))
    attached.api.add_claim("other", second, "ReadWriteOnce")
    attached.plug_by_resource("second.disk", "other", MACHINE)
    assert sorted(attached.kubevirt.running[MACHINE].serials.values()) == sorted(map(serial_of, (VOLUME, second)))
    attached.detach_by_resource(DISK)
    assert set(attached.kubevirt.running[MACHINE].serials.values()) == {serial_of(second)}
    assert all("." not in name for name in plugged(attached))
    attached.detach_by_resource("second.disk")
    untouched(attached)


def test_what_somebody_takes_out_is_put_in_again(attached: GuestDiskCluster) -> None:
    name = volume_name(attached.disk(DISK))
    attached.kubevirt.put(without_disk(attached.kubevirt.machines[MACHINE], name))
    attached.reconcile()
    attached.sweep()
    assert plugged(attached) == {name}
    attached.sweep()
    assert attached.says(DISK, "Attached") == "True"


def test_a_claim_stays_until_the_guest_has_let_go_and_it_is_told_why(attached: GuestDiskCluster) -> None:
    attached.api.delete_claim(CLAIM)
    attached.kubevirt.deaf.add(MACHINE)
    attached.api.delete_disk(DISK)
    attached.reconcile()
    assert "has not let go of it yet; unmount it in the guest" in attached.trouble(DISK)
    assert (NAMESPACE, CLAIM) in attached.api.claims
    attached.kubevirt.deaf.clear()
    attached.reconcile()
    assert attached.api.disks == {}
    assert attached.api.claims == {}


def test_a_kubevirt_that_does_not_act_is_told_of(cluster: GuestDiskCluster) -> None:
    cluster.kubevirt.ungated = True
    cluster.api.add_machine_disk(DISK, CLAIM, MACHINE)
    cluster.reconcile()
    assert "it does with the feature gate DeclarativeHotplugVolumes" in cluster.trouble(DISK)
    cluster.kubevirt.ungated = False
    cluster.reconcile()
    assert cluster.says(DISK, "Attached") == "True"


def test_a_machine_that_is_deleted_is_told_of_and_its_disk_can_be_deleted(attached: GuestDiskCluster) -> None:
    attached.kubevirt.delete(MACHINE)
    attached.sweep()
    assert f"virtual machine {NAMESPACE}/{MACHINE} does not exist" in attached.trouble(DISK)
    attached.detach_by_resource(DISK)
    untouched(attached)


def test_a_claim_stays_while_what_runs_of_a_deleted_machine_has_it(attached: GuestDiskCluster) -> None:
    """kubectl delete --cascade=orphan."""
    del attached.kubevirt.machines[MACHINE]
    attached.sweep()
    assert "does not exist" in attached.trouble(DISK)
    assert attached.api.claims[NAMESPACE, CLAIM].finalizers
    attached.kubevirt.stop(MACHINE)
    attached.sweep()
    assert attached.api.claims[NAMESPACE, CLAIM].finalizers == ()


def test_a_claim_stays_while_a_guest_has_a_disk_that_somebody_took_out_of_the_spec(attached: GuestDiskCluster) -> None:
    attached.kubevirt.deaf.add(MACHINE)
    attached.kubevirt.put(without_disk(attached.kubevirt.machines[MACHINE], volume_name(attached.disk(DISK))))
    attached.api.delete_claim(CLAIM)
    attached.api.rules = AccessRules()
    attached.sweep()
    assert attached.api.claims[NAMESPACE, CLAIM].finalizers


def test_what_another_claim_was_put_for_is_left_alone(attached: GuestDiskCluster) -> None:
    """As KubeVirt does when it restores a machine."""
    attached.kubevirt.stop(MACHINE)
    machine, name = attached.kubevirt.machines[MACHINE], volume_name(attached.disk(DISK))
    restored = {"name": name, "persistentVolumeClaim": {"claimName": "restored", "hotpluggable": True}}
    attached.kubevirt.put(replace(machine, volumes=(machine.volumes[0], restored)))
    attached.sweep()
    assert "put claim restored where" in attached.trouble(DISK)
    assert attached.api.claims[NAMESPACE, CLAIM].finalizers == ()
    attached.detach_by_resource(DISK)
    assert attached.kubevirt.machines[MACHINE].volumes[1] == restored


def test_half_of_a_disk_is_made_whole(attached: GuestDiskCluster) -> None:
    name = volume_name(attached.disk(DISK))
    machine = attached.kubevirt.machines[MACHINE]
    for half in (replace(machine, disks=machine.disks[:1]), replace(machine, volumes=machine.volumes[:1])):
        attached.kubevirt.put(half)
        attached.machine_disks.follow()
        assert plugged(attached) == {name}


def test_a_machine_that_does_not_start_for_want_of_a_disk_is_told_to_be_stopped(cluster: GuestDiskCluster) -> None:
    cluster.kubevirt.stop(MACHINE)
    cluster.plug_by_resource(DISK, CLAIM, MACHINE)
    cluster.kubevirt.missing.add(CLAIM)
    cluster.kubevirt.start(MACHINE, NODE)
    cluster.sweep()
    assert "KubeVirt is bringing it to" in cluster.trouble(DISK)
    cluster.api.delete_disk(DISK)
    cluster.reconcile()
    assert "takes nothing out of a machine that does not run; stop the machine" in cluster.trouble(DISK)
    cluster.kubevirt.stop(MACHINE)
    cluster.reconcile()
    assert cluster.api.disks == {}
    untouched(cluster)


def test_no_machine_loses_a_disk_whose_definition_goes(attached: GuestDiskCluster) -> None:
    attached.api.definition_going = True
    attached.api.delete_disk(DISK)
    attached.give_up()
    assert attached.api.disks == {}
    assert len(plugged(attached)) == 1
    assert attached.api.claims[NAMESPACE, CLAIM].finalizers


@pytest.mark.parametrize("before", ["finalizers of claim", "disks of"])
def test_a_slow_copy_leaves_nothing_of_a_disk_that_is_gone(cluster: GuestDiskCluster, before: str) -> None:
    """Another copy ends the disk while this one is about to hold the claim, or to write to the machine; and KubeVirt
    writes to that, too."""
    stopped: list[str] = []

    def hook(step: Step) -> None:
        if before not in step.name or step.process is not process:
            return
        if not stopped:
            stopped.append(step.name)
            cluster.api.delete_disk(DISK)
            for _ in range(2):
                cluster.machine_disks.reconcile(NAMESPACE, DISK)
            assert cluster.api.disks == {}
        elif len(stopped) == 1:
            stopped.append("kubevirt")
            cluster.kubevirt.put(cluster.kubevirt.machines[MACHINE])

    process = cluster.compute[NODE].start_process("slow copy")
    slow = cluster.copy_of_machine_disks(process)
    cluster.api.add_machine_disk(DISK, CLAIM, MACHINE)
    cluster.world.on_step = hook
    slow.reconcile(NAMESPACE, DISK)
    cluster.world.on_step = None
    assert stopped
    cluster.reconcile()
    untouched(cluster)


# --- refusals -------------------------------------------------------------------------------------------------------


def test_a_machine_that_its_namespace_may_not_touch(cluster: GuestDiskCluster) -> None:
    cluster.api.rules = AccessRules()
    refused(cluster, f"namespace {NAMESPACE} may not attach to its virtual machine {MACHINE}")


def test_a_list_that_changes_takes_nothing_from_a_machine(attached: GuestDiskCluster) -> None:
    attached.api.rules = AccessRules()
    attached.sweep()
    assert attached.says(DISK, "Attached") == "True"


def test_a_missing_machine(cluster: GuestDiskCluster) -> None:
    refused(cluster, "virtual machine team-a/vm-none does not exist", machine="vm-none")


def test_a_missing_claim(cluster: GuestDiskCluster) -> None:
    refused(cluster, f"claim {NAMESPACE}/none does not exist", claim="none")


def test_a_claim_with_a_file_system(cluster: GuestDiskCluster) -> None:
    cluster.api.put_claim(replace(cluster.api.claims[NAMESPACE, CLAIM], block=False))
    refused(cluster, "use a claim with volumeMode: Block")


def test_a_claim_for_one_pod_alone(cluster: GuestDiskCluster) -> None:
    """KubeVirt could not bring the machine any other disk after it."""
    cluster.api.change_volume(CLAIM, access_modes=("ReadWriteOncePod",))
    refused(cluster, f"claim {NAMESPACE}/{CLAIM} is ReadWriteOncePod")


def test_a_machine_whose_volumes_are_not_plugged_but_migrated(cluster: GuestDiskCluster) -> None:
    cluster.kubevirt.put(replace(cluster.kubevirt.machines[MACHINE], migrates_volumes=True))
    refused(cluster, "updateVolumesStrategy: Migration")


def test_a_claim_that_the_machine_has_by_itself(cluster: GuestDiskCluster) -> None:
    cluster.api.add_claim("system", VOLUME, "ReadWriteOnce")
    refused(cluster, "as volume root of its own spec", claim="system")


@pytest.mark.parametrize("node", [NODE, OTHER_NODE])
@pytest.mark.parametrize("mode", ["ReadWriteOnce", "ReadWriteMany"])
def test_a_claim_in_use_by_a_pod_or_another_machine(cluster: GuestDiskCluster, node: NodeName, mode: str) -> None:
    """Whoever has it by other words than ours, on the machine's node, too."""
    cluster.api.change_volume(CLAIM, access_modes=(mode,))
    many = mode == "ReadWriteMany"
    how = AccessMode.MULTI_NODE_MULTI_WRITER if many else AccessMode.SINGLE_NODE_MULTI_WRITER
    cluster.engine.publish(VOLUME, cluster.identity(node), how, read_only=False, block=True)
    refused(cluster, f"is in use on {node}")


def test_what_others_only_read_may_be_read(cluster: GuestDiskCluster) -> None:
    cluster.api.change_volume(CLAIM, access_modes=("ReadOnlyMany",))
    reading = AccessMode.MULTI_NODE_READER_ONLY
    cluster.engine.publish(VOLUME, cluster.identity(OTHER_NODE), reading, read_only=True, block=True)
    cluster.api.add_machine_disk(DISK, CLAIM, MACHINE, readOnly=True)
    cluster.reconcile()
    assert cluster.says(DISK, "Attached") == "True"


def test_a_volume_that_can_only_be_read_is_only_read(cluster: GuestDiskCluster) -> None:
    """Also where the PersistentVolume alone says so."""
    cluster.api.change_volume(CLAIM, read_only=True)
    cluster.plug_by_resource(DISK, CLAIM, MACHINE)
    assert cluster.kubevirt.machines[MACHINE].disks[-1]["disk"] == {"bus": "virtio", "readonly": True}


@pytest.mark.parametrize(
    "source",
    [
        {"dataVolume": {"name": CLAIM}},
        {"memoryDump": {"claimName": CLAIM}},
        {"ephemeral": {"persistentVolumeClaim": {"claimName": CLAIM}}},
    ],
    ids=lambda source: next(iter(source)),
)
def test_a_claim_that_the_machine_has_by_another_name(cluster: GuestDiskCluster, source: dict[str, object]) -> None:
    machine = cluster.kubevirt.machines[MACHINE]
    cluster.kubevirt.put(replace(machine, volumes=({"name": OWN, **source},)))
    refused(cluster, "as volume root of its own spec")


def test_a_machine_that_is_not_allowed_is_not_looked_for(cluster: GuestDiskCluster) -> None:
    refused(cluster, "may not attach to its virtual machine other", machine="other")


def test_a_claim_that_another_machine_has(attached: GuestDiskCluster) -> None:
    attached.kubevirt.add("vm2", NODE)
    attached.api.add_machine_disk("second", CLAIM, "vm2")
    attached.reconcile()
    assert f"AoEGuestDisk {DISK}'s, of guest {MACHINE}" in attached.trouble("second")
    assert plugged(attached, "vm2") == set()
    attached.detach_by_resource("second")
    assert attached.says(DISK, "Attached") == "True"


def test_a_claim_that_waits_is_bound_for_the_machine_s_node_once_it_has_one(cluster: GuestDiskCluster) -> None:
    cluster.kubevirt.stop(MACHINE)
    bound = cluster.api.claims[NAMESPACE, CLAIM]
    cluster.api.waiting_classes["waiting"] = GROUP
    cluster.api.put_claim(replace(bound, bound=False, storage_class="waiting"))
    cluster.api.add_machine_disk(DISK, CLAIM, MACHINE)
    cluster.reconcile()
    assert "the guest runs nowhere; start it" in cluster.trouble(DISK)
    cluster.kubevirt.start(MACHINE, NODE)
    cluster.reconcile()
    assert cluster.api.claims[NAMESPACE, CLAIM].selected_node == NODE
    cluster.api.put_claim(replace(cluster.api.claims[NAMESPACE, CLAIM], bound=True))
    cluster.reconcile()
    assert cluster.says(DISK, "Attached") == "True"


def test_without_an_administrator_s_leave_no_machine_is_seen_to(cluster: GuestDiskCluster) -> None:
    seen, cluster.machine_disks._machines = cluster.machine_disks._machines, Unseen()  # noqa: SLF001
    refused(cluster, "sets the chart's value kubevirt.guestDisks")
    cluster.machine_disks._machines = seen  # noqa: SLF001
    with pytest.raises(Unsupported):
        Unseen().find_machine("a", "b")
