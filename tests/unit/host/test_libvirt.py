"""libvirt's errors as the project's, and a daemon that hangs. The bindings stand in for the real ones by name."""

import importlib.util
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from aoe_core.errors import (
    AoECsiError,
    Busy,
    CommandFailed,
    Conflict,
    InUse,
    NoSpace,
    NotFound,
    Unfinished,
    Unreachable,
    Unsupported,
)
from aoe_core.host.blocking import BlockingCalls
from aoe_core.host.contracts import Domain, DomainDisk
from aoe_core.host.libvirt import LibvirtHypervisor

UUID = "6e5b8f0e-7a4b-4d0c-9b8e-1f2a3b4c5d6e"
LIVE = "<domain><devices><disk><target dev='vda' bus='virtio'/><alias name='ua-a'/></disk></devices></domain>"
CONFIG = "<domain><devices/></domain>"
CODES = {
    # libvirt/virterror.h
    "VIR_ERR_INTERNAL_ERROR": 1,
    "VIR_ERR_NO_SUPPORT": 3,
    "VIR_ERR_OPERATION_FAILED": 9,
    "VIR_ERR_XML_ERROR": 27,
    "VIR_ERR_SYSTEM_ERROR": 38,
    "VIR_ERR_NO_DOMAIN": 42,
    "VIR_ERR_OPERATION_INVALID": 55,
    "VIR_ERR_CONFIG_UNSUPPORTED": 67,
    "VIR_ERR_OPERATION_TIMEOUT": 68,
    "VIR_ERR_ARGUMENT_UNSUPPORTED": 74,
    "VIR_ERR_OPERATION_UNSUPPORTED": 84,
    "VIR_ERR_RESOURCE_BUSY": 87,
    "VIR_ERR_DEVICE_MISSING": 99,
    "VIR_FROM_RPC": 7,
    "VIR_FROM_QEMU": 10,
    "VIR_FROM_REMOTE": 13,
    "VIR_DOMAIN_AFFECT_LIVE": 1,
    "VIR_DOMAIN_AFFECT_CONFIG": 2,
    "VIR_DOMAIN_XML_INACTIVE": 2,
    "VIR_DOMAIN_BLOCK_RESIZE_BYTES": 1,
    "VIR_DOMAIN_PAUSED": 3,
    "VIR_DOMAIN_PAUSED_MIGRATION": 2,
    "VIR_DOMAIN_PAUSED_STARTING_UP": 11,
}


class LibvirtError(Exception):
    def __init__(self, code: int, origin: int = 10, text: str = "as libvirt puts it") -> None:
        super().__init__(text)
        self.facts = (code, origin, text)

    def get_error_code(self) -> int:
        return self.facts[0]

    def get_error_domain(self) -> int:
        return self.facts[1]

    def get_error_message(self) -> str:
        return self.facts[2]


class Handle:
    """A domain as the bindings have it; `act` is called with each change and its arguments."""

    def __init__(self, act: Callable[..., object]) -> None:
        self.act = act

    def __getattr__(self, name: str) -> Callable[..., object]:
        return lambda *arguments: self.act(name, *arguments)

    def name(self) -> str:
        return "g1"

    def UUIDString(self) -> str:  # noqa: N802
        return UUID

    def isActive(self) -> int:  # noqa: N802
        return 1

    def hasManagedSaveImage(self) -> int:  # noqa: N802
        return int(not self.isActive())

    def isPersistent(self) -> int:  # noqa: N802
        return 1

    def state(self) -> list[int]:
        return [1, 1]  # running, booted

    def XMLDesc(self, flags: int) -> str:  # noqa: N802
        return CONFIG if flags else LIVE


class Connection:
    def __init__(self, api: ModuleType, handle: Handle) -> None:
        self.api = api
        self.handle = handle
        self.closed = False

    def lookupByUUIDString(self, uuid: str) -> Handle:  # noqa: N802
        return self._found(uuid == UUID)

    def lookupByName(self, name: str) -> Handle:  # noqa: N802
        return self._found(name == "g1")

    def listAllDomains(self) -> list[Handle]:  # noqa: N802
        return [self.handle, Handle(self.handle.act)]

    def close(self) -> None:
        self.closed = True

    def _found(self, found: bool) -> Handle:
        if not found:
            raise LibvirtError(42)
        return self.handle


@pytest.fixture
def api() -> Iterator[Any]:
    """Bindings with one domain."""
    module: Any = ModuleType("libvirt")
    vars(module).update(CODES, libvirtError=LibvirtError, registerErrorHandler=lambda *_: None, connections=[])
    module.handle = Handle(lambda *_: 0)

    def connect(_: str) -> Connection:
        connection = Connection(module, module.handle)
        module.connections.append(connection)
        return connection

    module.open = connect
    kept = sys.modules.get("libvirt")
    sys.modules["libvirt"] = module
    yield module
    del sys.modules["libvirt"]
    if kept is not None:
        sys.modules["libvirt"] = kept


@pytest.fixture
def hypervisor() -> LibvirtHypervisor:
    return LibvirtHypervisor(BlockingCalls(), "test:///here")


def raising(error: Exception) -> Callable[..., object]:
    def act(*_: object) -> object:
        raise error

    return act


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        ("VIR_ERR_NO_DOMAIN", "", NotFound),
        ("VIR_ERR_DEVICE_MISSING", "", NotFound),
        ("VIR_ERR_CONFIG_UNSUPPORTED", "non unique alias detected: ua-x", Conflict),
        ("VIR_ERR_XML_ERROR", "XML error: target 'vdb' duplicated for disk sources '/a' and '/b'", Conflict),
        ("VIR_ERR_OPERATION_INVALID", "domain is not running", InUse),
        ("VIR_ERR_RESOURCE_BUSY", "", InUse),
        ("VIR_ERR_OPERATION_TIMEOUT", "cannot acquire state change lock", Busy),
        ("VIR_ERR_OPERATION_UNSUPPORTED", "", Unsupported),
        ("VIR_ERR_OPERATION_FAILED", "Device x is already in the process of unplug", CommandFailed),
        ("VIR_ERR_INTERNAL_ERROR", "internal error: No more available PCI slots", NoSpace),
        ("VIR_ERR_INTERNAL_ERROR", "anything else", CommandFailed),
    ],
)
def test_an_error_is_told_by_its_code(
    api: Any, hypervisor: LibvirtHypervisor, code: str, text: str, expected: type[AoECsiError]
) -> None:
    api.handle.act = raising(LibvirtError(CODES[code], text=text))
    with pytest.raises(AoECsiError) as caught:
        hypervisor.attach_live(UUID, DomainDisk(target="vdb", bus="virtio", source="/dev/x"))
    assert type(caught.value) is expected
    assert text in str(caught.value)
    assert all(connection.closed for connection in api.connections)


def test_a_disk_that_is_not_there_is_told_from_one_that_stays(api: Any, hypervisor: LibvirtHypervisor) -> None:
    """libvirt 9.0 says "internal error" of both."""
    api.handle.act = raising(LibvirtError(1, text="no device found with alias"))
    with pytest.raises(NotFound):
        hypervisor.ask_to_detach(UUID, "ua-b")
    with pytest.raises(CommandFailed):
        hypervisor.ask_to_detach(UUID, "ua-a")
    with pytest.raises(NotFound):
        hypervisor.detach_config(UUID, "ua-a")


def test_a_daemon_that_is_not_there_is_unreachable_and_nothing_is_known(
    api: Any, hypervisor: LibvirtHypervisor
) -> None:
    api.open = raising(LibvirtError(38, origin=7, text="Failed to connect socket"))
    for call in (
        hypervisor.domains,
        lambda: hypervisor.get_domain("g1"),
        lambda: hypervisor.detach_config(UUID, "ua-x"),
    ):
        with pytest.raises(Unreachable, match="systemctl status libvirtd"):
            call()


def test_a_connection_that_breaks_leaves_a_change_unknown(api: Any, hypervisor: LibvirtHypervisor) -> None:
    api.handle.act = raising(LibvirtError(1, origin=7, text="client socket is closed"))
    with pytest.raises(Unfinished):
        hypervisor.detach_config(UUID, "ua-x")


def test_a_daemon_that_hangs_holds_nobody_for_ever(api: Any) -> None:
    released = threading.Event()
    api.handle.act = lambda name, *_: released.wait(60) if name == "detachDeviceAlias" else 0
    hypervisor = LibvirtHypervisor(BlockingCalls(), limit_s=0.2)
    try:
        with pytest.raises(Unfinished, match="did not answer within"):
            hypervisor.ask_to_detach(UUID, "ua-x")
        # One stuck thread, not one for each try.
        stuck = [one for one in threading.enumerate() if one.name.startswith("blocking libvirt")]
        with pytest.raises(Unfinished, match="did not answer within"):
            hypervisor.ask_to_detach(UUID, "ua-x")
        assert [one for one in threading.enumerate() if one.name.startswith("blocking libvirt")] == stuck
        # An emulator that waits for its storage holds up a change of its own guest, and nobody else.
        assert hypervisor.get_domain("g1").uuid == UUID
        with pytest.raises(NotFound):
            hypervisor.detach_config(UUID.replace("6", "7"), "ua-x")
    finally:
        released.set()


def test_a_question_that_gets_no_answer_proves_nothing(api: Any) -> None:
    released = threading.Event()
    api.open = lambda *_: released.wait(60)
    hypervisor = LibvirtHypervisor(BlockingCalls(), limit_s=0.2)
    try:
        for call in (hypervisor.domains, lambda: hypervisor.get_domain("g1")):
            with pytest.raises(Unreachable, match="restart libvirtd"):
                call()
    finally:
        released.set()


def test_a_domain_is_found_by_uuid_and_by_name(api: Any, hypervisor: LibvirtHypervisor) -> None:
    expected = Domain(
        name="g1",
        uuid=UUID,
        running=True,
        persistent=True,
        live=(DomainDisk(target="vda", bus="virtio", alias="ua-a"),),
        config=(),
    )
    assert hypervisor.get_domain("g1") == expected
    assert hypervisor.get_domain(UUID.upper()) == expected
    for absent in ("g2", UUID.replace("6", "7")):
        with pytest.raises(NotFound):
            hypervisor.get_domain(absent)
    assert api.connections


def test_a_domain_that_sleeps_is_told_from_one_that_is_off(api: Any, hypervisor: LibvirtHypervisor) -> None:
    assert not hypervisor.get_domain("g1").saved
    api.handle.isActive = lambda: 0
    assert hypervisor.get_domain("g1").saved


@pytest.mark.parametrize(
    ("state", "arriving"), [([3, 11], True), ([3, 2], True), ([3, 1], False), ([3, 5], False), ([1, 2], False)],
    ids=["its emulator starts", "paused for a migration", "paused by a person", "paused by an I/O error", "came"],
)  # fmt: skip
def test_a_domain_that_is_still_coming_is_told_from_one_that_came(
    api: Any, hypervisor: LibvirtHypervisor, state: list[int], arriving: bool
) -> None:
    api.handle.state = lambda: state
    assert hypervisor.get_domain("g1").arriving is arriving


class Changing(Handle):
    """A domain that starts or ends with each question for its XML, so many times."""

    def __init__(self, changes: int, *, running: bool) -> None:
        super().__init__(lambda *_: 0)
        self.changes = changes
        self.running = running
        self.saved = False

    def isActive(self) -> int:  # noqa: N802
        return int(self.running)

    def hasManagedSaveImage(self) -> int:  # noqa: N802
        return int(self.saved)

    def XMLDesc(self, flags: int) -> str:  # noqa: N802
        if self.changes:
            self.changes -= 1
            self.running = not self.running
        return CONFIG if flags or not self.running else LIVE


def test_a_domain_that_ends_under_a_look_is_looked_at_again(api: Any, hypervisor: LibvirtHypervisor) -> None:
    api.handle = Changing(1, running=True)
    seen = hypervisor.get_domain("g1")
    assert (seen.running, seen.live) == (False, ())


def test_a_domain_that_starts_under_a_look_is_looked_at_again(api: Any, hypervisor: LibvirtHypervisor) -> None:
    api.handle = Changing(1, running=False)
    seen = hypervisor.get_domain("g1")
    assert (seen.running, [disk.target for disk in seen.live]) == (True, ["vda"])


def test_a_domain_that_changes_all_the_time_is_not_guessed_at(api: Any, hypervisor: LibvirtHypervisor) -> None:
    states = itertools.cycle((1, 0))
    api.handle.isActive = lambda: next(states)
    api.handle.hasManagedSaveImage = lambda: 0
    with pytest.raises(Busy, match="starts and ends all the time"):
        hypervisor.get_domain("g1")


def test_a_memory_on_disk_is_told_of_whether_the_domain_runs_or_not(api: Any, hypervisor: LibvirtHypervisor) -> None:
    for running in (True, False):
        api.handle = Changing(0, running=running)
        api.handle.saved = True
        assert hypervisor.get_domain("g1").saved


def test_a_domain_that_goes_away_while_all_are_listed_is_not_listed(api: Any, hypervisor: LibvirtHypervisor) -> None:
    class Gone(Handle):
        def XMLDesc(self, flags: int) -> str:  # noqa: N802
            raise LibvirtError(42, text=f"no domain ({flags})")

    assert len(hypervisor.domains()) == 2
    api.handle = Gone(api.handle.act)
    assert len(hypervisor.domains()) == 1


def test_what_is_asked_of_libvirt(api: Any, hypervisor: LibvirtHypervisor) -> None:
    asked: list[tuple[object, ...]] = []
    api.handle.act = lambda *arguments: asked.append(arguments)
    disk = DomainDisk(target="vdb", bus="virtio", source="/dev/x")
    hypervisor.attach_config(UUID, disk)
    hypervisor.attach_live(UUID, disk)
    hypervisor.detach_config(UUID, "ua-x")
    hypervisor.ask_to_detach(UUID, "ua-x")
    hypervisor.resize(UUID, "vdb", 4096)
    assert [one[0] for one in asked] == [
        "attachDeviceFlags",
        "attachDeviceFlags",
        "detachDeviceAlias",
        "detachDeviceAlias",
        "blockResize",
    ]
    assert [one[-1] for one in asked[:4]] == [2, 1, 2, 1]
    assert asked[4][1:] == ("vdb", 4096, 1)


@pytest.mark.skipif(importlib.util.find_spec("libvirt") is not None, reason="this machine has the bindings")
def test_without_the_bindings_the_package_to_install_is_named(hypervisor: LibvirtHypervisor) -> None:
    with pytest.raises(CommandFailed, match="apt install python3-libvirt"):
        hypervisor.domains()
