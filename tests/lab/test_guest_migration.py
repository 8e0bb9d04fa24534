"""A running libvirt guest moves from one hypervisor machine to another, its disk under verified writes; or does not."""

from __future__ import annotations

import re
import shlex
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from aoe_lab import Lab, LabError, Topology
from aoe_lab.guest import Guest, let_move, records_on
from aoe_lab.lab import default_name
from aoe_lab.standalone import OUTLASTING, SOCKET, THICK, Standalone, Workload, capability

from .test_guests import STORAGE_SOCKET, await_, await_libvirt, await_no_device, command, listed, serial_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aoe_lab import Machine
    from aoe_lab.evidence import Evidence
    from aoe_lab.guest import SeenDisk
    from aoe_lab.remote_process import RemoteProcess

SIZE_BYTES = 64 << 20
FORGOTTEN_S = 300.0
SLOW_MIB_PER_S = 1
"""A migration at this pace takes minutes, and can be called off in the middle."""
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.start(Topology(storage=1, compute=0, hypervisors=2), name=f"{default_name()}-move") as started:
        yield started


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Iterator[Standalone]:
    made = Standalone(lab, OUTLASTING)
    made.install()
    hosts = [lab.machine(name) for name in ("hypervisor1", "hypervisor2")]
    for host in hosts:
        host.forward_to(lab.machine("storage1").forward_from(SOCKET), STORAGE_SOCKET)
    let_move(*hosts)
    yield made
    made.close()


@pytest.fixture(scope="module")
def hosts(cluster: Standalone) -> tuple[Machine, Machine]:
    """Where the guest is at first, and where it is to go."""
    return cluster.lab.machine("hypervisor1"), cluster.lab.machine("hypervisor2")


@pytest.fixture(scope="module")
def volume(cluster: Standalone) -> Iterator[Workload]:
    one = Workload(cluster=cluster, name="moves", pool=THICK, size_bytes=SIZE_BYTES, capability=capability(block=True))
    one.create()
    yield one
    one.delete()


@pytest.fixture(scope="module")
def guest(hosts: tuple[Machine, Machine]) -> Guest:
    made = Guest.define(hosts[0], "g1")
    made.start()
    return made


@pytest.fixture(autouse=True)
def _as_before(guest: Guest, hosts: tuple[Machine, Machine]) -> Iterator[None]:
    """What a test that failed left is no next one's matter: its writer, its disk, what was made ready for it."""
    yield
    with suppress(LabError):
        guest.stop_writer()
    for host in hosts:
        for row in listed(host):
            command(host, "detach", row["domain"], row["volume"], check=False)


def guests_of(host: Machine) -> list[str]:
    """Return the domains of a host, also one that is just coming; libvirt answers when it has started that."""
    return host.run(["virsh", "list", "--all", "--name"], timeout_s=120).stdout.split()


def has_sent(guest: Guest) -> bool:
    """Say whether some of a guest's memory is on its way."""
    said = guest.machine.run(["virsh", "domjobinfo", guest.name], check=False, timeout_s=120).stdout
    return re.search(r"Memory processed:\s+[1-9]", said) is not None


def assert_has_nothing(host: Machine) -> None:
    assert listed(host) == []
    assert records_on(host) == "", host.name
    await_no_device(host, FORGOTTEN_S)


def under_writes(guest: Guest, volume: Workload, salt: str) -> SeenDisk:
    """Give a guest a volume that two hosts may have, and have it write there."""
    command(guest.machine, "attach", guest.name, volume.volume_id, "--shared")
    disk = guest.await_disk(serial_of(volume))
    guest.start_writer(disk.name, salt)
    guest.await_acknowledged(5)
    return disk


@contextmanager
def impatient(source: Machine) -> Iterator[None]:
    """Have a machine give up connections to another that is dead after half a minute: virsh, which is to tell libvirt
    there of the end, would wait a quarter of an hour. tcp(7), tcp_retries2"""
    source.run("sysctl -qw net.ipv4.tcp_retries2=6")
    try:
        yield
    finally:
        source.run("sysctl -qw net.ipv4.tcp_retries2=15")


@contextmanager
def on_its_way(guest: Guest, target: Machine) -> Iterator[RemoteProcess]:
    """Have a guest move so slowly that it is half-way for minutes."""
    with guest.machine.spawn(shlex.join(guest.migration_to(target, "--bandwidth", str(SLOW_MIB_PER_S)))) as moving:
        await_(lambda: has_sent(guest), "nothing of its memory is on its way")
        yield moving


def prepare(guest: Guest, target: Machine, volume: Workload) -> None:
    uuid = guest.machine.run(["virsh", "domuuid", guest.name]).stdout.strip()
    command(target, "prepare", guest.name, volume.volume_id, "--uuid", uuid)
    assert [row["state"] for row in listed(target)] == ["expected"]


def test_a_host_that_dies_while_a_guest_is_on_its_way_there_leaves_it_where_it_was(
    cluster: Standalone, guest: Guest, hosts: tuple[Machine, Machine], volume: Workload, evidence: Evidence
) -> None:
    source, target = hosts
    disk = under_writes(guest, volume, "dies")
    prepare(guest, target, volume)
    with impatient(source), on_its_way(guest, target) as moving:
        target.power_cut()
        half_way = guest.acknowledged()
        source.run(["virsh", "domjobabort", guest.name], timeout_s=120)
        assert moving.wait(600) != 0, moving.output()
    assert guest.state() == "running"
    guest.await_acknowledged(half_way + 5)
    last = guest.stop_writer()
    assert guest.wrong(disk.name, "dies", last) == 0
    # Back again, it has a record of a guest that never came.
    cluster.compute[target.name].boot(300)
    await_libvirt(target)
    command(target, "detach", guest.name, volume.volume_id)
    assert_has_nothing(target)
    command(source, "detach", guest.name, volume.volume_id)
    assert_has_nothing(source)
    evidence(
        f"the host that a guest was on its way to lost power: it wrote on where it was, {last + 1} acknowledged blocks,"
        " none lost; neither host has anything left"
    )


def test_a_move_that_is_called_off_half_way_and_one_that_is_not(
    guest: Guest, hosts: tuple[Machine, Machine], volume: Workload, evidence: Evidence
) -> None:
    source, target = hosts
    disk = under_writes(guest, volume, "moved")

    # Two hosts have it for one guest's move, and not for two guests.
    other = Guest.define(target, "g2")
    refused = command(target, "attach", other.name, volume.volume_id, "--shared", check=False)
    assert refused.code == 2
    assert "two guests never write to one volume" in refused.stderr
    other.undefine()
    assert_has_nothing(target)

    # Half-way, and back.
    prepare(guest, target, volume)
    with on_its_way(guest, target) as moving:
        assert guests_of(target) == [guest.name]
        half_way = guest.acknowledged()
        source.run(["virsh", "domjobabort", guest.name], timeout_s=120)
        assert moving.wait(300) != 0, moving.output()
        assert "canceled by client" in moving.output()
    assert guests_of(target) == []
    assert guest.state() == "running"
    guest.await_acknowledged(half_way + 5)
    command(target, "detach", guest.name, volume.volume_id)
    assert_has_nothing(target)

    # And all the way.
    prepare(guest, target, volume)
    before, began = guest.acknowledged(), time.monotonic()
    moved = guest.migrate(target)
    took_s = time.monotonic() - began
    moved.await_acknowledged(before + 5)
    command(target, "attach", moved.name, volume.volume_id, "--shared")
    command(source, "detach", guest.name, volume.volume_id)
    assert listed(source) == []
    assert [row["state"] for row in listed(target)] == ["attached"]
    await_no_device(source, FORGOTTEN_S)
    last = moved.stop_writer()
    assert moved.wrong(disk.name, "moved", last) == 0
    assert moved.wrong(disk.name, "another-salt", 3) == 4, "the check finds nothing wrong with anything"
    command(target, "detach", moved.name, volume.volume_id)
    assert_has_nothing(source)
    assert_has_nothing(target)
    evidence(
        f"called off half-way, the guest wrote on where it was; moved in {took_s:.0f} s with its disk under writes:"
        f" {last + 1} acknowledged blocks, none lost; neither host has anything left"
    )
