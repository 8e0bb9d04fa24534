"""`aoe-csi guest` from the command line to the guest: real gRPC to a real controller, on fakes below."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.simulated.cluster import COMPUTE_NODES, STORAGE_NODE
from tests.simulated.guest_cluster import GuestCluster

from aoe_core.attach.records import BlockUse
from aoe_core.errors import (
    AoECsiError,
    Conflict,
    InUse,
    Invalid,
    NoSpace,
    NotFound,
    OutOfRange,
    Unfinished,
    Unreachable,
)
from aoe_core.fakes.hypervisor import Unplug
from aoe_core.fakes.links import LINKS
from aoe_core.fakes.world import Step
from aoe_core.guests.records import RESOURCE, Origin
from aoe_core.host.contracts import DomainDisk
from aoe_core.model import AccessMode, Attachment, PoolName, VolumeId, VolumeSpec, serial_of
from aoe_core.settings import Settings
from aoe_core.units import MIB
from aoe_csi.__main__ import parser
from aoe_csi.controller import Controller
from aoe_csi.guest import ACTS, Here
from aoe_csi.identity import Identity
from aoe_csi.server import Server, Services

VOLUME = VolumeId("vol")
NODE, OTHER_NODE = COMPUTE_NODES
MODE = AccessMode.SINGLE_NODE_WRITER
Command = Callable[..., tuple[bool, list[str]]]


@pytest.fixture
def cluster() -> GuestCluster:
    made = GuestCluster()
    made.engine.create_volume(VolumeSpec(volume_id=VOLUME, pool=PoolName("thick"), size_bytes=8 * MIB))
    return made


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Serve a cluster's storage machine at a socket of a name."""
    started: list[Server] = []

    def start(cluster: GuestCluster, socket: str, *, node: str = "") -> Server:
        services = Services(identity=Identity(node), controller=Controller(cluster.engine))
        server = Server(str(tmp_path / socket), services)
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def guest(cluster: GuestCluster, tmp_path: Path, serve: Callable[..., Server]) -> Command:
    """Run `aoe-csi guest` on a node; returns whether all is well, and what it said."""
    serve(cluster, "storage1.sock", node="storage1")

    def run(act: str, *words: str, node: str = NODE, at: str = "storage1.sock") -> tuple[bool, list[str]]:
        asks = act in ("attach", "prepare", "detach", "resize") and "--orphan" not in words
        more = ["--controller", f"unix://{tmp_path}/{at}"] if asks else []
        options = parser().parse_args(["guest", act, *words, *more])
        name = next(one for one in cluster.compute if one == node)
        here = Here(
            settings=Settings(node=name),
            # As a process of its own: what it is made of is made anew.
            disks=cluster.disks_of(name, cluster.compute[name].start_process("guest")),
            attacher=cluster.attacher_of(name, cluster.compute[name].start_process("guest")),
        )
        said: list[str] = []
        return ACTS[act](options, here, said.append), said

    return run


def test_a_volume_s_way_into_a_guest_and_out_again(cluster: GuestCluster, guest: Command) -> None:
    for _ in range(2):
        assert guest("attach", "g1", VOLUME) == (
            True,
            [f"volume vol is disk vdb of domain g1, serial {serial_of(VOLUME)}"],
        )
    machine, domain = cluster.compute[NODE], cluster.guest[NODE]
    machine.hypervisor.write(domain, "vdb", MIB, b"written")
    well, said = guest("resize", "g1", VOLUME, "12MiB")
    assert well
    assert said == ["the guest sees the new size of vdb; grow the file system in it", "volume vol has 12 MiB"]
    assert domain.sizes["vdb"] == 12 * MIB
    well, said = guest("list", "--json")
    assert well
    (row,) = json.loads(said[0])["guests"]
    assert (row["volume"], row["domain"], row["target"], row["state"]) == ("vol", "g1", "vdb", "attached")
    assert (row["live"], row["config"]) == ("yes", "yes")
    for _ in range(2):
        well, said = guest("detach", "g1", VOLUME)
        assert well
        assert "its grant is given back" in said[-1]
    assert cluster.held(VOLUME) == ()
    cluster.attachers[NODE].tend()
    cluster.engine.delete_volume(VOLUME)
    cluster.check_nothing_left()


def test_a_read_only_disk_is_granted_for_reading(cluster: GuestCluster, guest: Command) -> None:
    guest("attach", "g1", VOLUME, "--read-only")
    (held,) = cluster.held(VOLUME)
    assert not held.writable
    assert cluster.guest[NODE].live["vdb"].read_only
    with pytest.raises((Conflict, InUse)):
        guest("attach", "g1", VOLUME)


def test_a_read_only_disk_grows_and_its_guest_sees_it_when_it_is_attached_anew(
    cluster: GuestCluster, guest: Command
) -> None:
    guest("attach", "g1", VOLUME, "--read-only")
    well, said = guest("resize", "g1", VOLUME, "12MiB")
    assert well
    assert said == [
        "disk vdb is read-only, so the guest sees its new size once it is attached anew",
        "volume vol has 12 MiB",
    ]
    assert cluster.guest[NODE].sizes["vdb"] == 8 * MIB
    guest("detach", "g1", VOLUME)
    guest("attach", "g1", VOLUME, "--read-only")
    assert cluster.guest[NODE].sizes["vdb"] == 12 * MIB


def test_another_bus(cluster: GuestCluster, guest: Command) -> None:
    guest("attach", "g1", VOLUME, "--bus", "scsi")
    assert list(cluster.guest[NODE].live) == ["sdb"]


def test_a_missing_domain_is_refused_before_anything_is_granted(cluster: GuestCluster, guest: Command) -> None:
    with pytest.raises(NotFound, match="nobody"):
        guest("attach", "nobody", VOLUME)
    assert cluster.held(VOLUME) == ()


def test_what_is_refused_here_leaves_no_grant(cluster: GuestCluster, guest: Command) -> None:
    hypervisor, domain = cluster.compute[NODE].hypervisor, cluster.guest[NODE]

    def refused(words: str) -> None:
        with pytest.raises((InUse, Conflict), match=words):
            guest("attach", "g1", VOLUME)
        assert cluster.held(VOLUME) == ()

    other = hypervisor.define("g2")
    other.config = {"vdc": DomainDisk(target="vdc", bus="virtio", source=f"{LINKS}/{VOLUME}")}
    refused("named as a disk by domain g2")
    other.config.clear()
    domain.config = {"vdc": DomainDisk(target="vdc", bus="virtio", serial=serial_of(VOLUME))}
    refused("take that disk away")
    domain.config.clear()
    hypervisor.save(domain)
    refused("managedsave-remove")
    hypervisor.start(domain)
    assert guest("attach", "g1", VOLUME)[0]


def test_a_volume_that_is_staged_for_something_else_is_refused_and_keeps_its_grant(
    cluster: GuestCluster, guest: Command
) -> None:
    attachment = cluster.engine.publish(VOLUME, cluster.identity(NODE), MODE, read_only=False, block=True)
    cluster.attachers[NODE].stage(attachment, "/srv/vol", BlockUse(mode=MODE))
    with pytest.raises(InUse, match="staged at /srv/vol"):
        guest("attach", "g1", VOLUME)
    assert len(cluster.held(VOLUME)) == 1


def test_a_size_is_refused_before_the_volume_is_grown_where_the_guest_has_no_such_disk(
    cluster: GuestCluster, guest: Command
) -> None:
    with pytest.raises(NotFound, match="attach it first"):
        guest("resize", "g1", VOLUME, "12MiB")
    assert cluster.engine.get_volume(VOLUME).volume.size_bytes == 8 * MIB


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("attach", "g1", "no-such-volume"), NotFound),
        (("attach", "g1", "Not A Volume"), NotFound),
        (("resize", "g1", "vol", "99999999TiB"), OutOfRange),
        (("resize", "g1", "vol", "10TiB"), NoSpace),
        (("resize", "g1", "vol", "much"), Invalid),
    ],
)
def test_what_the_controller_answers_is_the_project_s_error_again(
    guest: Command, words: tuple[str, ...], error: type[AoECsiError]
) -> None:
    guest("attach", "g1", VOLUME)
    with pytest.raises(AoECsiError) as caught:
        guest(*words)
    assert type(caught.value) is error


def test_two_machines_cannot_have_it_for_writing(cluster: GuestCluster, guest: Command) -> None:
    guest("attach", "g1", VOLUME)
    with pytest.raises(InUse, match=NODE):
        guest("attach", "g1", VOLUME, node=OTHER_NODE)
    assert cluster.guest[OTHER_NODE].live == {}


def test_a_guest_that_keeps_its_disk_keeps_its_grant(cluster: GuestCluster, guest: Command) -> None:
    guest("attach", "g1", VOLUME)
    cluster.guest[NODE].unplug = Unplug.IGNORES
    with pytest.raises(Unfinished, match="shut the guest down"):
        guest("detach", "g1", VOLUME, "--wait", "3")
    assert len(cluster.held(VOLUME)) == 1
    well, said = guest("list")
    assert not well
    assert "ending" in said[0]
    cluster.compute[NODE].hypervisor.listens(cluster.guest[NODE])
    assert guest("detach", "g1", VOLUME)[0]
    assert cluster.held(VOLUME) == ()


OTHERS = [("storage2", "storage2.sock"), ("", "storage2.sock")]
"""Other storage machines: with a name of its own, and one that is known by its socket alone."""


@pytest.fixture(params=OTHERS, ids=["named", "nameless"])
def other(request: pytest.FixtureRequest, serve: Callable[..., Server]) -> GuestCluster:
    """Another storage machine, that knows nothing of the first one and has a volume of the same name."""
    made = GuestCluster()
    made.engine.create_volume(VolumeSpec(volume_id=VOLUME, pool=PoolName("thick"), size_bytes=8 * MIB))
    name, socket = request.param
    serve(made, socket, node=name)
    return made


@pytest.mark.parametrize("words", [("attach", "g1"), ("detach", "g1"), ("resize", "g1")])
def test_another_storage_machine_than_the_one_that_granted_is_refused_before_anything_is_done(
    cluster: GuestCluster, guest: Command, other: GuestCluster, words: tuple[str, str]
) -> None:
    guest("attach", "g1", VOLUME)
    other.engine.publish(VOLUME, cluster.identity(NODE), MODE, read_only=False, block=True)
    before = guest("list", "--json")
    more = ["12MiB"] if words[0] == "resize" else []
    with pytest.raises(Conflict, match=r"granted by storage machine storage1, .*ask at unix://.*/storage1\.sock"):
        guest(*words, VOLUME, *more, at="storage2.sock")
    assert guest("list", "--json") == before
    for one in (cluster, other):
        assert len(one.held(VOLUME)) == 1
        assert one.engine.get_volume(VOLUME).volume.size_bytes == 8 * MIB
    assert guest("detach", "g1", VOLUME)[0]
    assert cluster.held(VOLUME) == ()


def test_a_storage_machine_is_known_by_its_name_wherever_it_is_asked(
    cluster: GuestCluster, guest: Command, serve: Callable[..., Server]
) -> None:
    guest("attach", "g1", VOLUME)
    serve(cluster, "elsewhere.sock", node="storage1")
    guest("resize", "g1", VOLUME, "12MiB", at="elsewhere.sock")
    assert guest("detach", "g1", VOLUME, at="elsewhere.sock")[0]


def test_a_grant_that_cannot_be_given_back_yet_stays_on_record(
    cluster: GuestCluster, guest: Command, serve: Callable[..., Server]
) -> None:
    """The disk is gone; who has to take the grant back is still known, after a boot too, and nothing is readied."""
    serve(GuestCluster(), "storage2.sock", node="storage2")
    late = serve(cluster, "late.sock", node="storage1")
    guest("attach", "g1", VOLUME, at="late.sock")
    late.stop()
    with pytest.raises(Unreachable, match=r"late\.sock"):
        guest("detach", "g1", VOLUME, at="late.sock")
    assert cluster.guest[NODE].live == cluster.guest[NODE].config == {}
    well, said = guest("list")
    assert not well
    assert "ending" in said[0]
    cluster.world.power_loss(NODE)
    cluster.world.boot(NODE)
    assert guest("ready") == (True, [])
    with pytest.raises(Conflict, match="granted by storage machine storage1"):
        guest("detach", "g1", VOLUME, at="storage2.sock")
    assert len(cluster.held(VOLUME)) == 1
    assert guest("detach", "g1", VOLUME)[0]
    assert cluster.held(VOLUME) == ()
    assert guest("list")[0]


def test_who_did_not_answer_before_is_asked_who_they_are_before_a_grant_is_given_back(
    cluster: GuestCluster, other: GuestCluster, guest: Command, serve: Callable[..., Server]
) -> None:
    """The way to the storage machine is made again while the guest lets go, and leads to another one."""
    late = serve(cluster, "late.sock", node="storage1")
    guest("attach", "g1", VOLUME, at="late.sock")
    other.engine.publish(VOLUME, cluster.identity(NODE), MODE, read_only=False, block=True)
    late.stop()

    def come_back(step: Step) -> None:
        if step.name == f"rm link {VOLUME}":
            cluster.world.on_step = None
            serve(other, "late.sock", node="storage2")
            time.sleep(2)  # grpc tries again a second after it found nobody.

    cluster.world.on_step = come_back
    with pytest.raises(Conflict, match="leads to storage2"):
        guest("detach", "g1", VOLUME, at="late.sock")
    assert len(cluster.held(VOLUME)) == len(other.held(VOLUME)) == 1
    assert guest("detach", "g1", VOLUME)[0]
    assert (len(cluster.held(VOLUME)), len(other.held(VOLUME))) == (0, 1)


def test_a_volume_whose_grant_is_still_to_be_given_back_may_be_attached_again(
    cluster: GuestCluster, guest: Command, serve: Callable[..., Server]
) -> None:
    late = serve(cluster, "late.sock", node="storage1")
    guest("attach", "g1", VOLUME, at="late.sock")
    late.stop()
    with pytest.raises(Unreachable):
        guest("detach", "g1", VOLUME, at="late.sock")
    cluster.engine.unpublish(VOLUME, NODE)
    guest("attach", "g1", VOLUME)  # Through another address.
    assert guest("list")[0]
    assert guest("detach", "g1", VOLUME)[0]


def test_a_storage_machine_that_does_not_answer_is_named(cluster: GuestCluster, tmp_path: Path) -> None:
    absent = f"unix://{tmp_path}/absent.sock"
    options = parser().parse_args(["guest", "attach", "g1", VOLUME, "--controller", absent])
    here = Here(settings=Settings(node=NODE), disks=cluster.disks[NODE], attacher=cluster.attachers[NODE])
    with pytest.raises(Unreachable, match=absent):
        ACTS["attach"](options, here, print)


def test_an_export_that_is_still_starting_is_asked_for_again(cluster: GuestCluster, tmp_path: Path) -> None:
    """The controller answers ABORTED meanwhile; without the retry the command would end there."""

    class Starting:
        def __init__(self) -> None:
            self.asked = 0

        def publish(self, *what: Any, **how: Any) -> Attachment:
            self.asked += 1
            if self.asked == 1:
                raise Unfinished("the export does not serve yet")
            return cluster.engine.publish(*what, **how)

    provisioner: Any = Starting()
    server = Server(str(tmp_path / "s.sock"), Services(identity=Identity(), controller=Controller(provisioner)))
    server.start()
    try:
        options = parser().parse_args(["guest", "attach", "g1", VOLUME, "--controller", f"unix://{tmp_path}/s.sock"])
        here = Here(settings=Settings(node=NODE), disks=cluster.disks[NODE], attacher=cluster.attachers[NODE])
        assert ACTS["attach"](options, here, lambda _: None)
    finally:
        server.stop()
    assert provisioner.asked == 2


def test_what_is_not_as_it_should_be_is_shown(cluster: GuestCluster, guest: Command) -> None:
    guest("attach", "g1", VOLUME)
    hypervisor, domain = cluster.compute[NODE].hypervisor, cluster.guest[NODE]

    def state() -> tuple[bool, str]:
        well, said = guest("list", "--json")
        return well, json.loads(said[0])["guests"][0]["state"]

    assert state() == (True, "attached")
    domain.config.clear()
    assert state() == (False, "incomplete")
    guest("attach", "g1", VOLUME)
    assert state() == (True, "attached")
    hypervisor.answers = False
    assert state() == (False, "unknown")
    hypervisor.answers = True
    hypervisor.undefine(domain)
    assert state() == (True, "attached")  # It runs on, and has it.
    hypervisor.stop(domain)
    assert state() == (False, "domain gone")
    assert guest("detach", "g1", VOLUME)[0]


def test_after_a_boot_every_device_is_said_to_be_ready_or_what_it_lacks(cluster: GuestCluster, guest: Command) -> None:
    assert guest("ready") == (True, [])
    guest("attach", "g1", VOLUME)
    cluster.world.power_loss(NODE)
    cluster.world.power_loss(STORAGE_NODE)
    cluster.world.boot(NODE)
    well, said = guest("ready", "--wait", "0.5")
    assert not well
    assert said[0].startswith("volume vol: nobody answers")
    cluster.world.boot(STORAGE_NODE)
    assert guest("ready") == (True, ["volume vol: ready"])
    assert cluster.compute[NODE].hypervisor.autostart() == ()


def test_what_an_aoeguestdisk_left_is_detached_on_a_person_s_word_alone(cluster: GuestCluster, guest: Command) -> None:
    attachment = cluster.engine.publish(VOLUME, cluster.identity(NODE), MODE, read_only=False, block=True)
    origin = Origin(endpoint=f"{RESOURCE}team-a/data/uid-1")
    cluster.disks[NODE].attach("g1", attachment, mode=MODE, origin=origin)
    with pytest.raises(Conflict, match=r"by AoEGuestDisk team-a/data/uid-1; delete that, or.*--orphan"):
        guest("detach", "g1", VOLUME)
    assert cluster.target(NODE) == "vdb"
    well, said = guest("detach", "g1", VOLUME, "--orphan")
    assert well
    assert "is cleared away by hand: docs/runbooks.md" in said[-1]
    assert cluster.records(NODE).all() == ()
    assert cluster.held(VOLUME), "its grant is the cluster's affair"


def test_nobody_s_word_takes_a_disk_whose_grant_can_be_given_back(cluster: GuestCluster, guest: Command) -> None:
    guest("attach", "g1", VOLUME)
    with pytest.raises(Conflict, match="detach it without --orphan"):
        guest("detach", "g1", VOLUME, "--orphan")
    assert cluster.target(NODE) == "vdb"


# --- live migration by hand -----------------------------------------------------------------------------------------


def alone(cluster: GuestCluster) -> None:
    """Have the other host without a guest of that name."""
    other = cluster.compute[OTHER_NODE].hypervisor
    other.stop(cluster.guest[OTHER_NODE])
    other.undefine(cluster.guest[OTHER_NODE])


@pytest.mark.parametrize("persistent", [True, False])
def test_a_running_guest_moves_to_another_host_with_its_disk(
    cluster: GuestCluster, guest: Command, persistent: bool
) -> None:
    alone(cluster)
    uuid = cluster.guest[NODE].uuid
    guest("attach", "g1", VOLUME, "--shared")
    cluster.compute[NODE].hypervisor.write(cluster.guest[NODE], "vdb", 0, b"written")
    for _ in range(2):
        guest("prepare", "g1", VOLUME, "--uuid", uuid, node=OTHER_NODE)
    source, target = (cluster.compute[node].hypervisor for node in (NODE, OTHER_NODE))
    moved = cluster.guest[OTHER_NODE] = target.receive(cluster.guest[NODE], source, persistent=persistent)
    assert target.read(moved, "vdb", 0, 7) == b"written"
    with pytest.raises(InUse, match="has come to this host"):
        guest("detach", "g1", VOLUME, node=OTHER_NODE)
    guest("attach", "g1", VOLUME, "--shared", node=OTHER_NODE)
    guest("detach", "g1", VOLUME)
    assert [file.node for file in cluster.held(VOLUME)] == [OTHER_NODE]
    assert target.read(moved, "vdb", 0, 7) == b"written"
    assert cluster.records(NODE).all() == ()
    assert guest("list", node=OTHER_NODE)[0]
    guest("detach", "g1", VOLUME, node=OTHER_NODE)
    assert cluster.held(VOLUME) == ()


def test_a_guest_that_did_not_come_leaves_nothing_behind(cluster: GuestCluster, guest: Command) -> None:
    alone(cluster)
    guest("attach", "g1", VOLUME, "--shared")
    guest("prepare", "g1", VOLUME, "--uuid", cluster.guest[NODE].uuid, node=OTHER_NODE)
    well, (said, *_) = guest("list", node=OTHER_NODE)
    assert not well
    assert "expected" in said
    guest("detach", "g1", VOLUME, node=OTHER_NODE)
    assert [file.node for file in cluster.held(VOLUME)] == [NODE]
    assert cluster.target(NODE) == "vdb"


def test_a_volume_that_is_not_shared_goes_nowhere(cluster: GuestCluster, guest: Command) -> None:
    alone(cluster)
    guest("attach", "g1", VOLUME)
    with pytest.raises(InUse):
        guest("prepare", "g1", VOLUME, "--uuid", cluster.guest[NODE].uuid, node=OTHER_NODE)
    assert cluster.records(OTHER_NODE).all() == ()
    assert [file.node for file in cluster.held(VOLUME)] == [NODE]


def test_two_guests_never_share_a_volume_for_writing(cluster: GuestCluster, guest: Command) -> None:
    cluster.compute[OTHER_NODE].hypervisor.define("g2")
    guest("attach", "g1", VOLUME, "--shared")
    for _ in range(2):
        with pytest.raises(InUse, match=f"is published to {NODE}; two guests never write to one volume"):
            guest("attach", "g2", VOLUME, "--shared", node=OTHER_NODE)
        assert [file.node for file in cluster.held(VOLUME)] == [NODE]
        assert cluster.records(OTHER_NODE).all() == ()
    assert guest("attach", "g1", VOLUME, "--shared")[0], "what is attached already stays so"


@pytest.mark.parametrize("runs", [False, True], ids=["off", "running"])
def test_what_an_earlier_move_left_gets_no_disk_while_another_host_has_it(
    cluster: GuestCluster, guest: Command, runs: bool
) -> None:
    alone(cluster)
    left = replace(cluster.guest[NODE], running=runs)
    guest("attach", "g1", VOLUME, "--shared")
    left.live, left.config, left.open, left.sizes, left.plugged = {}, {}, {}, {}, set()
    cluster.compute[OTHER_NODE].hypervisor.guests[left.uuid] = cluster.guest[OTHER_NODE] = left
    guest("prepare", "g1", VOLUME, "--uuid", left.uuid, node=OTHER_NODE)
    with pytest.raises(Unfinished, match=f"{NODE} may still have it"):
        guest("attach", "g1", VOLUME, "--shared", node=OTHER_NODE)
    assert (left.live, left.config) == ({}, {})
    guest("detach", "g1", VOLUME)
    guest("attach", "g1", VOLUME, "--shared", node=OTHER_NODE)
    assert list(left.config) == ["vdb"]


def test_a_detach_that_the_guest_did_not_obey_is_turned_round_while_it_was_to_move(
    cluster: GuestCluster, guest: Command
) -> None:
    """The guest has the volume all the time, through the grant of the host it runs on."""
    alone(cluster)
    guest("attach", "g1", VOLUME, "--shared")
    guest("prepare", "g1", VOLUME, "--uuid", cluster.guest[NODE].uuid, node=OTHER_NODE)
    cluster.guest[NODE].unplug = Unplug.IGNORES
    with pytest.raises(Unfinished):
        guest("detach", "g1", VOLUME, "--wait", "5")
    cluster.compute[NODE].hypervisor.listens(cluster.guest[NODE])
    guest("attach", "g1", VOLUME, "--shared")
    assert sorted(file.node for file in cluster.held(VOLUME)) == [NODE, OTHER_NODE]
    cluster.compute[NODE].hypervisor.write(cluster.guest[NODE], "vdb", 0, b"goes on")


def test_what_is_not_made_ready_leaves_no_grant(cluster: GuestCluster, guest: Command) -> None:
    uuid = cluster.guest[NODE].uuid
    guest("attach", "g1", VOLUME, "--shared")
    cluster.compute[OTHER_NODE].hypervisor.answers = False
    with pytest.raises(Unreachable):
        guest("prepare", "g1", VOLUME, "--uuid", uuid, node=OTHER_NODE)
    assert [file.node for file in cluster.held(VOLUME)] == [NODE]


def test_what_another_domain_has_is_not_made_ready(cluster: GuestCluster, guest: Command) -> None:
    cluster.compute[OTHER_NODE].hypervisor.define("g2")
    guest("prepare", "g2", VOLUME, "--uuid", cluster.guest[NODE].uuid, node=OTHER_NODE)
    other = next(one for one in cluster.compute[OTHER_NODE].hypervisor.guests.values() if one.name == "g2")
    with pytest.raises(InUse, match="is a disk of domain g2"):
        guest("prepare", "g2", VOLUME, "--uuid", other.uuid, node=OTHER_NODE)
