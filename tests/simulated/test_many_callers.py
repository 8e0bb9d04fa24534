"""Many callers at once on one engine and two attachers, each with volumes of its own."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.simulated.cluster import COMPUTE_NODES, Cluster

from aoe_core.attach.records import BlockUse, FilesystemUse, Use
from aoe_core.errors import InUse
from aoe_core.fakes.lvm import RUNS_ON_S
from aoe_core.host.contracts import LvKind
from aoe_core.model import AccessMode, Address, PoolName, VolumeId, VolumeSpec
from aoe_core.units import MIB

CALLERS = 8
ROUNDS = 3
MODE = AccessMode.SINGLE_NODE_SINGLE_WRITER
PATIENCE_S = 60.0


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(threads=True)


def live(cluster: Cluster, caller: int, life: int) -> Address:
    """Create, use and delete one volume; return the address it was served at."""
    volume_id, node = VolumeId(f"v{caller}"), COMPUTE_NODES[caller % 2]
    pool = PoolName("thin" if caller % 3 else "thick")
    use: Use = BlockUse(mode=MODE) if caller % 4 == 0 else FilesystemUse(mode=MODE, filesystem="ext4")
    staging, target = f"/staging/{volume_id}", f"/pods/{volume_id}"
    attacher, machine = cluster.attachers[node], cluster.compute[node]
    text = f"{volume_id} in life {life}".encode().ljust(4096, b".")
    spec = VolumeSpec(volume_id=volume_id, pool=pool, size_bytes=12 * MIB)
    cluster.persist("create", lambda: cluster.engine.create_volume(spec))
    attachment = cluster.engine.publish(
        volume_id, cluster.identity(node), MODE, read_only=False, block=isinstance(use, BlockUse)
    )
    assert attachment.address is not None
    cluster.persist("stage", lambda: attacher.stage(attachment, staging, use))
    cluster.persist("publish", lambda: attacher.publish(volume_id, staging, target, use, read_only=False))
    if isinstance(use, BlockUse):
        machine.write(target, 2 * MIB, text)
        assert machine.read(target, 2 * MIB, 4096) == text
    else:
        machine.write_file(target, "note", text)
        assert machine.read_files(target) == {"note": text}
    with pytest.raises(InUse):
        cluster.engine.delete_volume(volume_id)
    cluster.persist("unpublish", lambda: attacher.unpublish(volume_id, target))
    cluster.persist("unstage", lambda: attacher.unstage(volume_id, staging))
    cluster.persist("revoke", lambda: cluster.engine.unpublish(volume_id, node))
    cluster.persist("delete", lambda: cluster.engine.delete_volume(volume_id))
    return attachment.address


def test_lives_side_by_side_share_nothing_and_leave_nothing(cluster: Cluster) -> None:
    def caller(number: int) -> list[Address]:
        return [live(cluster, number, life) for life in range(ROUNDS)]

    with ThreadPoolExecutor(CALLERS) as callers:
        addresses = [address for served in callers.map(caller, range(CALLERS)) for address in served]
    assert len(set(addresses)) == CALLERS * ROUNDS
    deadline = time.monotonic() + PATIENCE_S
    while any(lv.kind is not LvKind.THIN_POOL for lv in cluster.storage.lvm.volumes()):
        assert time.monotonic() < deadline, "deleted volumes were never wiped"
        # One of the engine's rounds: a wipe that met the last one of the same name just ending waits for it.
        cluster.engine.wipe_deleted()
        time.sleep(0.01)
    cluster.world.clock.sleep(RUNS_ON_S)
    for attacher in cluster.attachers.values():
        attacher.tend()
    cluster.check_nothing_left()


def test_of_many_nodes_that_ask_at_once_one_gets_the_volume(cluster: Cluster) -> None:
    volume_id = VolumeId("wanted")
    cluster.engine.create_volume(VolumeSpec(volume_id=volume_id, pool=PoolName("thick"), size_bytes=12 * MIB))

    def ask(number: int) -> bool:
        node = COMPUTE_NODES[number % 2]
        try:
            cluster.engine.publish(volume_id, cluster.identity(node), MODE, read_only=False, block=True)
        except InUse:
            return False
        return True

    with ThreadPoolExecutor(CALLERS) as callers:
        granted = list(callers.map(ask, range(CALLERS)))
    # Whoever was first, its node may ask again and the other one never gets it.
    assert {number % 2 for number, got in enumerate(granted) if got} in ({0}, {1})
    (file,) = cluster.held(volume_id)
    assert file.node == COMPUTE_NODES[granted.index(True) % 2]
    cluster.check_always()
