"""What a storage node does about a spec that is older than one it has seen."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from aoe_core.errors import CommandFailed, Conflict
from aoe_core.host.files import DurableFiles
from aoe_core.resources.fields import ObjectMeta
from aoe_core.resources.volume import AoEVolume, AoEVolumeSpec
from aoe_operator.seen import FOLLOW, Seen


def volume(generation: int, size: str = "1Gi", uid: str = "u", follow: str = "", revision: int = 0) -> AoEVolume:
    annotations = {FOLLOW: follow} if follow else {}
    metadata = ObjectMeta(
        name="v", uid=uid, generation=generation, annotations=annotations, resource_version=str(revision)
    )
    return AoEVolume(metadata=metadata, spec=AoEVolumeSpec(size=size, pool="thin", node="storage1"))


def seen(place: Path) -> Seen:
    return Seen(DurableFiles(place))


def test_what_grows_newer_is_followed_by_each_process(tmp_path: Path) -> None:
    seen(tmp_path).require_current(volume(1))
    seen(tmp_path).require_current(volume(1))
    seen(tmp_path).require_current(volume(4, size="2Gi"))


def test_a_restored_spec_that_was_changed_since_is_told_by_the_api_server_s_revision(tmp_path: Path) -> None:
    seen(tmp_path).require_current(volume(4, size="2Gi", revision=900))
    # The same spec is the same, whatever else was written into the resource.
    seen(tmp_path).require_current(volume(4, size="2Gi", revision=950))
    with pytest.raises(Conflict, match="older than one"):
        seen(tmp_path).require_current(volume(7, size="3Gi", revision=850))
    seen(tmp_path).require_current(volume(7, size="3Gi", revision=850, follow="4"))
    seen(tmp_path).require_current(volume(8, size="4Gi", revision=851))


@pytest.mark.parametrize("older", [volume(3), volume(4, size="3Gi")], ids=["an-older-one", "another-of-the-same-age"])
def test_an_older_spec_and_what_grows_out_of_it_is_held_until_somebody_says_so(
    tmp_path: Path, older: AoEVolume
) -> None:
    seen(tmp_path).require_current(volume(4, size="2Gi"))
    with pytest.raises(Conflict, match=f"annotate --overwrite aoevolume v {FOLLOW}=4"):
        seen(tmp_path).require_current(older)
    with pytest.raises(Conflict):
        seen(tmp_path).require_current(volume(9))
    with pytest.raises(Conflict):
        seen(tmp_path).require_current(volume(9, follow="3"))
    seen(tmp_path).require_current(volume(9, follow="4"))
    seen(tmp_path).require_current(volume(10))


def test_one_made_anew_under_the_same_name_is_another(tmp_path: Path) -> None:
    seen(tmp_path).require_current(volume(4, revision=800))
    seen(tmp_path).require_current(volume(1, uid="another", revision=900))


def test_the_one_that_had_the_name_before_is_not_followed_out_of_a_backup(tmp_path: Path) -> None:
    """Deleted and made anew since the backup: the old one has another uid, and an older revision."""
    seen(tmp_path).require_current(volume(1, uid="anew", revision=900))
    with pytest.raises(Conflict, match="older than one"):
        seen(tmp_path).require_current(volume(4, revision=800))
    with pytest.raises(Conflict):
        seen(tmp_path).require_current(volume(5, revision=950))
    seen(tmp_path).require_current(volume(5, revision=950, follow="1"))


def test_what_is_forgotten_may_come_again(tmp_path: Path) -> None:
    kept = seen(tmp_path)
    kept.require_current(volume(4))
    kept.forget("v")
    kept.forget("v")
    kept.require_current(volume(1))
    seen(tmp_path).require_current(volume(1))


def test_a_damaged_record_holds_its_own_volume_alone(tmp_path: Path) -> None:
    (tmp_path / "v").write_text("{")
    with pytest.raises(CommandFailed, match="/seen/v if its resource is of today"):
        seen(tmp_path).require_current(volume(4))
    other = AoEVolume(metadata=ObjectMeta(name="w", uid="w", generation=1), spec=volume(4).spec)
    seen(tmp_path).require_current(other)


class Slow(DurableFiles):
    """Files whose first reader is held up until others have come."""

    def __init__(self, directory: Path, crowd: threading.Barrier) -> None:
        super().__init__(directory)
        self._crowd = crowd

    def read_all(self) -> dict[str, str]:
        # Nobody else gets here while it is read, so nobody else comes to the barrier, and it breaks.
        with suppress(threading.BrokenBarrierError):
            self._crowd.wait(0.5)
        return super().read_all()


def test_who_comes_while_the_records_are_read_waits_for_them(tmp_path: Path) -> None:
    seen(tmp_path).require_current(volume(4, size="2Gi"))
    crowd = threading.Barrier(2)
    fresh = Seen(Slow(tmp_path, crowd))

    def is_held(_: int) -> bool:
        try:
            fresh.require_current(volume(3))
        except Conflict:
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(is_held, range(8)))
    assert seen_generation(tmp_path) == 4


def seen_generation(place: Path) -> int:
    return int(json.loads(DurableFiles(place).read_all()["v"])["generation"])
