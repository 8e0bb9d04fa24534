"""Something else between two steps of an operation: another call, or a death and then a life of another kind."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import msgspec
import pytest
from tests.simulated.cluster import COMPUTE_NODES, GROUP_BYTES, INTERFACE, RESIDUE, SAN, STORAGE_NODE, Cluster

from aoe_core.attach.records import BlockUse, FilesystemUse
from aoe_core.errors import AoECsiError, Busy, Conflict, InUse, NotFound, Unreachable
from aoe_core.fakes.blocks import BLOCK_BYTES
from aoe_core.fakes.world import Killed, Step
from aoe_core.model import (
    AccessMode,
    Attachment,
    FromSnapshot,
    FromVolume,
    Mac,
    NodeName,
    PoolName,
    SnapshotId,
    VolumeId,
    VolumeSpec,
    VolumeState,
)
from aoe_core.units import MIB
from aoe_core.volumes import tags

NODE, OTHER = COMPUTE_NODES
VOLUME, COPY = VolumeId("vol"), VolumeId("copy")
MODE = AccessMode.SINGLE_NODE_SINGLE_WRITER
SIZE_BYTES, GROWN_BYTES = 12 * MIB, 20 * MIB
WRITTEN = b"written".ljust(BLOCK_BYTES, b".")


def spec(volume_id: VolumeId = VOLUME, pool: str = "thick", source: FromVolume | None = None) -> VolumeSpec:
    return VolumeSpec(volume_id=volume_id, pool=PoolName(pool), size_bytes=SIZE_BYTES, source=source)


def publish(cluster: Cluster, volume_id: VolumeId = VOLUME, node: NodeName = NODE, *, block: bool = True) -> Attachment:
    return cluster.engine.publish(volume_id, cluster.identity(node), MODE, read_only=False, block=block)


def at(cluster: Cluster, wanted: str, act: Callable[[], object], *, after: bool = True) -> None:
    """Have something happen once, when a step whose name has this is passed."""

    def hook(step: Step) -> None:
        if wanted in step.name and step.after is after:
            cluster.world.on_step = None
            act()

    cluster.world.on_step = hook


def test_a_copy_that_has_just_been_made_is_not_made_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks again with what he saw a moment before its end; its user writes to it by then."""
    cluster = Cluster()
    cluster.engine.create_volume(spec())
    copy = spec(COPY, source=FromVolume(volume_id=VOLUME))
    lvm = cluster.engine._host.lvm  # noqa: SLF001 - what it saw.
    seen = [lvm.report()]

    def look(step: Step) -> None:
        if not step.after and "copy" in step.name:
            seen.append(lvm.report())

    cluster.world.on_step = look
    cluster.engine.create_volume(copy)
    cluster.world.on_step = None
    cluster.storage.write(f"/dev/vg0/v-{COPY}", 4 * MIB, WRITTEN)
    looks = iter([seen[-1]])
    now = lvm.report
    monkeypatch.setattr(lvm, "report", lambda: next(looks, None) or now())
    assert cluster.engine.create_volume(copy).state is VolumeState.READY
    assert next(looks, None) is None, "it was not asked with what was seen before"
    assert cluster.storage.read(f"/dev/vg0/v-{COPY}", 4 * MIB, BLOCK_BYTES) == WRITTEN


def test_a_copy_under_way_is_nobody_s_left_over() -> None:
    """And what stays of one whose process died is."""
    cluster = Cluster()
    cluster.engine.create_volume(spec())
    copy = spec(COPY, source=FromVolume(volume_id=VOLUME))
    seen: list[int] = []

    def look(_: Step) -> None:
        if any(one.key == f"copy/{COPY}" for one in cluster.engine.work()):
            seen.append(len(cluster.engine.inspect().orphans))

    cluster.world.on_step = look
    cluster.engine.create_volume(copy)
    cluster.world.on_step = None
    assert seen
    assert not any(seen)
    cluster.engine.delete_volume(COPY)
    die_at(cluster, "copy", lambda: cluster.engine.create_volume(copy))
    assert [one.kind for one in cluster.engine.inspect().orphans] == ["volume"]


def die_at(cluster: Cluster, wanted: str, act: Callable[[], object], *, restart: bool = True) -> None:
    """Kill whoever comes to a step, right after it; the processes then start anew."""

    def hook(step: Step) -> None:
        if wanted in step.name and step.after:
            cluster.world.on_step = None
            step.process.kill()

    cluster.world.on_step = hook
    with suppress(Killed):
        act()
        pytest.fail(f"nothing came to {wanted!r}")
    if restart:
        cluster.restart()


def test_an_expansion_carried_on_after_another_stage_zeroes_nothing_in_use() -> None:
    cluster = Cluster()
    cluster.engine.create_volume(spec())
    die_at(cluster, "lvextend", lambda: cluster.engine.expand_volume(VOLUME, GROWN_BYTES))
    attachment, attacher = publish(cluster), cluster.attachers[NODE]
    use = BlockUse(mode=MODE)
    attacher.stage(attachment, "/staging/vol", use)
    attacher.publish(VOLUME, "/staging/vol", "/pods/vol", use, read_only=False)
    cluster.compute[NODE].write("/pods/vol", GROWN_BYTES - BLOCK_BYTES, WRITTEN)
    cluster.engine.expand_volume(VOLUME, GROWN_BYTES)
    assert cluster.compute[NODE].read("/pods/vol", GROWN_BYTES - BLOCK_BYTES, BLOCK_BYTES) == WRITTEN


def test_an_expansion_shows_nothing_of_a_stranger() -> None:
    cluster = Cluster()
    cluster.engine.create_volume(spec())
    cluster.engine.expand_volume(VOLUME, GROWN_BYTES)
    end = cluster.storage.read(f"/dev/vg0/v-{VOLUME}", GROWN_BYTES - MIB, MIB)
    assert RESIDUE not in end
    assert not end.strip(b"\0")


def test_recovery_leaves_a_grant_alone_that_is_made_meanwhile() -> None:
    cluster = Cluster()
    for volume_id in (VOLUME, COPY):
        cluster.engine.create_volume(spec(volume_id))
    publish(cluster, VOLUME)
    die_at(cluster, "systemctl stop", lambda: cluster.engine.unpublish(VOLUME, NODE), restart=False)
    cluster.engine = cluster.new_engine()
    at(cluster, "systemctl stop", lambda: publish(cluster, COPY), after=False)
    cluster.engine.recover()
    (held,) = cluster.held(COPY)
    assert held.address in cluster.storage.exports.exporters


@pytest.mark.parametrize("lv_tags", [(), ("aoe-csi", "aoe-csi.id=vol")], ids=["a stranger's", "incomplete"])
def test_a_logical_volume_that_is_not_known_is_not_taken_over(lv_tags: tuple[str, ...]) -> None:
    cluster = Cluster()
    cluster.engine.create_volume(spec())
    lv = cluster.storage.lvm.groups["vg0"].volumes[f"v-{VOLUME}"]
    cluster.storage.write(f"/dev/vg0/v-{VOLUME}", 0, WRITTEN)
    lv.tags = set(lv_tags)
    with pytest.raises(Conflict, match="not one of this driver's"):
        cluster.engine.create_volume(spec())
    if tags.OURS in lv_tags:
        with pytest.raises(Unreachable, match="lacks tags"):
            cluster.engine.delete_volume(VOLUME)
    else:
        cluster.engine.delete_volume(VOLUME)
    assert cluster.storage.read(f"/dev/vg0/v-{VOLUME}", 0, BLOCK_BYTES) == WRITTEN


def test_neither_source_nor_copy_goes_while_it_is_copied() -> None:
    cluster = Cluster()
    cluster.engine.create_volume(spec())
    copy = spec(COPY, source=FromVolume(volume_id=VOLUME))
    refused: list[AoECsiError] = []

    def interfere() -> None:
        for act in (
            lambda: cluster.engine.delete_volume(VOLUME),
            lambda: cluster.engine.delete_volume(COPY),
            lambda: cluster.engine.create_volume(spec(COPY)),
            lambda: cluster.engine.create_volume(replace(copy, size_bytes=GROWN_BYTES)),
            lambda: publish(cluster),
        ):
            with pytest.raises(Busy) as refusal:
                act()
            refused.append(refusal.value)

    at(cluster, "copy", interfere, after=False)
    cluster.engine.create_volume(copy)
    assert len(refused) == 5
    publish(cluster)


def test_a_source_deleted_just_before_the_copy_begins_leaves_nothing() -> None:
    cluster = Cluster()
    cluster.engine.create_volume(spec())
    plan = cluster.engine.create_volume

    def delete_first() -> None:
        cluster.engine.delete_volume(VOLUME)

    at(cluster, "lvcreate", delete_first, after=False)
    with suppress(AoECsiError):
        plan(spec(COPY, source=FromVolume(volume_id=VOLUME)))
    names = {lv.name for lv in cluster.storage.lvm.volumes()}
    # Either the copy was guarded first, and the deletion waited, or it was not begun.
    assert {f"v-{VOLUME}", f"v-{COPY}"} <= names or f"v-{COPY}" not in names


def test_an_abandoned_copy_holds_up_nobody() -> None:
    cluster = Cluster()
    cluster.engine.create_volume(spec())
    die_at(cluster, "lvcreate", lambda: cluster.engine.create_volume(spec(COPY, source=FromVolume(volume_id=VOLUME))))
    publish(cluster)
    cluster.engine.unpublish(VOLUME, NODE)
    cluster.engine.delete_volume(VOLUME)
    with pytest.raises(NotFound):
        cluster.engine.create_volume(spec(COPY, source=FromVolume(volume_id=VOLUME)))
    cluster.engine.delete_volume(COPY)
    cluster.check_nothing_left()


def test_a_new_card_is_admitted_although_the_first_attempt_died() -> None:
    cluster = Cluster()
    cluster.engine.create_volume(spec())
    attachment = publish(cluster)
    old = cluster.identity(NODE)
    cards = cluster.compute[NODE].cards
    cards[INTERFACE] = replace(cards[INTERFACE], mac=Mac("52:54:00:aa:bb:cc"))
    assert cluster.identity(NODE) != old
    die_at(cluster, "sync directory", lambda: publish(cluster))
    again = publish(cluster)
    assert again.address == attachment.address is not None
    exporter = cluster.storage.exports.exporters[attachment.address]
    assert exporter.file.macs == cluster.identity(NODE).macs_on(SAN)


def test_a_lost_volume_is_not_made_anew_by_its_name() -> None:
    cluster = Cluster()
    cluster.engine.create_volume(spec())
    publish(cluster)
    group = cluster.storage.lvm.groups["vg0"]
    lost = group.volumes.pop(f"v-{VOLUME}")
    with pytest.raises(InUse, match="lost"):
        cluster.engine.create_volume(spec())
    group.volumes[lost.name] = lost
    cluster.engine.create_volume(spec())


def test_a_thin_volume_is_whole_with_one_change_of_its_group() -> None:
    """And usable, should the command that made it have died before it activated it."""
    cluster = Cluster()
    changes: list[str] = []

    def note(step: Step) -> None:
        if step.name.startswith("lv"):
            changes.append(step.name)

    cluster.world.on_step = note
    cluster.engine.create_volume(spec(pool="thin"))
    cluster.world.on_step = None
    assert len({change.split()[0] for change in changes}) == 1, changes
    lv = cluster.storage.lvm.groups["vg0"].volumes[f"v-{VOLUME}"]
    assert tags.state_tag(VolumeState.READY) in lv.tags
    lv.active = False
    cluster.engine.create_volume(spec(pool="thin"))
    assert lv.active


def test_what_a_pool_held_before_it_meant_another_volume_group_is_not_absent() -> None:
    """Neither gone for good, nor free to be made anew: the pool's name may mean the former group again."""
    cluster = Cluster()
    cluster.storage.lvm.add_group("vg1", GROUP_BYTES)
    thin, another, snapshot = VolumeId("thin-one"), VolumeId("another"), SnapshotId("snap")
    cluster.engine.create_volume(spec())
    cluster.engine.create_volume(spec(thin, "thin"))
    cluster.engine.create_snapshot(snapshot, thin)
    named = cluster.settings
    (thick,) = (pool for pool in named.pool if pool.name == "thick")
    moved = msgspec.structs.replace(thick, volume_group="vg1")
    cluster.settings = msgspec.structs.replace(named, pool=(moved,))
    engine = cluster.new_engine()
    refused: list[tuple[str, Callable[[], object]]] = [
        ("vg0/v-vol", lambda: engine.get_volume(VOLUME)),
        ("vg0/v-vol", lambda: engine.delete_volume(VOLUME)),
        ("vg0/v-vol", lambda: engine.create_volume(spec())),
        ("vg0/v-thin-one", lambda: engine.create_volume(spec(thin))),
        ("name vg0/tp0 as one again", lambda: engine.delete_snapshot(snapshot)),
        ("vg0/s-snap", lambda: engine.create_volume(replace(spec(COPY), source=FromSnapshot(snapshot_id=snapshot)))),
        ("vg0/s-snap", lambda: engine.create_snapshot(snapshot, another)),
    ]
    engine.create_volume(spec(another))
    for place, act in refused:
        with pytest.raises(Unreachable, match=place):
            act()
    assert set(cluster.storage.lvm.groups["vg0"].volumes) == {"tp0", "v-vol", "v-thin-one", "s-snap"}
    assert set(cluster.storage.lvm.groups["vg1"].volumes) == {"v-another"}
    cluster.settings = named
    engine = cluster.new_engine()
    assert {status.volume.volume_id for status in engine.list_volumes()} == {VOLUME, thin}
    engine.delete_snapshot(snapshot)
    engine.delete_volume(VOLUME)
    engine.delete_volume(thin)


def test_a_volume_staged_on_its_own_machine_is_not_taken_from_it() -> None:
    """Its device node is bound into the pod, and open only now and then."""
    cluster = Cluster(same_host=True)
    cluster.engine.create_volume(spec())
    attachment = publish(cluster, node=STORAGE_NODE)
    attacher, use = cluster.attachers[STORAGE_NODE], BlockUse(mode=MODE)
    attacher.stage(attachment, "/staging/vol", use)
    attacher.publish(VOLUME, "/staging/vol", "/pods/vol", use, read_only=False)
    with pytest.raises(InUse, match="still staged"):
        cluster.engine.unpublish(VOLUME, STORAGE_NODE)
    with pytest.raises(InUse):
        publish(cluster, node=OTHER)
    cluster.world.power_loss(STORAGE_NODE)
    cluster.restart()
    # Whoever had it then has it no more.
    cluster.engine.unpublish(VOLUME, STORAGE_NODE)
    publish(cluster, node=OTHER)


def test_a_file_system_grown_by_a_stage_between_two_attempts_is_whole() -> None:
    cluster = Cluster()
    cluster.engine.create_volume(spec())
    die_at(cluster, "lvextend", lambda: cluster.engine.expand_volume(VOLUME, GROWN_BYTES))
    use = FilesystemUse(mode=MODE, filesystem="ext4")
    attacher = cluster.attachers[NODE]
    attacher.stage(publish(cluster, block=False), "/staging/vol", use)
    attacher.publish(VOLUME, "/staging/vol", "/pods/vol", use, read_only=False)
    cluster.compute[NODE].write_file("/pods/vol", "file", b"kept")
    cluster.engine.expand_volume(VOLUME, GROWN_BYTES)
    assert attacher.expand(VOLUME, "/pods/vol", GROWN_BYTES) == GROWN_BYTES
    assert cluster.compute[NODE].read_files("/pods/vol") == {"file": b"kept"}
    assert tags.volume_lv_name(VOLUME) in cluster.storage.lvm.groups["vg0"].volumes
