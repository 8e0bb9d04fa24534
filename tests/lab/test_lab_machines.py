"""The lab keeps its promises: what the other tests here conclude from its machines is worth no more than these."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from aoe_lab import CommandFailed, CommandTimedOut, DataDisk, Lab, LabError, MachineState, MachineUnreachable, Topology
from aoe_lab.cachedir import CHECKOUT
from aoe_lab.lab import default_name
from aoe_lab.network import Network
from aoe_lab.topology import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from aoe_lab import Machine

# The short run leans on all of this and would fail with it; here it is proven by itself, with controls.
pytestmark = pytest.mark.long

PLAIN, VOLATILE, SLOW = range(3)
ETHERTYPE = 0x88B5  # IEEE 802: for local experiments.
JUMBO_BYTES = 8900
RECEIVE = f"""
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons({ETHERTYPE}))
s.bind(("eth1", {ETHERTYPE}))
print("listening", flush=True)
while True:
    print("received", len(s.recv(65536)), flush=True)
"""
SEND = f"""
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth1", {ETHERTYPE}))
frame = bytes.fromhex(sys.argv[1].replace(":", "")) + s.getsockname()[4] + ({ETHERTYPE}).to_bytes(2, "big")
s.send(frame.ljust({JUMBO_BYTES}, b"."))
"""
ECHO = """
import os, socket
try: os.unlink("/run/echo.sock")
except FileNotFoundError: pass
s = socket.socket(socket.AF_UNIX)
s.bind("/run/echo.sock")
s.listen()
print("listening", flush=True)
while True:
    c, _ = s.accept()
    c.sendall(b"from the machine")
    c.close()
"""


def _eventually(what: str, holds: Callable[[], object], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {timeout_s} s"
        time.sleep(0.1)


# --- what a machine is


def test_machines_are_who_the_topology_says(lab: Lab) -> None:
    ids = set()
    for machine in lab.machines:
        assert machine.run("hostname").stdout.strip() == machine.name
        assert f"{machine.address}/24" in machine.run("ip -o address show dev eth0").stdout
        for san in lab.topology.sans:
            card = f"/sys/class/net/{machine.san_interface(san)}"
            assert machine.run(f"cat {card}/address {card}/mtu").stdout.split() == [machine.san_mac(san), "9000"]
        ids.add(machine.run("cat /etc/machine-id").stdout)
    assert len(ids) == len(lab.machines)


def test_nothing_failed_at_boot_and_aoe_is_left_to_the_project(lab: Lab) -> None:
    for machine in lab.machines:
        assert machine.run("systemctl --failed --no-legend").stdout == ""
        assert machine.run("systemctl is-system-running --wait").stdout.strip() == "running"
        assert machine.run("cat /sys/module/aoe/initstate 2>&1; pgrep vblade", check=False).code == 1


def test_data_disks_have_stable_names_and_a_write_back_cache(storage1: Machine) -> None:
    for number in range(len(storage1.disks)):
        device = storage1.run(f"basename $(readlink -e /dev/disk/by-id/virtio-data{number})").stdout.strip()
        assert storage1.run(f"cat /sys/block/{device}/queue/write_cache").stdout.strip() == "write back"


def test_pushed_code_and_tools_run_without_being_compiled_there(storage1: Machine) -> None:
    storage1.run("touch /opt/aoe-csi/src/csi/gone-with-the-next-push")
    storage1.push_code()
    assert storage1.run("test -e /opt/aoe-csi/src/csi/gone-with-the-next-push", check=False).code == 1
    trace = storage1.run("aoe-python -v -c 'import aoe_core.model, msgspec' 2>&1 >/dev/null").stdout
    for package in ("src/core/aoe_core", "tools/site/msgspec"):
        loaded = [line for line in trace.splitlines() if "code object from" in line and package in line]
        assert loaded, f"{package} was not imported"
        assert all(line.rstrip("'").endswith(".pyc") for line in loaded), loaded
    assert "csi-sanity" in storage1.run("ls /opt/aoe-csi/tools/bin").stdout


# --- commands


def test_a_failed_command_says_where_and_what(storage1: Machine) -> None:
    with pytest.raises(CommandFailed, match=r"storage1: .*exited with 3: it says why"):
        storage1.run("echo it says why >&2; exit 3")
    finished = storage1.run(["printf", "%s", "one  argument"], check=False)
    assert (finished.code, finished.stdout) == (0, "one  argument")


def test_the_exit_code_of_ssh_itself_is_told_from_the_same_code_of_a_command(storage1: Machine) -> None:
    with pytest.raises(CommandFailed, match="exited with 255"):
        storage1.run("exit 255")
    storage1.power_cut()
    with pytest.raises(MachineUnreachable):
        storage1.run("true")


def test_a_spawned_program_ends_with_its_children(storage1: Machine) -> None:
    with storage1.spawn("sleep 8641 & sleep 8642; wait") as program:
        _eventually("both run", lambda: storage1.run("pgrep -fc '^sleep 864'", check=False).stdout.strip() == "2")
        assert program.code() is None
    assert program.code() is not None
    assert storage1.run("pgrep -f '^sleep 864'", check=False).stdout == ""


def test_files_go_both_ways(storage1: Machine, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("content")
    storage1.run("rm -rf /root/tree")
    storage1.copy_to(tmp_path / "tree", "/root/tree")
    storage1.copy_from("/root/tree/file", tmp_path / "back")
    assert (tmp_path / "back").read_text() == "content"


def test_forwarded_sockets_outlive_a_reboot(storage1: Machine, tmp_path: Path) -> None:
    def ask() -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(storage1.forward_from("/run/echo.sock")))
            return client.recv(100)

    before = storage1.boot_id()
    with storage1.spawn(["python3", "-c", ECHO]) as server:
        _eventually("the server listens", server.output)
        local = storage1.forward_from("/run/echo.sock")
        assert ask() == b"from the machine"
    storage1.reboot()
    assert storage1.boot_id() != before
    with storage1.spawn(["python3", "-c", ECHO]) as server, socket.socket(socket.AF_UNIX) as client:
        _eventually("the server listens", server.output)
        client.connect(str(local))
        assert client.recv(100) == b"from the machine"

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "local.sock"))
        listener.listen()
        storage1.forward_to(tmp_path / "local.sock", "/run/from-host.sock")
        with storage1.spawn(
            ["python3", "-c", "import socket; s = socket.socket(1); s.connect('/run/from-host.sock'); print(s.recv(9))"]
        ) as program:
            connection, _ = listener.accept()
            connection.sendall(b"from host")
            connection.close()
            program.wait(30)
        assert "from host" in program.output()


# --- accidents


def test_a_paused_machine_is_silent_and_wakes_with_the_right_time(compute1: Machine) -> None:
    compute1.pause()
    assert compute1.state() is MachineState.PAUSED
    with pytest.raises(CommandTimedOut):
        compute1.run("true", timeout_s=10)
    compute1.resume()
    before = time.time()
    behind_s = before - float(compute1.run("date +%s.%N").stdout)
    assert behind_s < 5, "the clock lost the ten seconds of the pause"


def test_a_pulled_cable_and_total_loss_stop_frames_until_healed(lab: Lab, storage1: Machine, compute1: Machine) -> None:
    def send() -> None:
        storage1.run(["python3", "-c", SEND, compute1.san_mac("main")])

    def received() -> int:
        return listening.output().count(f"received {JUMBO_BYTES}")

    carrier = "cat /sys/class/net/eth1/carrier"
    with compute1.spawn(["python3", "-c", RECEIVE]) as listening:
        _eventually("the receiver listens", listening.output)
        send()
        _eventually("a jumbo frame arrives", lambda: received() == 1)

        compute1.link_down("main")
        _eventually("no carrier", lambda: compute1.run(carrier).stdout.strip() == "0")
        send()
        lab.heal()
        _eventually("carrier", lambda: compute1.run(carrier).stdout.strip() == "1")
        storage1.netem("main", loss_percent=100)
        send()
        lab.heal()
        send()
        _eventually("a frame arrives again", lambda: received() > 1)
        assert received() == 2, "a frame passed a pulled cable or a total loss"
    with pytest.raises(LabError, match="not on the SAN 'other'"):
        storage1.link_down("other")


@pytest.fixture(scope="module")
def disks_lab() -> Iterator[Lab]:
    """A machine of its own, with disks of every kind."""
    small = 64 * MIB
    disks = (
        DataDisk(size_bytes=small, volatile_cache=False),
        DataDisk(size_bytes=small),
        DataDisk(size_bytes=small, flush_delay_ms=300),
    )
    with Lab.start(Topology(storage=1, compute=0, disks=disks), name=f"{default_name()}-disks") as lab:
        yield lab


@pytest.fixture
def owner_of_disks(disks_lab: Lab) -> Machine:
    disks_lab.heal()
    return disks_lab.machine("storage1")


def _write(machine: Machine, disk: int, offset_mib: int, text: str, *, flush: bool, check: bool = True) -> int:
    line = f"dd of=/dev/disk/by-id/virtio-data{disk} bs=1M seek={offset_mib} count=1 iflag=fullblock oflag=direct"
    block = text.encode().ljust(MIB, b".")
    return machine.run(line + (" conv=fsync" if flush else ""), stdin=block, check=check).code


def _read(machine: Machine, disk: int, offset_mib: int, length: int) -> str:
    line = f"dd if=/dev/disk/by-id/virtio-data{disk} bs=1M skip={offset_mib} count=1 iflag=direct status=none"
    return machine.run(f"{line} | head -c {length} | tr '\\000' 0").stdout


def test_a_power_cut_loses_exactly_what_was_not_flushed(owner_of_disks: Machine) -> None:
    machine = owner_of_disks
    for disk in (PLAIN, VOLATILE):
        _write(machine, disk, 1, "flushed", flush=True)
        _write(machine, disk, 2, "written", flush=False)
        assert _read(machine, disk, 2, 7) == "written"  # As long as there is power.
    machine.power_cut()
    assert machine.state() is MachineState.OFF
    machine.boot()
    machine.wait_ready()
    assert _read(machine, VOLATILE, 1, 7) == "flushed"
    assert _read(machine, VOLATILE, 2, 7) == "0000000"
    # The control: without the cache, the same cut loses nothing, and would prove nothing.
    assert _read(machine, PLAIN, 1, 7) == "flushed"
    assert _read(machine, PLAIN, 2, 7) == "written"


def test_what_the_root_disk_was_given_survives_a_power_cut(owner_of_disks: Machine) -> None:
    owner_of_disks.run("echo kept > /root/kept && sync -f /root")
    owner_of_disks.power_cut()
    owner_of_disks.boot()
    owner_of_disks.wait_ready()
    assert owner_of_disks.run("cat /root/kept").stdout == "kept\n"


def test_a_kernel_that_hangs_before_its_first_process_is_booted_again(
    owner_of_disks: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, before = owner_of_disks, owner_of_disks.boot_id()
    monkeypatch.setattr("aoe_lab.machine.KERNEL_TIMEOUT_S", 60.0)
    machine.power_cut()
    machine.boot()
    machine.pause()
    machine.wait_ready()
    assert machine.state() is MachineState.RUNNING
    assert machine.boot_id() != before


def test_flushes_fail_when_told_to_and_only_then(owner_of_disks: Machine) -> None:
    disk = owner_of_disks.disks[VOLATILE]
    disk.fail_flushes(True)
    assert _write(owner_of_disks, VOLATILE, 3, "refused", flush=True, check=False) != 0
    disk.fail_flushes(False)
    _write(owner_of_disks, VOLATILE, 3, "accepted", flush=True)


def test_a_slow_disk_answers_writes_at_once_and_flushes_late(owner_of_disks: Machine) -> None:
    begin = time.monotonic()
    _write(owner_of_disks, SLOW, 1, "slow", flush=True)
    # A lower bound only: a loaded host makes it later, never earlier. One MiB is sixteen cached blocks.
    assert time.monotonic() - begin > 0.3


# --- the end


def test_a_lab_dies_with_its_owner(lab: Lab, tmp_path: Path) -> None:
    name = f"{default_name()}-orphan"
    start = f"from aoe_lab import *; Lab.start(Topology(storage=1, compute=0), name={name!r})"
    network = Network(name)
    with (tmp_path / "output").open("wb") as output:
        owner = subprocess.Popen(
            [sys.executable, "-c", start],
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT / "lab")},
        )
        # The disk servers and the emulator.
        _eventually("the machine starts", lambda: len(network.processes()) >= 3 or owner.poll() is not None)
    assert owner.poll() is None, (tmp_path / "output").read_text()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    _eventually("everything is gone", lambda: not network.exists())
    with pytest.raises(LabError, match="no lab named"):
        Lab.attach(name)
    assert lab.machines[0].state() is MachineState.RUNNING, "another lab was hit"
