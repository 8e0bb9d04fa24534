"""A shelf that somebody else uses already is never exported on."""

import pytest
from tests.simulated.cluster import COMPUTE_NODES, SAN, SHELF, Cluster

from aoe_core.errors import NoSpace
from aoe_core.model import AccessMode, Address, PoolName, VolumeId, VolumeSpec
from aoe_core.units import MIB

VOLUME = VolumeId("first")
STRANGER = "52:54:00:ff:00:01"


def publish(cluster: Cluster) -> Address:
    cluster.engine.create_volume(VolumeSpec(volume_id=VOLUME, pool=PoolName("thick"), size_bytes=12 * MIB))
    attachment = cluster.engine.publish(
        VOLUME,
        cluster.identity(COMPUTE_NODES[0]),
        AccessMode.SINGLE_NODE_SINGLE_WRITER,
        read_only=False,
        block=True,
    )
    assert attachment.address is not None
    return attachment.address


def use_shelf(cluster: Cluster) -> None:
    """Another machine serves a slot of our first shelf that we would reach last."""
    cluster.world.add_imposter(SAN, STRANGER, Address(SHELF, 200), serial="10.200:strangers", size_bytes=MIB)


def test_a_shelf_in_use_by_another_machine_is_refused_by_name() -> None:
    cluster = Cluster()
    use_shelf(cluster)
    with pytest.raises(NoSpace, match=f"shelf {SHELF}: {STRANGER}"):
        publish(cluster)
    assert cluster.storage.record_directory("exports").seen == {}


def test_the_next_shelf_is_used_instead() -> None:
    cluster = Cluster(shelves=2)
    use_shelf(cluster)
    assert publish(cluster) == Address(SHELF + 1, 0)


def test_a_shelf_of_ours_is_not_given_up_when_somebody_appears_on_it() -> None:
    # Its nodes are protected by their own rules; a stranger must not stop us from serving.
    cluster = Cluster()
    assert publish(cluster) == Address(SHELF, 0)
    cluster.world.power_loss("storage1")
    cluster.restart()
    use_shelf(cluster)
    assert publish(cluster) == Address(SHELF, 0)
