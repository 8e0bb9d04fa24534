"""Volumes as disks of real libvirt guests: `aoe-csi guest` on a hypervisor machine, and what the guest's kernel sees.

One guest runs for all tests, since it takes minutes to boot where it is emulated twice. It has no system, so nothing in
it mounts or caches: what it says it wrote is on stable storage.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aoe_core import model
from aoe_core.model import VolumeId
from aoe_lab import Lab, LabError, Topology
from aoe_lab.cachedir import CHECKOUT
from aoe_lab.guest import Guest, devices_on, records_on
from aoe_lab.lab import default_name
from aoe_lab.patience import deadsecs
from aoe_lab.standalone import OUTLASTING, SOCKET, THICK, Standalone, Workload, capability

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aoe_lab import Finished, Machine
    from aoe_lab.evidence import Evidence

HYPERVISOR = "hypervisor1"
STORAGE_SOCKET = "/run/storage1.sock"
"""Not below /run/aoe-csi: the way there is made again after a boot before that directory is."""
SIZE_BYTES, GROWN_BYTES = 64 << 20, 96 << 20
SETTLED_S = 60.0
ROUNDS = 20
SOON_DEAD_S = 20
_numbers = itertools.count(1)
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Machines of their own: the session's have no hypervisor."""
    with Lab.start(Topology(storage=1, compute=0, hypervisors=1), name=f"{default_name()}-guests") as started:
        yield started


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Iterator[Standalone]:
    made = Standalone(lab, OUTLASTING)
    made.install()
    unit = "aoe-csi-guests.service"
    host = lab.machine(HYPERVISOR)
    host.run(f"cat > /etc/systemd/system/{unit}", stdin=(CHECKOUT / "deploy" / "systemd" / unit).read_text())
    host.run(f"systemctl daemon-reload && systemctl enable -q {unit} && sync")
    host.forward_to(lab.machine("storage1").forward_from(SOCKET), STORAGE_SOCKET)
    yield made
    made.close()


@pytest.fixture(scope="module")
def running(cluster: Standalone) -> Guest:
    """The guest that serves every test."""
    guest = Guest.define(cluster.lab.machine(HYPERVISOR), "g1")
    guest.start()
    return guest


@pytest.fixture
def host(cluster: Standalone) -> Machine:
    return cluster.lab.machine(HYPERVISOR)


@pytest.fixture
def volume(cluster: Standalone) -> Iterator[Callable[[], Workload]]:
    """Make volumes that are deleted again."""
    made: list[Workload] = []

    def make() -> Workload:
        name = f"guest-{next(_numbers)}"
        one = Workload(cluster=cluster, name=name, pool=THICK, size_bytes=SIZE_BYTES, capability=capability(block=True))
        one.create()
        made.append(one)
        return one

    yield make
    with contextlib.ExitStack() as each:
        for one in made:
            each.callback(one.delete)


@pytest.fixture
def guest(running: Guest, host: Machine, volume: Callable[[], Workload]) -> Iterator[Guest]:
    """The guest, with nothing of a test before."""
    del volume  # What it made is deleted after the guest has given it back.
    running.revive()
    yield running
    for row in listed(host):
        command(host, "detach", row["domain"], row["volume"], check=False)


def command(host: Machine, act: str, *words: str, check: bool = True, timeout_s: float = 400) -> Finished:
    """Run `aoe-csi guest` on the hypervisor."""
    more = ["--controller", f"unix://{STORAGE_SOCKET}"] if act in ("attach", "prepare", "detach", "resize") else []
    return host.run(["aoe-csi", "guest", act, *words, *more], check=check, timeout_s=timeout_s)


def listed(host: Machine) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads(command(host, "list", "--json", check=False).stdout)["guests"]
    return rows


def serial_of(volume: Workload) -> str:
    return model.serial_of(VolumeId(volume.volume_id))


def assert_nothing_left(cluster: Standalone, host: Machine, guest: Guest, volume: Workload) -> None:
    """Prove that a detach left no device, no grant, no record, no link and no XML."""
    serial = serial_of(volume)
    assert guest.find_disk(serial) is None
    assert serial not in guest.xml()
    assert serial not in guest.xml(inactive=True)
    assert records_on(host) == ""
    grants = json.loads(cluster.storage["storage1"].machine.run(["aoe-csi", "status", "--json"], check=False).stdout)[
        "grants"
    ]
    assert [grant for grant in grants if grant["volume"] == volume.volume_id] == []
    await_no_device(host, 2 * SETTLED_S)


def await_no_device(host: Machine, timeout_s: float) -> None:
    # The driver forgets a silent device at the sweeper's next round.
    await_(lambda: devices_on(host) == "", f"the driver of {host.name} keeps the device", timeout_s)


def test_a_running_guest_gets_a_volume_writes_and_gives_it_back(
    cluster: Standalone, host: Machine, guest: Guest, volume: Callable[[], Workload], evidence: Evidence
) -> None:
    one = volume()
    began = time.monotonic()
    said = command(host, "attach", guest.name, one.volume_id).stdout
    assert f"is disk vdb of domain {guest.name}" in said
    disk = guest.await_disk(serial_of(one))
    took_s = time.monotonic() - began
    assert (disk.size_bytes, disk.read_only) == (SIZE_BYTES, False)
    assert guest.write(disk.name, "first", 3)
    # On the storage machine's own device, past every cache of the hypervisor.
    block = cluster.storage["storage1"].machine.run(
        f"dd if=/dev/data/v-{one.volume_id} bs=4096 skip=3 count=1 iflag=direct status=none"
    )
    assert block.stdout.startswith("first 3\nfirst 3\n")
    (row,) = listed(host)
    assert (row["state"], row["live"], row["config"]) == ("attached", "yes", "yes")
    command(host, "attach", guest.name, one.volume_id)
    began = time.monotonic()
    command(host, "detach", guest.name, one.volume_id)
    detached_s = time.monotonic() - began
    assert_nothing_left(cluster, host, guest, one)
    command(host, "detach", guest.name, one.volume_id)
    evidence(f"attached and seen by the guest after {took_s:.1f} s, detached after {detached_s:.1f} s, nothing left")


def test_what_a_guest_wrote_is_there_when_it_has_the_volume_again(
    host: Machine, guest: Guest, volume: Callable[[], Workload]
) -> None:
    one = volume()
    command(host, "attach", guest.name, one.volume_id)
    assert guest.write(guest.await_disk(serial_of(one)).name, "kept", 7)
    command(host, "detach", guest.name, one.volume_id)
    command(host, "attach", guest.name, one.volume_id)
    disk = guest.await_disk(serial_of(one))
    assert guest.holds(disk.name, "kept", 7)
    assert not guest.holds(disk.name, "kept", 8), "the guest cannot tell one block from another"


def test_a_read_only_disk_is_one_for_the_guest_s_kernel(
    host: Machine, guest: Guest, volume: Callable[[], Workload]
) -> None:
    one = volume()
    command(host, "attach", guest.name, one.volume_id, "--read-only")
    disk = guest.await_disk(serial_of(one))
    assert disk.read_only
    assert not guest.write(disk.name, "refused", 0)


def test_rounds_leak_nothing(
    cluster: Standalone, host: Machine, guest: Guest, volume: Callable[[], Workload], evidence: Evidence
) -> None:
    one = volume()
    for _ in range(ROUNDS):
        command(host, "attach", guest.name, one.volume_id)
        guest.await_disk(serial_of(one))
        command(host, "detach", guest.name, one.volume_id)
        assert_nothing_left(cluster, host, guest, one)
    # The node server's rounds take locks as well.
    await_(lambda: host.run("ls /run/aoe-csi/locks").stdout == "", timeout_s=SETTLED_S)
    evidence(f"{ROUNDS} rounds of attach and detach: no device, grant, record, link, XML or lock left")


def test_growth_is_seen_inside_the_guest(
    host: Machine, guest: Guest, volume: Callable[[], Workload], evidence: Evidence
) -> None:
    one = volume()
    command(host, "attach", guest.name, one.volume_id)
    disk = guest.await_disk(serial_of(one))
    last = GROWN_BYTES // 4096 - 1
    assert not guest.write(disk.name, "beyond", last)
    command(host, "resize", guest.name, one.volume_id, str(GROWN_BYTES))
    guest.await_disk(serial_of(one), size_bytes=GROWN_BYTES)
    assert guest.write(disk.name, "beyond", last)
    assert guest.holds(disk.name, "beyond", last)
    evidence(f"grown from {SIZE_BYTES} to {GROWN_BYTES} bytes under a running guest, which wrote the new end")


def test_a_storage_power_cut_under_a_guest_s_writes_stalls_it_and_loses_nothing(
    cluster: Standalone, host: Machine, guest: Guest, volume: Callable[[], Workload], evidence: Evidence
) -> None:
    one, storage = volume(), cluster.storage["storage1"]
    command(host, "attach", guest.name, one.volume_id)
    disk = guest.await_disk(serial_of(one))
    guest.start_writer(disk.name, "cut")
    guest.await_acknowledged(10)
    storage.machine.power_cut()
    before = guest.stalled_at()
    storage.boot()
    guest.await_acknowledged(before + 10)
    assert guest.state() == "running"
    last = guest.stop_writer()
    assert guest.wrong(disk.name, "cut", last) == 0
    assert guest.wrong(disk.name, "another-salt", 3) == 4, "the check finds nothing wrong with anything"
    evidence(f"storage power cut under a guest's writes: {last + 1} acknowledged blocks, none lost, no I/O error")


def test_a_guest_whose_storage_is_away_for_longer_is_paused_and_goes_on_where_it_was(
    cluster: Standalone, host: Machine, guest: Guest, volume: Callable[[], Workload], evidence: Evidence
) -> None:
    """As docs/guests.md has it: paused at the first failed request, the device revived, then `virsh resume`."""
    one, storage = volume(), cluster.storage["storage1"]
    command(host, "attach", guest.name, one.volume_id)
    disk = guest.await_disk(serial_of(one))
    with deadsecs(host, SOON_DEAD_S):
        guest.start_writer(disk.name, "paused")
        guest.await_acknowledged(5)
        storage.machine.power_cut()
        await_(lambda: guest.state() == "paused", "the guest is not paused")
        assert "I/O error" in host.run(["virsh", "domstate", guest.name, "--reason"]).stdout
        storage.boot()
        state = f"cat '/sys/block/etherd!{Path(listed(host)[0]['device']).name}/state'"
        await_(lambda: host.run(state).stdout.startswith("up"), "the device is not revived", 2 * SETTLED_S)
        host.run(["virsh", "resume", guest.name])
        before = guest.acknowledged()
        guest.await_acknowledged(before + 5)
    last = guest.stop_writer()
    assert guest.wrong(disk.name, "paused", last) == 0
    evidence(
        f"storage away for longer than aoe_deadsecs ({SOON_DEAD_S} s here): the guest was paused by the I/O error,"
        f" resumed, and wrote on: {last + 1} acknowledged blocks, none lost"
    )


def test_a_disk_may_be_one_of_scsi_s(
    cluster: Standalone, host: Machine, guest: Guest, volume: Callable[[], Workload], evidence: Evidence
) -> None:
    one = volume()
    command(host, "attach", guest.name, one.volume_id, "--bus", "scsi")
    disk = guest.await_disk(serial_of(one), size_bytes=SIZE_BYTES)
    assert disk.name.startswith("sd")
    assert guest.write(disk.name, "scsi", 0)
    assert guest.holds(disk.name, "scsi", 0)
    command(host, "detach", guest.name, one.volume_id)
    assert_nothing_left(cluster, host, guest, one)
    evidence(f"with --bus scsi the guest has it as {disk.name}, with our serial")


def await_(holds: Callable[[], bool], what: str = "", timeout_s: float = 300.0) -> None:
    until = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until, what
        time.sleep(1)


def test_two_guests_cannot_have_one_volume(host: Machine, guest: Guest, volume: Callable[[], Workload]) -> None:
    other = Guest.define(host, "g2")
    try:
        one = volume()
        command(host, "attach", guest.name, one.volume_id)
        refused = command(host, "attach", other.name, one.volume_id, check=False)
        assert refused.code == 2
        assert "detach it there" in refused.stderr
        assert serial_of(one) not in other.xml(inactive=True)
    finally:
        other.undefine()


def test_a_guest_without_a_free_slot_is_told_of(host: Machine, guest: Guest, volume: Callable[[], Workload]) -> None:
    assert guest.state() == "running"
    full = Guest.define(host, "full", slots=0)
    one = volume()
    try:
        host.run(["virsh", "start", full.name], timeout_s=120)  # It need not have booted.
        refused = command(host, "attach", full.name, one.volume_id, check=False)
        assert refused.code == 2
        assert "pcie-root-port" in refused.stderr
        full.destroy()
        command(host, "detach", full.name, one.volume_id)
    finally:
        full.undefine()


def test_a_domain_keeps_its_disk_under_another_name_and_lets_go_of_it_when_it_is_undefined(
    cluster: Standalone, host: Machine, guest: Guest, volume: Callable[[], Workload]
) -> None:
    one, off = volume(), Guest.define(host, "off")
    command(host, "attach", off.name, one.volume_id)
    host.run(["virsh", "domrename", off.name, "renamed"])
    renamed = Guest(machine=host, name="renamed")
    try:
        assert [(row["domain"], row["state"]) for row in listed(host)] == [(renamed.name, "attached")]
        command(host, "detach", renamed.name, one.volume_id)
        assert_nothing_left(cluster, host, guest, one)
        assert serial_of(one) not in renamed.xml(inactive=True)
        command(host, "attach", renamed.name, one.volume_id)
    finally:
        renamed.undefine()
    assert [row["state"] for row in listed(host)] == ["domain gone"]
    command(host, "detach", renamed.name, one.volume_id)
    assert_nothing_left(cluster, host, guest, one)


def test_a_guest_that_does_not_listen_keeps_its_disk(
    cluster: Standalone, host: Machine, guest: Guest, volume: Callable[[], Workload]
) -> None:
    one = volume()
    command(host, "attach", guest.name, one.volume_id)
    assert guest.write(guest.await_disk(serial_of(one)).name, "kept", 0)
    host.run(["virsh", "suspend", guest.name])
    try:
        refused = command(host, "detach", guest.name, one.volume_id, "--wait", "25", check=False)
        assert refused.code == 2
        assert "shut the guest down" in refused.stderr
        assert listed(host)[0]["state"] == "ending"
        assert devices_on(host)
    finally:
        host.run(["virsh", "resume", guest.name])
    command(host, "detach", guest.name, one.volume_id)
    assert_nothing_left(cluster, host, guest, one)


def test_a_host_that_loses_power_has_its_devices_back_before_its_guests_start(
    cluster: Standalone, host: Machine, guest: Guest, volume: Callable[[], Workload], evidence: Evidence
) -> None:
    """Control: without the unit's device libvirt does not start the guest."""
    one = volume()
    command(host, "attach", guest.name, one.volume_id)
    assert guest.write(guest.await_disk(serial_of(one)).name, "before", 0)
    host.run(["virsh", "autostart", guest.name])
    try:
        host.run("sync; systemctl disable -q aoe-csi-guests.service; sync")
        _cut_and_boot(cluster, host)
        assert guest.state() == "shut off", "a guest whose device is missing has started"
        host.run("systemctl enable -q aoe-csi-guests.service; sync")
        _cut_and_boot(cluster, host)
        guest.await_ready()
        disk = guest.await_disk(serial_of(one))
        assert guest.holds(disk.name, "before", 0)
    finally:
        host.run(["virsh", "autostart", "--disable", guest.name])
    evidence("hypervisor's power cut: its guest came up by itself with the volume and what it had written")


def _cut_and_boot(cluster: Standalone, host: Machine) -> None:
    host.power_cut()
    cluster.compute[HYPERVISOR].boot(300)
    await_libvirt(host)
    time.sleep(10)


def await_libvirt(host: Machine) -> None:
    """Wait until libvirt answers: it starts its guests when it starts, and a question starts it. Raises: LabError with
    what it logged."""
    until = time.monotonic() + 300
    while host.run(["virsh", "list", "--all"], check=False, timeout_s=300).code != 0:
        if time.monotonic() > until:
            raise LabError(host.run("journalctl --no-pager -n 40 -u libvirtd").stdout)
        time.sleep(2)
