"""The right disk or none: what answers is used only when it is provably the volume."""

import pytest
from tests.simulated.cluster import COMPUTE_NODES, SAN, Cluster

from aoe_core.attach.records import BlockUse, FilesystemUse
from aoe_core.errors import AoECsiError, IdentityMismatch, Unreachable
from aoe_core.model import AccessMode, Address, Attachment, PoolName, VolumeId, VolumeSpec, serial_of
from aoe_core.units import MIB

VOLUME = VolumeId("vol")
NODE = COMPUTE_NODES[0]
MODE = AccessMode.SINGLE_NODE_SINGLE_WRITER
SIZE_BYTES = 12 * MIB
STRANGER = "52:54:00:ee:ee:01"
STAGING = "/staging/vol"


@pytest.fixture
def attachment(cluster: Cluster) -> Attachment:
    """A granted volume."""
    cluster.engine.create_volume(VolumeSpec(volume_id=VOLUME, pool=PoolName("thick"), size_bytes=SIZE_BYTES))
    return cluster.engine.publish(VOLUME, cluster.identity(NODE), MODE, read_only=False, block=False)


def address_of(attachment: Attachment) -> Address:
    assert attachment.address is not None
    return attachment.address


def stage(cluster: Cluster, attachment: Attachment) -> None:
    cluster.attachers[NODE].stage(attachment, STAGING, FilesystemUse(mode=MODE, filesystem="ext4"))


def check_untouched(cluster: Cluster) -> None:
    """Prove that nothing was mounted, written or left behind."""
    machine = cluster.compute[NODE]
    assert len(machine.mounts.table) == 1
    assert machine.record_directory("staged").seen == {}
    assert not any(machine.ingress.pins.values())
    device = cluster.storage.get_device(f"/dev/vg0/v-{VOLUME}")
    assert not device.has_data(0, MIB)
    assert not device.has_data(SIZE_BYTES - MIB, MIB)


@pytest.mark.parametrize("serial", ["", "10.0:stranger", "10.0:", "99.9:"])
def test_a_stranger_that_answers_alone_is_not_used(cluster: Cluster, attachment: Attachment, serial: str) -> None:
    cluster.world.link("storage1", "san0", up=False)
    content = cluster.world.add_imposter(
        SAN, STRANGER, address_of(attachment), serial=serial, size_bytes=SIZE_BYTES
    ).target.device
    with pytest.raises(IdentityMismatch):
        stage(cluster, attachment)
    assert not content.has_data(0, SIZE_BYTES)
    check_untouched(cluster)


def test_a_second_target_with_the_very_same_serial_is_refused(cluster: Cluster, attachment: Attachment) -> None:
    serial = f"{address_of(attachment).instance}:{serial_of(VOLUME)}"
    cluster.world.add_imposter(SAN, STRANGER, address_of(attachment), serial=serial, size_bytes=SIZE_BYTES)
    with pytest.raises(IdentityMismatch):
        stage(cluster, attachment)
    check_untouched(cluster)


def test_a_target_that_is_too_small_is_refused(cluster: Cluster, attachment: Attachment) -> None:
    cluster.world.link("storage1", "san0", up=False)
    serial = f"{address_of(attachment).instance}:{attachment.serial}"
    cluster.world.add_imposter(SAN, STRANGER, address_of(attachment), serial=serial, size_bytes=SIZE_BYTES - 512)
    with pytest.raises(IdentityMismatch):
        stage(cluster, attachment)
    check_untouched(cluster)


def test_nobody_answering_is_unreachable_and_leaves_nothing(cluster: Cluster, attachment: Attachment) -> None:
    cluster.world.link("storage1", "san0", up=False)
    with pytest.raises(Unreachable):
        stage(cluster, attachment)
    check_untouched(cluster)


def test_a_stranger_that_comes_later_never_becomes_a_path(cluster: Cluster, attachment: Attachment) -> None:
    stage(cluster, attachment)
    machine = cluster.compute[NODE]
    serial = f"{address_of(attachment).instance}:{attachment.serial}"
    stranger = cluster.world.add_imposter(SAN, STRANGER, address_of(attachment), serial=serial, size_bytes=SIZE_BYTES)
    cluster.world.clock.sleep(61)
    for number in range(4):
        machine.write_file(STAGING, f"file{number}", b"written")
    assert machine.initiator.known[address_of(attachment)].macs == [cluster.storage.cards["san0"].mac]
    assert not stranger.target.device.has_data(0, SIZE_BYTES)
    assert cluster.world.harms == []


def test_the_danger_is_real(cluster: Cluster, attachment: Attachment) -> None:
    # Without rules the driver takes any target: the fakes would show interleaved writes, if anything let them.
    stage(cluster, attachment)
    machine = cluster.compute[NODE]
    machine.ingress.flush()
    serial = f"{address_of(attachment).instance}:{attachment.serial}"
    cluster.world.add_imposter(SAN, STRANGER, address_of(attachment), serial=serial, size_bytes=SIZE_BYTES)
    for number in range(4):
        machine.write_file(STAGING, f"file{number}", b"written")
    assert cluster.world.harms != []


def test_rules_that_somebody_flushed_stand_again_after_a_round(cluster: Cluster, attachment: Attachment) -> None:
    stage(cluster, attachment)
    machine = cluster.compute[NODE]
    pins = {interface: set(held) for interface, held in machine.ingress.pins.items()}
    machine.ingress.flush()
    cluster.attachers[NODE].tend()
    assert machine.ingress.pins == pins


def test_a_device_that_somebody_has_open_is_not_staged(cluster: Cluster, attachment: Attachment) -> None:
    machine = cluster.compute[NODE]
    machine.ingress.flush()
    machine.initiator.hear_all()
    path = f"/dev/etherd/{address_of(attachment)}"
    machine.open(path, "somebody")
    with pytest.raises(AoECsiError, match="open"):
        cluster.attachers[NODE].stage(attachment, STAGING, BlockUse(mode=MODE))
    machine.close(path, "somebody")
    cluster.attachers[NODE].stage(attachment, STAGING, BlockUse(mode=MODE))


def test_a_file_system_that_vanished_is_never_made_anew(cluster: Cluster, attachment: Attachment) -> None:
    stage(cluster, attachment)
    cluster.attachers[NODE].unstage(VOLUME, STAGING)
    cluster.engine.unpublish(VOLUME, NODE)
    device = cluster.storage.get_device(f"/dev/vg0/v-{VOLUME}")
    device.write_zeros(0, SIZE_BYTES)
    device.flush()
    again = cluster.engine.publish(VOLUME, cluster.identity(NODE), MODE, read_only=False, block=False)
    assert again.filesystem == "ext4"
    with pytest.raises(IdentityMismatch):
        stage(cluster, again)
    assert not device.has_data(0, SIZE_BYTES)
