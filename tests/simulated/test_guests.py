"""Volumes as disks of guests: killed between any two steps and made again or turned round; and every bad ending.

The fakes' guests hold their devices open and let go when they like, so a device that is let go of too early, or a link
that leads away from a running guest, is seen at once.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import pytest
from tests.simulated.cluster import COMPUTE_NODES, STORAGE_NODE, Cluster
from tests.simulated.guest_cluster import GuestCluster
from tests.simulated.test_kill_sweep import (
    Life,
    Operation,
    boundaries,
    kill,
    live_until_death,
    sweep,
)

from aoe_core.attach.records import BlockUse, FilesystemUse
from aoe_core.errors import (
    AoECsiError,
    Busy,
    CommandFailed,
    Conflict,
    InUse,
    Invalid,
    NoSpace,
    NotFound,
    Unfinished,
    Unreachable,
)
from aoe_core.fakes.hypervisor import Unplug
from aoe_core.fakes.world import Step
from aoe_core.guests.disk import alias_of
from aoe_core.guests.readiness import ready_all
from aoe_core.guests.records import Bus
from aoe_core.host.contracts import DomainDisk
from aoe_core.model import AccessMode, Address, Attachment, NodeName, PoolName, VolumeId, VolumeSpec, serial_of
from aoe_core.units import MIB
from aoe_lab.evidence import Evidence

VOLUME = VolumeId("vol")
SECOND = VolumeId("second")
NODE, OTHER_NODE = COMPUTE_NODES
SIZE_BYTES, GROWN_BYTES = 12 * MIB, 20 * MIB
READ = AccessMode.SINGLE_NODE_READER_ONLY
Kind = TypeVar("Kind", bound=Cluster)
ALIAS = alias_of(serial_of(VOLUME))


def spec(volume_id: VolumeId = VOLUME) -> VolumeSpec:
    return VolumeSpec(volume_id=volume_id, pool=PoolName("thick"), size_bytes=SIZE_BYTES)


# --- the sweep ------------------------------------------------------------------------------------------------------


def on(kind: type[Kind], act: Callable[[Kind], object]) -> Callable[[Cluster], object]:
    """Return an act on a cluster of one kind as an act on any."""

    def on_cluster(one: Cluster) -> object:
        assert isinstance(one, kind)
        return act(one)

    return on_cluster


of_guests = partial(on, GuestCluster)


def guest_life(node: NodeName = NODE, *, running: bool = True) -> Life:
    """Return the life of a volume that is a guest's disk, with writes and a growth in it."""

    def run(one: GuestCluster) -> None:
        """A guest that is to run does, whatever befell its machine."""
        if running and not one.guest[node].running:
            one.compute[node].hypervisor.start(one.guest[node])

    def create(one: GuestCluster) -> None:
        one.engine.create_volume(spec())

    def attach(one: GuestCluster) -> None:
        if not running and one.guest[node].running:
            one.guest[node].autostart = False
            one.compute[node].hypervisor.stop(one.guest[node])
        one.attach(VOLUME, node)
        guest = one.guest[node]
        assert [disk.alias for disk in guest.config.values()] == [ALIAS]
        assert bool(guest.live) == guest.running

    def write(one: GuestCluster) -> None:
        run(one)
        if running:
            one.compute[node].hypervisor.write(one.guest[node], one.target(node), MIB, b"written")

    def resize(one: GuestCluster) -> None:
        run(one)
        one.engine.expand_volume(VOLUME, GROWN_BYTES)
        assert one.disks[node].resize("g1", VOLUME, GROWN_BYTES) == GROWN_BYTES
        if running:
            assert one.guest[node].sizes[one.target(node)] == GROWN_BYTES

    def check(one: GuestCluster) -> None:
        run(one)
        if running:
            assert one.compute[node].hypervisor.read(one.guest[node], one.target(node), MIB, 7) == b"written"

    def turn_round(one: GuestCluster) -> None:
        """Out and in again: what a killed detach left is what the attach finds."""
        one.disks[node].detach("g1", VOLUME)
        one.attach(VOLUME, node)

    place = " of its own machine" if node == STORAGE_NODE else ""
    return Life(
        name=f"a disk of a guest that {'runs' if running else 'is off'}{place}",
        same_host=node == STORAGE_NODE,
        kind=GuestCluster,
        operations=(
            Operation(name="create", act=of_guests(create)),
            Operation(name="attach", act=of_guests(attach)),
            Operation(name="write", act=of_guests(write)),
            Operation(name="resize", act=of_guests(resize)),
            Operation(name="check", act=of_guests(check)),
            Operation(name="turn round", act=of_guests(turn_round)),
            Operation(name="detach", act=of_guests(lambda one: one.detach(VOLUME, node))),
            Operation(name="sweep", act=lambda one: one.attachers[node].tend()),
            Operation(name="delete", act=lambda one: one.engine.delete_volume(VOLUME)),
        ),
        undo_from=6,
    )


LIVES = (guest_life(), guest_life(running=False), guest_life(STORAGE_NODE))
SWEPT = ("attach", "resize", "turn round", "detach")


@pytest.mark.parametrize("operation", SWEPT)
@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.name.replace(" ", "-"))
def test_a_call_killed_anywhere_converges_in_either_direction(life: Life, operation: str, evidence: Evidence) -> None:
    position = [one.name for one in life.operations].index(operation)
    sweep(life, position, evidence, abandoned="turned round")


def test_control_without_carrying_on_most_deaths_in_detach_leave_something(evidence: Evidence) -> None:
    """The protection off: nobody asks again."""
    life = LIVES[0]
    position = [one.name for one in life.operations].index("detach")
    total, left = boundaries(life, position), 0
    for boundary in range(1, total + 1):
        cluster = live_until_death(life, position, boundary, kill)
        assert isinstance(cluster, GuestCluster)
        try:
            cluster.check_no_guest_disk_left()
        except AssertionError:
            left += 1
    assert 0 < left < total  # The last ones come when only the grant is to be revoked.
    evidence(f"control: {left} of {total} deaths in detach left something of the disk where nobody carried on")


# --- one guest, one volume ------------------------------------------------------------------------------------------


@pytest.fixture
def cluster() -> GuestCluster:
    made = GuestCluster()
    made.engine.create_volume(spec())
    return made


@pytest.fixture
def attached(cluster: GuestCluster) -> GuestCluster:
    """A cluster whose guest has the volume and has written to it."""
    cluster.attach(VOLUME, NODE)
    cluster.compute[NODE].hypervisor.write(cluster.guest[NODE], "vdb", MIB, b"written")
    return cluster


def read_back(cluster: GuestCluster) -> bytes:
    return cluster.compute[NODE].hypervisor.read(cluster.guest[NODE], cluster.target(NODE), MIB, 7)


def gone(cluster: GuestCluster) -> None:
    """Prove that a detach has left nothing."""
    cluster.attachers[NODE].tend()
    cluster.engine.delete_volume(VOLUME)
    cluster.check_nothing_left()


def test_a_running_guest_has_the_disk_by_a_stable_link_now_and_at_its_next_start(attached: GuestCluster) -> None:
    (live,) = attached.guest[NODE].live.values()
    (config,) = attached.guest[NODE].config.values()
    assert live == config
    assert (live.target, live.bus, live.serial, live.alias) == ("vdb", "virtio", serial_of(VOLUME), ALIAS)
    assert live.source == "/run/aoe-csi/guests/disks/vol"
    assert not live.read_only
    attached.attach(VOLUME, NODE)
    assert list(attached.guest[NODE].live.values()) == [live]
    attached.detach(VOLUME, NODE)
    attached.detach(VOLUME, NODE)
    gone(attached)


def test_twenty_rounds_leak_nothing(cluster: GuestCluster) -> None:
    for _ in range(20):
        cluster.attach(VOLUME, NODE)
        assert cluster.target(NODE) == "vdb"
        cluster.detach(VOLUME, NODE)
        cluster.check_no_guest_disk_left()
    gone(cluster)


def test_a_read_only_disk_cannot_be_written(cluster: GuestCluster) -> None:
    cluster.attach(VOLUME, NODE, mode=READ)
    with pytest.raises(CommandFailed, match="read-only"):
        cluster.compute[NODE].hypervisor.write(cluster.guest[NODE], "vdb", 0, b"no")
    assert all(file.writable is False for file in cluster.held(VOLUME))
    cluster.detach(VOLUME, NODE)
    gone(cluster)


def test_a_disk_grows_under_a_running_guest_and_one_that_is_off_needs_nothing(attached: GuestCluster) -> None:
    attached.engine.expand_volume(VOLUME, GROWN_BYTES)
    assert attached.guest[NODE].sizes["vdb"] == SIZE_BYTES
    attached.disks[NODE].resize("g1", VOLUME, GROWN_BYTES)
    assert attached.guest[NODE].sizes["vdb"] == GROWN_BYTES
    attached.compute[NODE].hypervisor.stop(attached.guest[NODE])
    attached.engine.expand_volume(VOLUME, GROWN_BYTES + 4 * MIB)
    attached.disks[NODE].resize("g1", VOLUME, GROWN_BYTES + 4 * MIB)
    attached.compute[NODE].hypervisor.start(attached.guest[NODE])
    assert attached.guest[NODE].sizes["vdb"] == GROWN_BYTES + 4 * MIB


def test_a_guest_that_starts_while_its_device_grows_sees_the_growth(
    attached: GuestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    hypervisor, guest = attached.compute[NODE].hypervisor, attached.guest[NODE]
    hypervisor.stop(guest)
    attached.engine.expand_volume(VOLUME, GROWN_BYTES)
    attacher = attached.disks[NODE]._attacher  # noqa: SLF001
    expand = attacher.expand

    def started_meanwhile(volume_id: VolumeId, path: str, size_bytes: int) -> int:
        hypervisor.start(guest)
        guest.sizes["vdb"] = SIZE_BYTES  # The driver has not looked at its target again yet.
        return expand(volume_id, path, size_bytes)

    monkeypatch.setattr(attacher, "expand", started_meanwhile)
    attached.disks[NODE].resize("g1", VOLUME, GROWN_BYTES)
    assert guest.sizes["vdb"] == GROWN_BYTES


def test_a_size_that_the_storage_node_has_not_is_not_told_to_the_guest(attached: GuestCluster) -> None:
    with pytest.raises(Unreachable, match="is to have at least"):
        attached.disks[NODE].resize("g1", VOLUME, GROWN_BYTES)
    assert attached.guest[NODE].sizes["vdb"] == SIZE_BYTES


def test_a_second_volume_gets_another_target(attached: GuestCluster) -> None:
    attached.engine.create_volume(spec(SECOND))
    attached.attach(SECOND, NODE)
    assert sorted(attached.guest[NODE].live) == ["vdb", "vdc"]


def test_a_target_is_not_chosen_twice_while_the_first_is_not_yet_in_the_domain(cluster: GuestCluster) -> None:
    """Its record alone says that it is taken."""
    cluster.engine.create_volume(spec(SECOND))

    def die(step: Step) -> None:
        if step.name.startswith("libvirt attach"):
            step.process.kill()

    cluster.world.on_step = die
    with pytest.raises(BaseException, match="guest command"):
        cluster.attach(VOLUME, NODE)
    cluster.world.on_step = None
    cluster.disks[NODE] = cluster.new_command(NODE)
    cluster.attach(SECOND, NODE)
    cluster.attach(VOLUME, NODE)
    assert {disk.serial: target for target, disk in cluster.guest[NODE].live.items()} == {
        serial_of(SECOND): "vdc",
        serial_of(VOLUME): "vdb",
    }


# --- refusals: nothing is done, and the remedy is said ----------------------------------------------------------------


def refused(cluster: GuestCluster, error: type[AoECsiError], words: str, act: Callable[[], object]) -> None:
    """Prove that something is refused and leaves records, links and domains as they are."""
    machine = cluster.compute[NODE]

    def state() -> object:
        records = {name: dict(machine.record_directory(name).seen) for name in ("guests", "staged")}
        domains = [(one.name, dict(one.live), dict(one.config)) for one in machine.hypervisor.guests.values()]
        return records, cluster.disks[NODE].list(), domains

    before = state()
    with pytest.raises(AoECsiError, match=words) as caught:
        act()
    assert type(caught.value) is error
    assert state() == before


def test_a_missing_domain_is_refused(cluster: GuestCluster) -> None:
    attachment = granted(cluster)
    refused(cluster, NotFound, "no domain 'nobody'", lambda: cluster.disks[NODE].attach("nobody", attachment))


def granted(cluster: GuestCluster, *, read_only: bool = False) -> Attachment:
    return cluster.engine.publish(
        VOLUME,
        cluster.identity(NODE),
        READ if read_only else AccessMode.SINGLE_NODE_WRITER,
        read_only=read_only,
        block=True,
    )


def test_a_volume_of_another_domain_is_refused_and_so_is_taking_it_from_there_by_a_wrong_name(
    attached: GuestCluster,
) -> None:
    attached.compute[NODE].hypervisor.define("g2")
    attachment = attached.attachments[VOLUME, NODE]
    disks = attached.disks[NODE]
    refused(attached, InUse, "a disk of domain g1 .* detach it there", lambda: disks.attach("g2", attachment))
    refused(attached, Conflict, "which was called g1, and not of g2", lambda: disks.detach("g2", VOLUME))
    refused(attached, Conflict, "which was called g1, and not of nobody", lambda: disks.detach("nobody", VOLUME))
    refused(attached, Conflict, "of domain g1, not of g2", lambda: disks.resize("g2", VOLUME, GROWN_BYTES))


def test_a_volume_that_somebody_put_into_another_domain_by_hand_is_refused(cluster: GuestCluster) -> None:
    attachment = granted(cluster)
    other = cluster.compute[NODE].hypervisor.define("g2")
    for source in ("/run/aoe-csi/guests/disks/vol", f"/dev/etherd/{attachment.address}"):
        other.config = {"vdc": DomainDisk(target="vdc", bus="virtio", source=source)}
        refused(cluster, InUse, "named as a disk by domain g2", lambda: cluster.disks[NODE].attach("g1", attachment))


@pytest.fixture
def local() -> GuestCluster:
    """A cluster whose storage machine has guests of its own."""
    made = GuestCluster(same_host=True)
    made.engine.create_volume(spec())
    return made


@pytest.mark.parametrize("name", ["LVM's", "device-mapper's", "the kernel's"])
def test_a_domain_that_has_a_local_volume_by_another_path_is_seen(local: GuestCluster, name: str) -> None:
    other = local.storage.hypervisor.define("g2")
    paths = local.storage.lvm.groups["vg0"].volumes["v-vol"].paths
    source = dict(zip(("LVM's", "device-mapper's", "the kernel's"), paths, strict=True))[name]
    other.config = {"vdc": DomainDisk(target="vdc", bus="virtio", source=source)}
    with pytest.raises(InUse, match="named as a disk by domain g2"):
        local.attach(VOLUME, STORAGE_NODE)
    other.config.clear()
    local.attach(VOLUME, STORAGE_NODE)
    other.config = {"vdc": DomainDisk(target="vdc", bus="virtio", source=source)}
    with pytest.raises(InUse, match="domain g2"):
        local.detach(VOLUME, STORAGE_NODE)
    assert local.is_staged(VOLUME, STORAGE_NODE)


def test_a_local_volume_that_somebody_has_open_is_no_guest_s(local: GuestCluster) -> None:
    attachment = local.engine.publish(
        VOLUME, local.identity(STORAGE_NODE), AccessMode.SINGLE_NODE_WRITER, read_only=False, block=True
    )
    local.storage.open("/dev/vg0/v-vol", "qemu-system-x86_64")
    with pytest.raises(InUse, match="is open on this host"):
        local.disks[STORAGE_NODE].attach("g1", attachment)
    assert local.records(STORAGE_NODE).all() == ()
    local.storage.close("/dev/vg0/v-vol", "qemu-system-x86_64")
    for _ in range(2):  # The second time it is the guest who has it open.
        local.disks[STORAGE_NODE].attach("g1", attachment)
    local.detach(VOLUME, STORAGE_NODE)


def test_two_machines_cannot_have_one_volume_for_writing(attached: GuestCluster) -> None:
    with pytest.raises(InUse):
        attached.attach(VOLUME, OTHER_NODE)
    assert attached.guest[OTHER_NODE].live == {}
    assert attached.records(OTHER_NODE).all() == ()


def test_another_mode_or_bus_than_it_has_is_refused(attached: GuestCluster) -> None:
    attachment = attached.attachments[VOLUME, NODE]
    disks = attached.disks[NODE]
    refused(attached, Conflict, "detach it first", lambda: disks.attach("g1", attachment, mode=READ))
    refused(attached, Conflict, "detach it first", lambda: disks.attach("g1", attachment, bus=Bus.SCSI))


def test_another_storage_machine_s_volume_of_the_same_name_does_not_take_the_record(attached: GuestCluster) -> None:
    """Serials are derived from names, so the two are alike; the grants are not."""
    other = replace(attached.attachments[VOLUME, NODE], address=Address(77, 1))
    refused(attached, Conflict, "through e77.1", lambda: attached.disks[NODE].attach("g1", other))
    attached.detach(VOLUME, NODE)
    gone(attached)


def test_a_grant_for_reading_is_not_attached_for_writing(cluster: GuestCluster) -> None:
    attachment = granted(cluster, read_only=True)
    refused(cluster, Invalid, "for reading only", lambda: cluster.disks[NODE].attach("g1", attachment))


def test_a_serial_of_somebody_elses_disk_is_refused(cluster: GuestCluster) -> None:
    attachment = granted(cluster)
    cluster.guest[NODE].config = {"vdc": DomainDisk(target="vdc", bus="virtio", serial=attachment.serial)}
    refused(cluster, Conflict, "take that disk away", lambda: cluster.disks[NODE].attach("g1", attachment))


def test_our_alias_on_another_source_is_refused(cluster: GuestCluster) -> None:
    attachment = granted(cluster)
    cluster.guest[NODE].config = {"vdc": DomainDisk(target="vdc", bus="virtio", source="/x", alias=ALIAS)}
    refused(cluster, Conflict, "has disk ua-aoe", lambda: cluster.disks[NODE].attach("g1", attachment))


@pytest.mark.parametrize("use", [BlockUse(mode=AccessMode.SINGLE_NODE_WRITER), FilesystemUse(mode=READ)])
def test_a_volume_that_is_staged_for_something_else_is_refused_both_ways(
    cluster: GuestCluster, use: BlockUse | FilesystemUse
) -> None:
    attachment = granted(cluster)
    if isinstance(use, FilesystemUse):
        use = FilesystemUse(mode=AccessMode.SINGLE_NODE_WRITER)
    cluster.attachers[NODE].stage(attachment, "/var/lib/kubelet/vol", use)
    disks = cluster.disks[NODE]
    refused(cluster, InUse, "staged at /var/lib/kubelet/vol", lambda: disks.attach("g1", attachment))
    refused(cluster, InUse, "staged at /var/lib/kubelet/vol", lambda: disks.detach("g1", VOLUME))


def test_a_guest_without_a_free_slot_is_told_of_and_has_the_disk_at_its_next_start(cluster: GuestCluster) -> None:
    guest, hypervisor = cluster.guest[NODE], cluster.compute[NODE].hypervisor
    guest.slots = 0
    with pytest.raises(NoSpace, match="pcie-root-port"):
        cluster.attach(VOLUME, NODE)
    assert guest.live == {}
    hypervisor.stop(guest)
    hypervisor.start(guest)
    cluster.attach(VOLUME, NODE)
    assert cluster.target(NODE) == "vdb"
    cluster.detach(VOLUME, NODE)
    gone(cluster)


def test_a_libvirt_that_is_away_proves_nothing(attached: GuestCluster) -> None:
    hypervisor = attached.compute[NODE].hypervisor
    hypervisor.answers = False
    attachment, disks = attached.attachments[VOLUME, NODE], attached.disks[NODE]
    with pytest.raises(Unreachable):
        disks.attach("g1", attachment)
    with pytest.raises(Unreachable):
        disks.detach("g1", VOLUME)
    (shown,) = disks.list()
    assert not shown.known
    assert attached.is_staged(VOLUME, NODE)
    hypervisor.answers = True
    assert read_back(attached) == b"written"
    attached.detach(VOLUME, NODE)
    gone(attached)


def test_a_call_beside_another_one_on_the_same_volume_is_refused(cluster: GuestCluster) -> None:
    outcomes: list[type[BaseException] | None] = []
    command = cluster.disks_of(NODE, cluster.compute[NODE].start_process("second command"))
    attachment = granted(cluster)

    def interfere(step: Step) -> None:
        if step.name.startswith("libvirt attach"):
            cluster.world.on_step = None
            for act in (lambda: command.attach("g1", attachment), lambda: command.detach("g1", VOLUME)):
                with pytest.raises(Busy):
                    act()
                outcomes.append(Busy)

    cluster.world.on_step = interfere
    cluster.disks[NODE].attach("g1", attachment)
    assert outcomes == [Busy, Busy]


# --- guests that do as they like --------------------------------------------------------------------------------------


@pytest.mark.parametrize("unplug", [Unplug.IGNORES, Unplug.REFUSES])
def test_a_guest_that_keeps_its_disk_keeps_its_device_and_the_next_call_goes_on(
    attached: GuestCluster, unplug: Unplug
) -> None:
    guest, machine = attached.guest[NODE], attached.compute[NODE]
    guest.unplug = unplug
    said: list[str] = []
    for _ in range(2):
        with pytest.raises(Unfinished, match="shut the guest down"):
            attached.disks[NODE].detach("g1", VOLUME, tell=said.append)
        assert read_back(attached) == b"written"
        assert attached.is_staged(VOLUME, NODE)
        assert guest.config == {}
    assert "waiting for guest g1" in said[0]
    assert len(said) >= 2 * 8, "it is asked again now and then"
    machine.hypervisor.listens(guest)
    attached.detach(VOLUME, NODE)
    gone(attached)


def test_a_guest_that_keeps_its_disk_gives_it_up_when_it_ends(attached: GuestCluster) -> None:
    attached.guest[NODE].unplug = Unplug.IGNORES
    with pytest.raises(Unfinished):
        attached.disks[NODE].detach("g1", VOLUME)
    attached.compute[NODE].hypervisor.stop(attached.guest[NODE])
    attached.detach(VOLUME, NODE)
    gone(attached)


def test_a_detach_is_not_turned_round_before_the_guest_has_answered(attached: GuestCluster) -> None:
    """It might let go after it was said to have the disk."""
    guest, hypervisor = attached.guest[NODE], attached.compute[NODE].hypervisor
    guest.unplug = Unplug.IGNORES
    with pytest.raises(Unfinished):
        attached.disks[NODE].detach("g1", VOLUME, wait_s=5)
    with pytest.raises(Unfinished):
        attached.attach(VOLUME, NODE)
    hypervisor.listens(guest)
    attached.attach(VOLUME, NODE)
    attached.world.clock.sleep(600)
    assert read_back(attached) == b"written"
    assert ALIAS in {disk.alias for disk in guest.config.values()}


def requests_of(cluster: GuestCluster, act: Callable[[], object]) -> list[str]:
    """Return what guests are asked to let go of meanwhile."""
    asked: list[str] = []
    cluster.world.on_step = lambda step: asked.append(step.name) if "ask to detach" in step.name else None
    try:
        act()
    finally:
        cluster.world.on_step = None
    return asked


def test_a_guest_that_was_never_asked_keeps_its_disk_when_a_detach_is_turned_round(attached: GuestCluster) -> None:
    """Else a disk that is mounted in it would go, and come back as another."""
    guest, hypervisor = attached.guest[NODE], attached.compute[NODE].hypervisor
    hypervisor.save(guest)
    with pytest.raises(InUse, match="sleeps"):
        attached.disks[NODE].detach("g1", VOLUME)
    hypervisor.start(guest)
    assert requests_of(attached, lambda: attached.attach(VOLUME, NODE)) == []
    assert read_back(attached) == b"written"


def test_a_guest_that_libvirt_could_not_ask_counts_as_not_asked(attached: GuestCluster) -> None:
    """As while it arrives from another host: libvirt has it locked."""
    guest, hypervisor = attached.guest[NODE], attached.compute[NODE].hypervisor
    hypervisor.locked = True
    with pytest.raises(Busy):
        attached.disks[NODE].detach("g1", VOLUME)
    hypervisor.locked = False
    assert requests_of(attached, lambda: attached.attach(VOLUME, NODE)) == []
    assert read_back(attached) == b"written"
    assert ALIAS in {disk.alias for disk in guest.config.values()}


def test_the_link_leads_to_the_device_until_libvirt_has_taken_it_from_the_guest(attached: GuestCluster) -> None:
    """The fake reports harm otherwise; it finds the device by the link."""
    seen: list[bool] = []

    def watch(step: Step) -> None:
        if step.name == f"rm link {VOLUME}" and not step.after:
            seen.append(bool(attached.guest[NODE].open))

    attached.world.on_step = watch
    attached.detach(VOLUME, NODE)
    assert seen == [False]
    gone(attached)


@pytest.mark.parametrize("same_host", [False, True])
def test_a_device_that_somebody_keeps_open_keeps_its_link_and_its_grant(same_host: bool) -> None:
    cluster = GuestCluster(same_host=same_host)
    node = STORAGE_NODE if same_host else NODE
    cluster.engine.create_volume(spec())
    cluster.attach(VOLUME, node)
    machine = cluster.compute[node]
    path = machine.links[VOLUME]
    machine.open(path, "somebody")
    began_s = cluster.world.clock.now()
    with pytest.raises(Unfinished, match="still open on this host after 30 s; find out"):
        cluster.detach(VOLUME, node)
    assert 30 <= cluster.world.clock.now() - began_s < 40
    assert (cluster.guest[node].live, machine.links) == ({}, {VOLUME: path})
    assert cluster.is_staged(VOLUME, node)
    assert len(cluster.held(VOLUME)) == 1
    machine.close(path, "somebody")
    cluster.detach(VOLUME, node)
    cluster.attachers[node].tend()
    cluster.engine.delete_volume(VOLUME)
    cluster.check_nothing_left()


def test_a_disk_that_somebody_puts_back_each_time_is_told_of_and_kept(attached: GuestCluster) -> None:
    """What libvirt said it did is looked at before the next step."""
    guest = attached.guest[NODE]
    config = dict(guest.config)

    def put_back(step: Step) -> None:
        if step.name.endswith("config") and step.after:
            guest.config = dict(config)

    attached.world.on_step = put_back
    with pytest.raises(Unfinished, match="comes back each time"):
        attached.disks[NODE].detach("g1", VOLUME)
    attached.world.on_step = None
    assert attached.is_staged(VOLUME, NODE)
    attached.detach(VOLUME, NODE)
    gone(attached)


def test_the_device_is_not_let_go_of_while_another_domain_names_it(attached: GuestCluster) -> None:
    """A clone of the domain, say: it would start with whatever is at that address then."""
    other = attached.compute[NODE].hypervisor.define("clone")
    other.config = dict(attached.guest[NODE].config)
    with pytest.raises(InUse, match="domain clone"):
        attached.disks[NODE].detach("g1", VOLUME)
    assert attached.is_staged(VOLUME, NODE)
    assert attached.disks[NODE].to_ready() == (VOLUME,)
    other.config.clear()
    attached.detach(VOLUME, NODE)
    gone(attached)


def test_a_guest_that_sleeps_keeps_its_disk_until_it_wakes(attached: GuestCluster) -> None:
    """It would wake with the volume, which may be another guest's by then."""
    hypervisor, guest = attached.compute[NODE].hypervisor, attached.guest[NODE]
    hypervisor.save(guest)
    with pytest.raises(InUse, match="managedsave-remove"):
        attached.disks[NODE].detach("g1", VOLUME)
    assert attached.is_staged(VOLUME, NODE)
    hypervisor.start(guest)
    assert read_back(attached) == b"written"
    attached.detach(VOLUME, NODE)
    gone(attached)


def test_a_guest_that_sleeps_gets_no_disk_and_the_grant_can_be_given_back(cluster: GuestCluster) -> None:
    hypervisor, guest = cluster.compute[NODE].hypervisor, cluster.guest[NODE]
    hypervisor.save(guest)
    attachment = granted(cluster)
    refused(cluster, InUse, "managedsave-remove", lambda: cluster.disks[NODE].attach("g1", attachment))
    assert cluster.records(NODE).all() == ()
    cluster.detach(VOLUME, NODE)
    assert cluster.held(VOLUME) == ()
    hypervisor.start(guest)
    cluster.attach(VOLUME, NODE)
    cluster.detach(VOLUME, NODE)
    gone(cluster)


@pytest.mark.parametrize("ending", ["stop", "transient", "undefine"])
@pytest.mark.parametrize("when", ["config", "live"])
def test_a_guest_that_ends_while_it_is_attached_to(cluster: GuestCluster, ending: str, when: str) -> None:
    """Before and after each of libvirt's steps: the call says what is so, and both ways go on from there."""
    hypervisor, guest = cluster.compute[NODE].hypervisor, cluster.guest[NODE]
    for after in (False, True):
        if not guest.running:
            hypervisor.guests[guest.uuid] = guest
            guest.persistent = True
            hypervisor.start(guest)

        def end(step: Step, after: bool = after) -> None:
            if step.name == f"libvirt attach vdb {when}" and step.after == after:
                cluster.world.on_step = None
                if ending != "stop":
                    hypervisor.undefine(guest)
                if ending != "undefine":
                    hypervisor.stop(guest)

        cluster.world.on_step = end
        try:
            cluster.attach(VOLUME, NODE)
        except (NotFound, InUse, CommandFailed):
            assert ending != "stop", "a guest that merely ended has its disk at its next start"
        cluster.world.on_step = None
        if ending == "stop":
            assert list(guest.config) == ["vdb"]
            hypervisor.start(guest)
            assert cluster.target(NODE) == "vdb"
        cluster.detach(VOLUME, NODE)
        cluster.check_no_guest_disk_left()
    gone(cluster)


def test_a_domain_that_is_renamed_is_known_by_its_uuid(attached: GuestCluster) -> None:
    attached.guest[NODE].name = "renamed"
    attached.disks[NODE].attach("renamed", attached.attachments[VOLUME, NODE])
    (shown,) = attached.disks[NODE].list()
    assert shown.record.domain_name == "renamed"
    assert shown.live
    assert shown.config
    attached.guest[NODE].name = "g1"
    attached.disks[NODE].detach("g1", VOLUME)
    attached.engine.unpublish(VOLUME, NODE)
    gone(attached)


def test_a_domain_that_was_made_anew_under_its_name_is_another_one(attached: GuestCluster) -> None:
    hypervisor, guest = attached.compute[NODE].hypervisor, attached.guest[NODE]
    hypervisor.stop(guest)
    hypervisor.undefine(guest)
    attached.guest[NODE] = hypervisor.define("g1")
    attachment = attached.attachments[VOLUME, NODE]
    refused(attached, InUse, "detach it there", lambda: attached.disks[NODE].attach("g1", attachment))
    refused(attached, Conflict, "give that UUID", lambda: attached.disks[NODE].detach("g1", VOLUME))
    attached.disks[NODE].detach(guest.uuid.upper(), VOLUME)
    attached.attach(VOLUME, NODE)
    attached.detach(VOLUME, NODE)
    gone(attached)


def test_a_former_name_that_is_another_domain_s_now_takes_nothing_from_the_one_it_was(attached: GuestCluster) -> None:
    hypervisor, guest = attached.compute[NODE].hypervisor, attached.guest[NODE]
    hypervisor.stop(guest)  # libvirt renames no domain that runs.
    guest.name = "old"
    hypervisor.define("g1")
    refused(attached, Conflict, "give that UUID", lambda: attached.disks[NODE].detach("g1", VOLUME))
    hypervisor.start(guest)
    assert read_back(attached) == b"written"
    attached.disks[NODE].detach("old", VOLUME)
    attached.engine.unpublish(VOLUME, NODE)
    gone(attached)


def test_a_former_name_counts_while_no_domain_has_it(attached: GuestCluster) -> None:
    attached.compute[NODE].hypervisor.stop(attached.guest[NODE])
    attached.guest[NODE].name = "renamed"
    attached.detach(VOLUME, NODE)
    gone(attached)


def test_a_record_that_is_lost_does_not_keep_a_disk_from_being_detached(attached: GuestCluster) -> None:
    """Alias, link and staging path are derived from the volume."""
    directory = attached.compute[NODE].record_directory("guests")
    directory.seen.clear()
    directory.sync()
    attached.detach(VOLUME, NODE)
    gone(attached)


def test_a_detach_whose_grant_is_not_given_back_is_known_and_does_nothing_twice(attached: GuestCluster) -> None:
    def fails() -> None:
        raise Unreachable("nobody is there")

    with pytest.raises(Unreachable):
        attached.disks[NODE].detach("g1", VOLUME, give_back=fails)
    (record,) = attached.records(NODE).all()
    assert (record.wanted, record.released) == (False, True)
    assert not attached.is_staged(VOLUME, NODE)
    attached.detach(VOLUME, NODE)
    gone(attached)


# --- machines that end ------------------------------------------------------------------------------------------------


def test_a_host_that_reboots_has_its_devices_before_its_guests_start(attached: GuestCluster) -> None:
    attached.world.power_loss(NODE)
    attached.restart()
    assert attached.guest[NODE].running
    assert read_back(attached) == b"written"
    attached.detach(VOLUME, NODE)
    gone(attached)


def test_a_volume_granted_anew_is_detached_before_it_is_attached(attached: GuestCluster) -> None:
    """Revoked while the host was off: the domain still names the volume, and the address it had is another's."""
    former = attached.attachments[VOLUME, NODE].address
    attached.world.power_loss(NODE)
    attached.engine.unpublish(VOLUME, NODE)
    machine = attached.compute[NODE]
    machine.boot()
    attached.disks[NODE] = attached.new_command(NODE)
    with pytest.raises(Conflict, match="detach it first"):
        attached.attach(VOLUME, NODE)
    (record,) = attached.records(NODE).all()
    assert record.attachment.address == former
    attached.detach(VOLUME, NODE)
    attached.attach(VOLUME, NODE)
    assert attached.attachments[VOLUME, NODE].address != former
    machine.hypervisor.start(attached.guest[NODE])
    assert read_back(attached) == b"written"


def test_an_address_that_is_another_volume_s_after_a_boot_is_not_found_by_its_former_guest() -> None:
    """Revoked while the host was off, and the one free address granted again: the former guest does not start."""
    cluster = GuestCluster(free_addresses=1)
    for volume_id in (VOLUME, SECOND):
        cluster.engine.create_volume(spec(volume_id))

    def publish() -> Attachment:
        identity = cluster.identity(NODE)
        return cluster.engine.publish(SECOND, identity, AccessMode.SINGLE_NODE_WRITER, read_only=False, block=True)

    cluster.attach(VOLUME, NODE)
    former = cluster.attachments[VOLUME, NODE].address
    cluster.compute[NODE].hypervisor.write(cluster.guest[NODE], "vdb", MIB, b"written")
    cluster.world.power_loss(NODE)
    cluster.engine.unpublish(VOLUME, NODE)
    machine = cluster.compute[NODE]
    machine.boot()
    with pytest.raises(NoSpace):
        publish()  # The storage side sees that the node has another boot.
    cluster.world.power_loss(NODE)
    machine.boot()
    cluster.world.clock.sleep(2000)
    cluster.disks[NODE] = cluster.new_command(NODE)
    with pytest.raises(Unreachable):
        cluster.disks[NODE].ready(VOLUME)
    other = machine.hypervisor.define("g2")
    machine.hypervisor.start(other)
    attachment = publish()
    assert attachment.address == former
    cluster.disks[NODE].attach("g2", attachment)
    with pytest.raises(CommandFailed, match="is no device"):
        machine.hypervisor.start(cluster.guest[NODE])
    (device,) = other.open.values()
    assert device.openers == [other.opener("vdb")]


def test_a_link_that_somebody_left_to_a_device_goes_before_the_device_is_another_volume_s(
    cluster: GuestCluster,
) -> None:
    attachment = granted(cluster)
    machine = cluster.compute[NODE]
    machine.links["stray"] = f"/dev/etherd/{attachment.address}"
    cluster.disks[NODE].attach("g1", attachment)
    assert list(machine.links) == [VOLUME]


def test_a_volume_that_is_staged_keeps_its_link_when_another_is_granted_its_address(attached: GuestCluster) -> None:
    """As two SANs, or two storage machines that know nothing of each other, can have it."""
    attached.engine.create_volume(spec(SECOND))
    twin = replace(attached.attachments[VOLUME, NODE], volume_id=SECOND, serial=serial_of(SECOND))
    with pytest.raises(InUse, match="held on this node by volume vol"):
        attached.disks[NODE].attach("g1", twin)
    assert list(attached.compute[NODE].links) == [VOLUME]


def test_control_without_readying_a_guest_of_a_host_that_reboots_does_not_start(attached: GuestCluster) -> None:
    attached.world.power_loss(NODE)
    machine = attached.compute[NODE]
    machine.boot()
    assert machine.hypervisor.autostart() == ("g1",)


def test_a_silent_target_holds_the_boot_for_a_bounded_time_and_only_its_own_guest(attached: GuestCluster) -> None:
    attached.engine.create_volume(spec(SECOND))
    attached.world.power_loss(NODE)
    attached.world.power_loss(STORAGE_NODE)
    machine = attached.compute[NODE]
    machine.boot()
    attached.disks[NODE] = attached.new_command(NODE)
    process = machine.start_process("ready")
    outcomes = ready_all(attached.disks_of(NODE, process), attached.attacher_of(NODE, process), limit_s=1.0)
    assert [one.volume_id for one in outcomes] == [VOLUME]
    assert "nobody answers" in outcomes[0].problem
    other = machine.hypervisor.define("without-volumes", autostart=True)
    assert machine.hypervisor.autostart() == ("g1",)
    assert other.running
    # When the storage machine is back the same command readies it, and a person starts the guest.
    attached.world.boot(STORAGE_NODE)
    process = machine.start_process("ready again")
    assert (
        ready_all(attached.disks_of(NODE, process), attached.attacher_of(NODE, process), limit_s=5.0)[0].problem == ""
    )
    machine.hypervisor.start(attached.guest[NODE])
    assert read_back(attached) == b"written"


def test_what_is_half_detached_is_ready_for_the_domain_that_still_names_it(attached: GuestCluster) -> None:
    """Killed after it was marked as ending and before the configuration lost it, then the host reboots."""

    def die(step: Step) -> None:
        if step.name.startswith("libvirt detach"):
            step.process.kill()

    attached.world.on_step = die
    with pytest.raises(BaseException, match="guest command"):
        attached.detach(VOLUME, NODE)
    attached.world.on_step = None
    attached.world.power_loss(NODE)
    attached.restart()
    assert attached.guest[NODE].running
    attached.detach(VOLUME, NODE)
    gone(attached)


def test_a_storage_machine_that_reboots_stalls_the_guest_and_loses_nothing(attached: GuestCluster) -> None:
    hypervisor, guest = attached.compute[NODE].hypervisor, attached.guest[NODE]
    waiting = b"w" * 4096
    attached.world.power_loss(STORAGE_NODE)
    with pytest.raises(Unfinished):
        hypervisor.write(guest, "vdb", 2 * MIB, waiting)
    attached.world.clock.sleep(120)
    attached.world.boot(STORAGE_NODE)
    attached.restart()
    assert read_back(attached) == b"written"
    assert hypervisor.read(guest, "vdb", 2 * MIB, len(waiting)) == waiting
    attached.detach(VOLUME, NODE)
    gone(attached)


def test_a_storage_machine_that_is_away_for_longer_fails_the_guest_s_io_until_the_watchdog_revives_the_device(
    attached: GuestCluster,
) -> None:
    """QEMU pauses the guest at the first error; its device stays open, and the same one, all the time."""
    hypervisor, guest = attached.compute[NODE].hypervisor, attached.guest[NODE]
    device = guest.open["vdb"]
    attached.world.power_loss(STORAGE_NODE)
    with pytest.raises(Unfinished):
        hypervisor.write(guest, "vdb", 2 * MIB, b"w" * 4096)
    attached.world.clock.sleep(700)
    attached.world.boot(STORAGE_NODE)
    attached.restart()
    with pytest.raises((Unreachable, CommandFailed)):
        hypervisor.write(guest, "vdb", 2 * MIB, b"w" * 4096)
    attached.attachers[NODE].tend()
    hypervisor.write(guest, "vdb", 2 * MIB, b"w" * 4096)
    assert guest.open["vdb"] is device
    assert read_back(attached) == b"written"
    attached.detach(VOLUME, NODE)
    gone(attached)


def test_a_detach_needs_no_storage_machine_and_the_grant_goes_when_it_is_back(attached: GuestCluster) -> None:
    attached.world.power_loss(STORAGE_NODE)
    attached.disks[NODE].detach("g1", VOLUME)
    attached.check_no_guest_disk_left()
    attached.restart()
    attached.persist("revoking", partial(attached.engine.unpublish, VOLUME, NODE))
    attached.persist("sweeping", attached.attachers[NODE].tend)
    gone(attached)
