"""A node that was cut off, and what it had under way: it never lands on anybody."""

import pytest
from tests.simulated.cluster import COMPUTE_NODES, Cluster

from aoe_core.attach.records import BlockUse
from aoe_core.errors import NoSpace, Unfinished
from aoe_core.fakes.blocks import BLOCK_BYTES
from aoe_core.model import AccessMode, Attachment, NodeName, PoolName, VolumeId, VolumeSpec
from aoe_core.units import MIB

FENCED, OTHER = COMPUTE_NODES
FIRST, SECOND = VolumeId("first"), VolumeId("second")
MODE = AccessMode.SINGLE_NODE_SINGLE_WRITER
REST_S = 660
FROZEN = b"frozen".ljust(BLOCK_BYTES, b"\0")
"""A whole block: a part of one would have to be read first."""


@pytest.fixture
def cluster() -> Cluster:
    """A cluster whose every grant must use the same address."""
    cluster = Cluster(free_addresses=1)
    for volume_id in (FIRST, SECOND):
        cluster.engine.create_volume(VolumeSpec(volume_id=volume_id, pool=PoolName("thick"), size_bytes=12 * MIB))
    return cluster


def publish(cluster: Cluster, volume_id: VolumeId, node: NodeName) -> Attachment:
    return cluster.engine.publish(volume_id, cluster.identity(node), MODE, read_only=False, block=True)


def bring_up(cluster: Cluster, volume_id: VolumeId, node: NodeName) -> str:
    attachment = publish(cluster, volume_id, node)
    cluster.attachers[node].stage(attachment, f"/staging/{volume_id}", BlockUse(mode=MODE))
    assert attachment.address is not None
    return f"/dev/etherd/{attachment.address}"


def content(cluster: Cluster, volume_id: VolumeId) -> bytes:
    return cluster.storage.read(f"/dev/vg0/v-{volume_id}", 2 * MIB, BLOCK_BYTES).rstrip(b"\0")


def freeze_a_write(cluster: Cluster) -> str:
    """Have the fenced node write with nobody to answer, and take its volume away meanwhile."""
    path = bring_up(cluster, FIRST, FENCED)
    cluster.world.pause("storage1")
    with pytest.raises(Unfinished):
        cluster.compute[FENCED].write(path, 2 * MIB, FROZEN)
    cluster.world.pause(FENCED)
    cluster.world.resume("storage1")
    cluster.engine.unpublish(FIRST, FENCED)
    return path


def test_the_write_of_a_fenced_node_does_not_reach_its_own_volume(cluster: Cluster) -> None:
    freeze_a_write(cluster)
    cluster.world.resume(FENCED)
    cluster.world.clock.sleep(60)
    assert content(cluster, FIRST) == b""


def test_an_address_rests_longer_than_an_initiator_keeps_a_write(cluster: Cluster) -> None:
    freeze_a_write(cluster)
    cluster.world.clock.sleep(REST_S - 1)
    with pytest.raises(NoSpace, match="frees in 1 s"):
        publish(cluster, SECOND, OTHER)
    cluster.world.clock.sleep(1)
    assert publish(cluster, SECOND, OTHER).address is not None


def test_a_paused_node_does_not_write_to_who_has_its_address_now(cluster: Cluster) -> None:
    freeze_a_write(cluster)
    cluster.world.clock.sleep(REST_S)
    path = bring_up(cluster, SECOND, OTHER)
    cluster.compute[OTHER].write(path, 2 * MIB, b"rightful")
    cluster.world.resume(FENCED)
    cluster.world.clock.sleep(60)
    assert content(cluster, SECOND) == b"rightful"


def test_an_address_does_not_go_back_to_its_former_holder_before_that_rebooted(cluster: Cluster) -> None:
    freeze_a_write(cluster)
    cluster.world.clock.sleep(10 * REST_S)
    # Woken up, it still has the write under way: no time passed on it.
    cluster.world.resume(FENCED)
    with pytest.raises(NoSpace):
        publish(cluster, SECOND, FENCED)
    cluster.world.power_loss(FENCED)
    cluster.restart()
    bring_up(cluster, SECOND, FENCED)
    cluster.world.clock.sleep(60)
    assert content(cluster, SECOND) == b""


def test_a_reboot_before_the_revocation_proves_nothing(cluster: Cluster) -> None:
    # The grant was made in an earlier boot of the node and used on in this one: kubelet stages again after a reboot,
    # and nobody publishes again. What is under way now is of this boot.
    attachment = publish(cluster, FIRST, FENCED)
    cluster.world.power_loss(FENCED)
    cluster.restart()
    cluster.attachers[FENCED].stage(attachment, f"/staging/{FIRST}", BlockUse(mode=MODE))
    path = f"/dev/etherd/{attachment.address}"
    cluster.world.pause("storage1")
    with pytest.raises(Unfinished):
        cluster.compute[FENCED].write(path, 2 * MIB, FROZEN)
    cluster.world.pause(FENCED)
    cluster.world.resume("storage1")
    cluster.engine.unpublish(FIRST, FENCED)
    cluster.world.clock.sleep(10 * REST_S)
    with pytest.raises(NoSpace):
        publish(cluster, SECOND, FENCED)
    cluster.world.resume(FENCED)
    cluster.world.clock.sleep(60)
    assert content(cluster, SECOND) == b""


def test_without_the_rules_for_addresses_the_frozen_write_would_land(cluster: Cluster) -> None:
    # What the other tests show to be kept off is real: the fakes do deliver it when the address is served again.
    path = bring_up(cluster, FIRST, FENCED)
    cluster.world.pause("storage1")
    with pytest.raises(Unfinished):
        cluster.compute[FENCED].write(path, 2 * MIB, FROZEN)
    cluster.world.resume("storage1")
    assert content(cluster, FIRST) == FROZEN.rstrip(b"\0")
