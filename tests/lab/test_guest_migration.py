"""A running libvirt guest moves from one hypervisor machine to another, its disk under verified writes; or does not."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from aoe_lab import Lab, Topology
from aoe_lab.guest import Guest, prepare_machine
from aoe_lab.lab import default_name
from aoe_lab.standalone import OUTLASTING_DEADSECS, SOCKET, THICK, Standalone, Tuning, Workload, capability

from .test_guests import STORAGE_SOCKET, await_, command, listed, serial_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aoe_lab import Finished, Machine
    from aoe_lab.evidence import Evidence

SIZE_BYTES = 64 << 20
MIGRATION_S = 900.0
SLOW_MIB_PER_S = 1
"""A migration at this pace takes minutes, and can be called off in the middle."""
# Listens for everybody, as nobody but the lab's machines is there.
LISTEN = """
printf 'auth_tcp = "none"\\n' >> /etc/libvirt/libvirtd.conf
systemctl stop libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket
systemctl start libvirtd-tcp.socket libvirtd.socket
"""
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.start(Topology(storage=1, compute=0, hypervisors=2), name=f"{default_name()}-move") as started:
        yield started


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Iterator[Standalone]:
    made = Standalone(lab, Tuning(deadsecs=OUTLASTING_DEADSECS, rest_s=OUTLASTING_DEADSECS + 60))
    made.install()
    for name in ("hypervisor1", "hypervisor2"):
        host = lab.machine(name)
        host.forward_to(lab.machine("storage1").forward_from(SOCKET), STORAGE_SOCKET)
        prepare_machine(host)
        host.run(LISTEN)
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


def migrate(guest: Guest, target: Machine, *options: str, check: bool = True) -> Finished:
    words = ["virsh", "migrate", "--live", "--persistent", "--undefinesource", *options, guest.name]
    words += [f"qemu+tcp://{target.address}/system", "--migrateuri", f"tcp://{target.address}"]
    return guest.machine.run(words, check=check, timeout_s=MIGRATION_S)


def prepare(guest: Guest, target: Machine, volume: Workload) -> None:
    uuid = guest.machine.run(["virsh", "domuuid", guest.name]).stdout.strip()
    command(target, "prepare", guest.name, volume.volume_id, "--uuid", uuid)
    assert [row["state"] for row in listed(target)] == ["expected"]


def test_a_move_that_is_called_off_half_way_and_one_that_is_not(
    guest: Guest, hosts: tuple[Machine, Machine], volume: Workload, evidence: Evidence
) -> None:
    source, target = hosts
    command(source, "attach", guest.name, volume.volume_id, "--shared")
    disk = guest.await_disk(serial_of(volume))
    guest.start_writer(disk.name, "moved")
    guest.await_acknowledged(5)

    # Half-way, and back.
    prepare(guest, target, volume)
    moving = source.spawn(
        f"virsh migrate --live --persistent --undefinesource --bandwidth {SLOW_MIB_PER_S} {guest.name}"
        f" qemu+tcp://{target.address}/system --migrateuri tcp://{target.address}"
    )
    await_(lambda: "g1" in target.run(["virsh", "list", "--name"]).stdout, "it is not on its way")
    half_way = guest.acknowledged()
    source.run(["virsh", "domjobabort", guest.name])
    await_(lambda: "g1" not in target.run(["virsh", "list", "--all", "--name"]).stdout, "it is still on its way")
    moving.stop()
    assert guest.state() == "running"
    guest.await_acknowledged(half_way + 5)
    command(target, "detach", guest.name, volume.volume_id)
    assert listed(target) == []
    assert target.run("ls /dev/etherd | grep '^e[0-9]' || true").stdout == ""

    # And all the way.
    prepare(guest, target, volume)
    before, began = guest.acknowledged(), time.monotonic()
    migrate(guest, target)
    took_s = time.monotonic() - began
    moved = Guest(machine=target, name=guest.name)
    moved.await_acknowledged(before + 5)
    command(target, "attach", moved.name, volume.volume_id, "--shared")
    command(source, "detach", guest.name, volume.volume_id)
    assert listed(source) == []
    assert [row["state"] for row in listed(target)] == ["attached"]
    await_(lambda: source.run("ls /dev/etherd | grep '^e[0-9]' || true").stdout == "", "the source keeps its device")
    last = moved.stop_writer()
    assert moved.wrong(disk.name, "moved", last) == 0
    assert moved.wrong(disk.name, "another-salt", 3) == 4, "the check finds nothing wrong with anything"
    command(target, "detach", moved.name, volume.volume_id)
    assert listed(target) == []
    evidence(
        f"called off half-way, the guest wrote on where it was; moved in {took_s:.0f} s with its disk under writes:"
        f" {last + 1} acknowledged blocks, none lost; neither host has anything left"
    )
