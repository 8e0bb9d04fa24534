"""A node that was given up for lost, and was not: what it still has staged is the past.

Its grant was revoked and the volume written elsewhere. Granted to it anew, kubelet finds the volume mounted there and
publishes it without staging it.
"""

from weakref import WeakKeyDictionary

import pytest
from tests.simulated.cluster import COMPUTE_NODES, INTERFACE, SAN, Cluster
from tests.simulated.test_between_steps import at
from tests.simulated.test_kill_sweep import DEATHS, MODE, VOLUME, Life, Operation, spec, sweep

from aoe_core.attach.records import BlockUse, FilesystemUse, Use
from aoe_core.errors import CommandFailed, Unfinished
from aoe_core.fakes.world import Step
from aoe_core.model import NodeName
from aoe_core.units import MIB
from aoe_lab.evidence import Evidence

NODE, OTHER = COMPUTE_NODES
STAGING, FORMER, PRESENT = "/staging/vol", "/pods/former", "/pods/present"
USES = (
    BlockUse(mode=MODE),
    FilesystemUse(mode=MODE, filesystem="ext4"),
    # One whose device has died answers no question about its mount point.
    FilesystemUse(mode=MODE, filesystem="xfs"),
)
OFFSET_BYTES = 1 << 20
SEEN_STAGED: WeakKeyDictionary[Cluster, str] = WeakKeyDictionary()
"""The boot of the node in which its kubelet saw the volume staged."""


def grant(one: Cluster, node: NodeName, use: Use) -> None:
    one.attachments[VOLUME, node] = one.engine.publish(
        VOLUME, one.identity(node), MODE, read_only=False, block=isinstance(use, BlockUse)
    )


def write(one: Cluster, node: NodeName, target: str, use: Use, data: bytes) -> None:
    if isinstance(use, BlockUse):
        one.compute[node].write(target, OFFSET_BYTES, data)
    else:
        one.compute[node].write_file(target, "file", data)


def read(one: Cluster, node: NodeName, target: str, use: Use, length_bytes: int) -> bytes:
    if isinstance(use, BlockUse):
        return one.compute[node].read(target, OFFSET_BYTES, length_bytes)
    return one.compute[node].read_files(target)["file"]


def leave_behind(one: Cluster, use: Use) -> None:
    """Have a node with a volume that was revoked, written elsewhere, and is granted to it anew."""
    one.engine.create_volume(spec("thick", size_bytes=320 * MIB))
    grant(one, NODE, use)
    one.attachers[NODE].stage(one.attachments[VOLUME, NODE], STAGING, use)
    SEEN_STAGED[one] = one.compute[NODE].boot_id
    one.attachers[NODE].publish(VOLUME, STAGING, FORMER, use, read_only=False)
    write(one, NODE, FORMER, use, b"the past")
    one.engine.unpublish(VOLUME, NODE)
    grant(one, OTHER, use)
    one.attachers[OTHER].stage(one.attachments[VOLUME, OTHER], STAGING, use)
    one.attachers[OTHER].publish(VOLUME, STAGING, PRESENT, use, read_only=False)
    write(one, OTHER, PRESENT, use, b"since")
    one.attachers[OTHER].unpublish(VOLUME, PRESENT)
    one.attachers[OTHER].unstage(VOLUME, STAGING)
    one.engine.unpublish(VOLUME, OTHER)
    one.attachers[OTHER].tend()
    grant(one, NODE, use)


def publish(one: Cluster, use: Use) -> None:
    """As kubelet does: what it has once seen staged it stages again only after a boot of the node."""
    attachment = one.attachments[VOLUME, NODE]
    if SEEN_STAGED[one] != one.compute[NODE].boot_id:
        one.attachers[NODE].stage(attachment, STAGING, use)
        SEEN_STAGED[one] = one.compute[NODE].boot_id
    one.attachers[NODE].publish(VOLUME, STAGING, PRESENT, use, read_only=False, attachment=attachment)


def end_former(one: Cluster) -> None:
    """When the driver has given up its target, for which an unmount would wait."""
    (record,) = one.attachers[NODE].records()
    with pytest.raises(Unfinished):
        one.compute[NODE].read(f"/dev/etherd/{record.attachment.address}", 8 * OFFSET_BYTES, 512)
    one.world.clock.sleep(700)
    one.attachers[NODE].unpublish(VOLUME, FORMER)


def fall_silent_once_proven(one: Cluster) -> None:
    """What is pinned was proven: the driver does not find it any more."""
    at(one, "nft pin ", lambda: one.world.link("storage1", INTERFACE, up=False))


def end(one: Cluster) -> None:
    for target in (FORMER, PRESENT):
        one.attachers[NODE].unpublish(VOLUME, target)
    one.attachers[NODE].unstage(VOLUME, STAGING)


def life(use: Use) -> Life:
    return Life(
        name=f"left behind {'block' if isinstance(use, BlockUse) else use.filesystem}",
        operations=(
            Operation(name="leave behind", act=lambda one: leave_behind(one, use)),
            Operation(name="end the former", act=end_former),
            Operation(name="publish", act=lambda one: publish(one, use)),
            Operation(name="end", act=end),
            Operation(name="unpublish", act=lambda one: one.engine.unpublish(VOLUME, NODE)),
            Operation(name="sweep", act=lambda one: one.attachers[NODE].tend()),
            Operation(name="delete", act=lambda one: one.engine.delete_volume(VOLUME)),
        ),
        undo_from=3,
    )


@pytest.fixture(params=USES, ids=["block", "ext4", "xfs"])
def use(request: pytest.FixtureRequest) -> Use:
    chosen: Use = request.param
    return chosen


def test_a_pod_on_a_node_that_was_given_up_does_not_get_the_past(use: Use) -> None:
    cluster = Cluster()
    leave_behind(cluster, use)
    with pytest.raises(Unfinished, match=r"a grant that was revoked.*unpublish it there first"):
        publish(cluster, use)
    cluster.attachers[NODE].unpublish(VOLUME, FORMER)
    for _ in range(2):
        cluster.persist("publish", lambda: publish(cluster, use))
        assert read(cluster, NODE, PRESENT, use, 5) == b"since"
    write(cluster, NODE, PRESENT, use, b"goes on")
    end(cluster)
    cluster.engine.unpublish(VOLUME, NODE)
    cluster.attachers[NODE].tend()
    cluster.engine.delete_volume(VOLUME)
    cluster.check_nothing_left()


@pytest.mark.parametrize("tended", [False, True])
def test_a_target_that_is_silent_for_a_while_leaves_the_former_as_it_is(use: Use, *, tended: bool) -> None:
    """Else nothing would be on record, and kubelet, which saw it staged, would not stage it."""
    cluster = Cluster()
    leave_behind(cluster, use)
    end_former(cluster)
    (file,) = cluster.held(VOLUME)
    cluster.world.link("storage1", INTERFACE, up=False)
    with pytest.raises(Unfinished, match="nobody answers"):
        publish(cluster, use)
    if tended:
        cluster.attachers[NODE].tend()
    (record,) = cluster.attachers[NODE].present_records()
    assert record.staged
    assert record.attachment.address != file.address
    cluster.world.link("storage1", INTERFACE, up=True)
    cluster.persist("publish", lambda: publish(cluster, use))
    assert read(cluster, NODE, PRESENT, use, 5) == b"since"


@pytest.mark.parametrize("tended", [False, True])
def test_a_target_that_falls_silent_when_the_former_has_gone_is_waited_for(use: Use, *, tended: bool) -> None:
    cluster = Cluster()
    leave_behind(cluster, use)
    end_former(cluster)
    fall_silent_once_proven(cluster)
    with pytest.raises(Unfinished, match="did not come up"):
        publish(cluster, use)
    if tended:
        cluster.attachers[NODE].tend()
    with pytest.raises(Unfinished, match="nobody answers"):
        publish(cluster, use)
    cluster.world.link("storage1", INTERFACE, up=True)
    cluster.persist("publish", lambda: publish(cluster, use))
    assert read(cluster, NODE, PRESENT, use, 5) == b"since"
    end(cluster)


def test_the_next_pod_goes_on_when_the_one_it_was_begun_for_has_gone(use: Use) -> None:
    """And the storage machine is silent for a while, so that nothing but the record tells of the volume."""
    cluster, first = Cluster(), "/pods/first"
    leave_behind(cluster, use)
    end_former(cluster)
    attachment, attacher = cluster.attachments[VOLUME, NODE], cluster.attachers[NODE]
    fall_silent_once_proven(cluster)
    for target in (first, PRESENT):
        with pytest.raises(Unfinished):
            attacher.publish(VOLUME, STAGING, target, use, read_only=False, attachment=attachment)
    attacher.unpublish(VOLUME, first)
    attacher.tend()
    cluster.world.link("storage1", INTERFACE, up=True)
    cluster.persist("publish", lambda: publish(cluster, use))
    assert read(cluster, NODE, PRESENT, use, 5) == b"since"
    end(cluster)


def test_an_imposter_at_the_present_address_is_named_and_the_former_is_left() -> None:
    cluster, use = Cluster(), USES[0]
    leave_behind(cluster, use)
    end_former(cluster)
    address = cluster.attachments[VOLUME, NODE].address
    assert address is not None
    cluster.world.add_imposter(SAN, "52:54:00:00:99:99", address, serial="other0000", size_bytes=320 * MIB)
    with pytest.raises(Unfinished, match="not provably") as refused:
        publish(cluster, use)
    assert "nobody here has the former" not in str(refused.value)
    assert cluster.is_staged(VOLUME, NODE)


def test_what_kubelet_forgot_is_staged_anew(use: Use) -> None:
    """One that was started anew before it had unstaged stages the volume when it comes back to the node."""
    cluster = Cluster()
    leave_behind(cluster, use)
    attachment = cluster.attachments[VOLUME, NODE]
    with pytest.raises(Unfinished, match="a grant that was revoked"):
        cluster.attachers[NODE].stage(attachment, STAGING, use)
    end_former(cluster)
    cluster.persist("stage", lambda: cluster.attachers[NODE].stage(attachment, STAGING, use))
    publish(cluster, use)
    assert read(cluster, NODE, PRESENT, use, 5) == b"since"


def test_a_pod_gets_the_use_it_asks_for_and_not_the_former_one() -> None:
    cluster = Cluster()
    leave_behind(cluster, BlockUse(mode=MODE))
    cluster.attachers[NODE].unpublish(VOLUME, FORMER)
    asked = BlockUse(mode=MODE, read_only=True)
    cluster.persist("publish", lambda: publish(cluster, asked))
    (record,) = cluster.attachers[NODE].records()
    assert record.use == asked


def test_control_without_its_grant_a_pod_gets_the_past(use: Use) -> None:
    cluster = Cluster()
    leave_behind(cluster, use)
    cluster.attachers[NODE].unpublish(VOLUME, FORMER)
    cluster.attachers[NODE].publish(VOLUME, STAGING, PRESENT, use, read_only=False)
    (record,) = cluster.attachers[NODE].records()
    assert record.attachment.address != cluster.attachments[VOLUME, NODE].address


@pytest.mark.parametrize("use", USES[:2], ids=["block", "ext4"])
def test_a_publish_that_stages_anew_killed_anywhere_converges(use: Use, evidence: Evidence) -> None:
    sweep(life(use), 2, evidence, abandoned="undone", deaths=DEATHS)


# --- what kubelet is told while something is left on the node ---------------------------------------------------------


@pytest.mark.parametrize("fails", ["grow ", "write temporary file"])
def test_a_stage_that_fails_with_its_mount_there_is_unfinished(fails: str) -> None:
    """Else kubelet would take the volume for one that is not here, and never ask to unstage it."""
    cluster, use = Cluster(), FilesystemUse(mode=MODE, filesystem="ext4")
    cluster.engine.create_volume(spec("thick"))
    grant(cluster, NODE, use)
    mounted = False

    def fail(step: Step) -> None:
        nonlocal mounted
        mounted |= step.after and step.name.startswith("mount ")
        if mounted and not step.after and fails in step.name:
            raise CommandFailed(f"{step.name} failed")

    cluster.world.on_step = fail
    with pytest.raises(Unfinished, match="failed"):
        cluster.attachers[NODE].stage(cluster.attachments[VOLUME, NODE], STAGING, use)
    assert mounted
    assert cluster.attachers[NODE].present_records()
    cluster.world.on_step = None
    cluster.attachers[NODE].unstage(VOLUME, STAGING)
    cluster.engine.unpublish(VOLUME, NODE)
    cluster.attachers[NODE].tend()
    cluster.engine.delete_volume(VOLUME)
    cluster.check_nothing_left()


def test_what_a_later_call_refuses_is_unfinished_while_the_former_one_s_mount_is_there() -> None:
    cluster, use = Cluster(), FilesystemUse(mode=MODE, filesystem="ext4")
    cluster.engine.create_volume(spec("thick"))
    grant(cluster, NODE, use)

    def fail(step: Step) -> None:
        if not step.after and step.name.startswith("grow "):
            raise CommandFailed(f"{step.name} failed")

    cluster.world.on_step = fail
    with pytest.raises(Unfinished):
        cluster.attachers[NODE].stage(cluster.attachments[VOLUME, NODE], STAGING, use)
    cluster.world.on_step = None
    with pytest.raises(Unfinished, match="already has"):
        cluster.attachers[NODE].stage(cluster.attachments[VOLUME, NODE], STAGING, BlockUse(mode=MODE))
    cluster.attachers[NODE].unstage(VOLUME, STAGING)
