"""Claims as volumes of ours, and the access modes they are published in."""

from dataclasses import replace

import pytest

from aoe_core.errors import Conflict, Invalid, Unsupported
from aoe_core.model import AccessMode
from aoe_core.resources.claims import Claim, PersistentVolume, mode_of, require_block, volume_of

CLAIM = Claim(
    namespace="team-a", name="data", uid="uid-1", resource_version="7", bound=True, volume_name="pvc-1", block=True
)
VOLUME = PersistentVolume(
    name="pvc-1", driver="aoe-csi.dev", volume_handle="pvc-1", claim_uid="uid-1", access_modes=("ReadWriteOnce",)
)


def test_a_bound_claim_of_ours_is_its_volume() -> None:
    require_block(CLAIM)
    assert volume_of(CLAIM, VOLUME) == "pvc-1"


def test_a_volume_of_another_claim_or_driver_is_refused() -> None:
    with pytest.raises(Conflict, match="belongs to another claim than claim team-a/data"):
        volume_of(CLAIM, replace(VOLUME, claim_uid="uid-2"))
    for other in (replace(VOLUME, driver="nfs"), replace(VOLUME, driver=""), replace(VOLUME, volume_handle="/no/id")):
        with pytest.raises(Invalid, match="use a claim of one of its StorageClasses"):
            volume_of(CLAIM, other)
    with pytest.raises(Invalid, match="volumeMode: Block"):
        require_block(replace(CLAIM, block=False))


@pytest.mark.parametrize(
    ("modes", "mode"),
    [
        (("ReadWriteOnce",), AccessMode.SINGLE_NODE_MULTI_WRITER),
        (("ReadWriteOncePod",), AccessMode.SINGLE_NODE_SINGLE_WRITER),
        (("ReadWriteMany",), AccessMode.MULTI_NODE_MULTI_WRITER),
        (("ReadWriteOnce", "ReadWriteMany"), AccessMode.MULTI_NODE_MULTI_WRITER),
        (("ReadWriteMany", "ReadOnlyMany", "ReadWriteOnce"), AccessMode.MULTI_NODE_MULTI_WRITER),
    ],
)
def test_a_volume_is_published_in_the_mode_in_which_the_attacher_publishes_it(
    modes: tuple[str, ...], mode: AccessMode
) -> None:
    for read_only in (False, True):
        assert mode_of(CLAIM, replace(VOLUME, access_modes=modes), read_only=read_only) is mode


def test_what_can_only_be_read_is_only_read() -> None:
    readers = replace(VOLUME, access_modes=("ReadOnlyMany",))
    assert mode_of(CLAIM, readers, read_only=True) is AccessMode.MULTI_NODE_READER_ONLY
    with pytest.raises(Invalid, match="say readOnly: true"):
        mode_of(CLAIM, readers, read_only=False)


@pytest.mark.parametrize("modes", [(), ("Whatever",), ("ReadOnlyMany", "ReadWriteOnce")])
def test_modes_that_csi_cannot_say_are_refused(modes: tuple[str, ...]) -> None:
    with pytest.raises(Unsupported, match="give it one"):
        mode_of(CLAIM, replace(VOLUME, access_modes=modes), read_only=True)
