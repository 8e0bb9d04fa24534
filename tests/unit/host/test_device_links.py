"""Stable links: replaced at once, passable by the emulator's user."""

import stat
import threading
from pathlib import Path

import pytest

from aoe_core.errors import CommandFailed
from aoe_core.host import device_links
from aoe_core.host.device_links import HostDeviceLinks


def test_a_link_leads_where_it_was_put_last(tmp_path: Path) -> None:
    links = HostDeviceLinks(tmp_path / "run")
    assert links.all() == {}
    links.put("web", "/dev/etherd/e1.2")
    links.put("web", "/dev/etherd/e1.3")
    links.put("db", "/dev/vg/v-db")
    assert links.all() == {"web": "/dev/etherd/e1.3", "db": "/dev/vg/v-db"}
    assert str(Path(links.path("web")).readlink()) == "/dev/etherd/e1.3"


def test_removing_takes_one_and_an_absent_one_is_removed(tmp_path: Path) -> None:
    links = HostDeviceLinks(tmp_path / "run")
    links.remove("web")
    links.put("web", "/dev/etherd/e1.2")
    links.put("db", "/dev/vg/v-db")
    links.remove("web")
    links.remove("web")
    assert links.all() == {"db": "/dev/vg/v-db"}


def test_a_write_that_was_cut_short_is_no_link_and_hinders_nobody(tmp_path: Path) -> None:
    links = HostDeviceLinks(tmp_path / "run")
    links.put("web", "/dev/etherd/e1.2")
    (tmp_path / "run/guests/disks/.web.new").symlink_to("/dev/etherd/e1.9")
    assert links.all() == {"web": "/dev/etherd/e1.2"}
    links.put("web", "/dev/etherd/e1.3")
    assert links.all() == {"web": "/dev/etherd/e1.3"}
    assert [path.name for path in (tmp_path / "run/guests/disks").iterdir()] == ["web"]


def test_anybody_may_pass_through_and_no_more(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    (run / "locks").mkdir(mode=0o700)
    HostDeviceLinks(run).put("web", "/dev/etherd/e1.2")
    modes = {name: stat.S_IMODE((run / name).stat().st_mode) for name in (".", "guests", "guests/disks", "locks")}
    assert modes["locks"] == 0o700
    assert modes["."] == 0o701
    assert all(modes[name] & stat.S_IXOTH and not modes[name] & stat.S_IROTH for name in ("guests", "guests/disks"))


def test_no_link_outlives_a_boot() -> None:
    assert HostDeviceLinks().path("web") == "/run/aoe-csi/guests/disks/web"


def test_only_block_devices_are_devices(tmp_path: Path) -> None:
    links = HostDeviceLinks(tmp_path / "run")
    (tmp_path / "image.raw").write_text("a file")
    for path in (str(tmp_path / "image.raw"), str(tmp_path / "absent"), "/dev/null", "", "with\0nul"):
        assert links.find_device(path) is None


def test_paths_begin_at_the_host_s_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr(device_links, "_device_number", looked.append)
    for root in (Path("/"), Path("/proc/1/root")):
        HostDeviceLinks(tmp_path, host_root=root).find_device("/srv/disk")
        HostDeviceLinks(tmp_path, host_root=root).find_device("")
    assert looked == ["/srv/disk", "", "/proc/1/root/srv/disk", ""]


def test_a_path_that_cannot_be_looked_at_holds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(device_links, "_LOOK_LIMIT_S", 0.1)
    monkeypatch.setattr(device_links, "_device_number", lambda _: released.wait(60))
    try:
        assert HostDeviceLinks(tmp_path / "run").find_device("/gone/image.raw") is None
    finally:
        released.set()


def test_what_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(CommandFailed, match="cannot be made"):
        HostDeviceLinks(tmp_path / "run").put("web", "/dev/etherd/e1.2")
