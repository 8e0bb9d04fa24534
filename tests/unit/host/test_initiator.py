import errno
from pathlib import Path

import pytest

from aoe_core.errors import AoECsiError, Busy, CommandFailed, NotFound, Unreachable
from aoe_core.host.blocking import BlockingCalls
from aoe_core.host.contracts import AoEDevice
from aoe_core.host.initiator import LinuxInitiator, parse_targets
from aoe_core.host.openers import HostPaths
from aoe_core.host.runner import HostRunner
from aoe_core.model import Address, Mac

ADDRESS = Address(10, 3)
# aoe_debugfs_show of Linux 6.1, with two targets.
TARGETS = """rttavg: 2 rttdev: 1
nskbpool: 0
kicked: 0
maxbcnt: 8704
ref: 0
falloc: 4
ffree: 000000008f1f3a33
525400000115:0:16:16
\tssthresh:8
\ttaint:0
\tr:0
\tw:0
\tens4
falloc: 1
ffree: 0000000000000000
525400000116:1:16:16
\tssthresh:8
\ttaint:2
\tr:0
\tw:0
\tens4,ens5
"""


class Kernel:
    """Files as the driver shows them."""

    def __init__(self, root: Path) -> None:
        self.paths = HostPaths(proc=root / "proc", sys=root / "sys", dev=root / "dev")
        for directory in (self.paths.proc, self.paths.sys / "block", self.paths.dev / "etherd"):
            directory.mkdir(parents=True)
        self.initiator = LinuxInitiator(HostRunner(), BlockingCalls(), self.paths)

    def show(self, name: str, *, state: str, sectors: int, netif: str = "ens4", targets: str | None = TARGETS) -> None:
        directory = self.paths.sys / "block" / f"etherd!{name}"
        directory.mkdir(exist_ok=True)
        for file, text in (("state", state), ("size", str(sectors)), ("netif", netif), ("dev", "152:16")):
            (directory / file).write_text(text + "\n")
        if targets is not None:
            debug = self.paths.sys / "kernel/debug/aoe"
            debug.mkdir(parents=True, exist_ok=True)
            (debug / name).write_text(targets)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_every_target_is_read_from_debugfs() -> None:
    assert parse_targets(TARGETS) == (Mac("52:54:00:00:01:15"), Mac("52:54:00:00:01:16"))
    assert parse_targets("") == ()


def test_devices_are_read_without_being_opened(kernel: Kernel) -> None:
    kernel.show("e10.3", state="up", sectors=2048)
    kernel.show("e2.20", state="down,closewait", sectors=0, netif="none", targets="ref: 0\n")
    kernel.show("e2.3", state="down", sectors=0, targets="")
    (kernel.paths.sys / "block/vda").mkdir()
    assert kernel.initiator.devices() == (
        AoEDevice(
            address=Address(2, 3),
            up=False,
            closewait=False,
            size_bytes=0,
            interface="ens4",
            target_macs=(),
            open_count=0,
        ),
        AoEDevice(
            address=Address(2, 20), up=False, closewait=True, size_bytes=0, interface="", target_macs=(), open_count=1
        ),
        AoEDevice(
            address=ADDRESS,
            up=True,
            closewait=False,
            size_bytes=1048576,
            interface="ens4",
            target_macs=(Mac("52:54:00:00:01:15"), Mac("52:54:00:00:01:16")),
            open_count=None,
        ),
    )


def test_targets_that_are_not_shown_are_not_taken_for_none(kernel: Kernel) -> None:
    kernel.show("e10.3", state="up", sectors=2048, targets=None)
    with pytest.raises(CommandFailed, match="debugfs"):
        kernel.initiator.devices()


def test_a_device_that_is_down_is_in_use_when_the_driver_says_closewait(kernel: Kernel) -> None:
    assert not kernel.initiator.in_use(ADDRESS)
    for state, in_use in (("down", False), ("down,closewait", True), ("down,kickme", True)):
        kernel.show("e10.3", state=state, sectors=0)
        assert kernel.initiator.in_use(ADDRESS) == in_use, state


def test_what_cannot_be_opened_is_not_said_to_be_free(kernel: Kernel) -> None:
    kernel.show("e10.3", state="up", sectors=2048)
    with pytest.raises(AoECsiError):
        kernel.initiator.in_use(ADDRESS)


def test_a_device_that_goes_down_while_it_is_looked_at_is_looked_at_again(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.show("e10.3", state="up", sectors=2048)

    def refuse(*_: object) -> int:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr("aoe_core.host.openers.os.open", refuse)
    with pytest.raises(Busy, match="goes down just now"):
        kernel.initiator.in_use(ADDRESS)


def test_only_a_device_that_is_up_identifies_itself(kernel: Kernel) -> None:
    with pytest.raises(NotFound):
        kernel.initiator.identify(ADDRESS)
    kernel.show("e10.3", state="down,closewait", sectors=0)
    with pytest.raises(Unreachable):
        kernel.initiator.identify(ADDRESS)


def test_a_control_file_gets_exactly_one_name(kernel: Kernel) -> None:
    for name in ("discover", "revalidate", "flush"):
        (kernel.paths.dev / "etherd" / name).touch()
    kernel.initiator.discover()
    kernel.initiator.revalidate(Address(2, 1))
    kernel.initiator.flush(Address(2, 1))
    written = {path.name: path.read_bytes() for path in (kernel.paths.dev / "etherd").iterdir()}
    # The driver compares as many bytes as it is given: without its NUL e2.1 would flush e2.10 too.
    assert written == {"discover": b"\n", "revalidate": b"e2.1\n", "flush": b"e2.1\0"}


def test_without_the_module_nothing_is_written_into_dev(kernel: Kernel) -> None:
    with pytest.raises(CommandFailed):
        kernel.initiator.flush(ADDRESS)
    assert list((kernel.paths.dev / "etherd").iterdir()) == []
    with pytest.raises(NotFound):
        kernel.initiator.deadsecs()
