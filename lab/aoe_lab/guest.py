"""A libvirt guest inside a lab machine: a kernel, a RAM disk of one script, and disks that come and go.

Owns: the domain's definition, its RAM disk, and the line to the script in it (`lab/guest/init`), which lists, writes
and reads its disks. Runs on the hypervisor machine, `aoe-python -m aoe_lab.guest COMMAND`; from outside, `Guest` calls
that. Refuses: a system of any kind in the guest; emulated twice, each process counts.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import socket
import sys
import time
import uuid
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aoe_lab import process
from aoe_lab.cachedir import CHECKOUT
from aoe_lab.errors import CommandFailed, LabError
from aoe_lab.initramfs import write_initramfs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aoe_lab.machine import Machine

INIT = CHECKOUT / "lab" / "guest" / "init"
PLACE = Path("/var/lib/libvirt/images")
"""Where the emulator's user may read; serial sockets are in /var/lib/libvirt/qemu, where it may also make them."""
RECORDS = ("/var/lib/aoe-csi/guests/records", "/run/aoe-csi/guests/disks", "/var/lib/aoe-csi/staged")
DRIVERS = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod")
SLOTS = 6
MEMORY_MIB = 160
BOOT_S = 400.0
"""An emulated machine in an emulated machine: 80 to 95 s were seen on two cores."""
ANSWER_S = 180.0
PING_S = 10.0
CHECKED_AT_ONCE = 50
"""Blocks; each takes a guest up to a second, and an answer may take ANSWER_S."""
CAPABILITIES_S = 300.0
"""libvirt starts each emulator once to see what it can, and whoever asks first waits for that."""
DEFINE_S = 180.0
SEEN_S = 120.0
"""How soon a guest's kernel shows what libvirt has given it."""
STALLS_S = 5.0
SECTOR_BYTES = 512
MIGRATION_S = 900.0
# Listens for everybody, as nobody but the lab's machines is there.
_LISTEN = """
systemctl is-active -q libvirtd-tcp.socket && exit
grep -q '^auth_tcp' /etc/libvirt/libvirtd.conf || printf 'auth_tcp = "none"\\n' >> /etc/libvirt/libvirtd.conf
systemctl stop libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket
systemctl enable -q libvirtd-tcp.socket
systemctl start libvirtd-tcp.socket libvirtd.socket
"""
CONVERGE = ("--timeout", "300", "--timeout-suspend")
"""A guest that writes memory faster than an emulated host sends it is held up for the rest."""


def serial_socket(name: str) -> Path:
    return Path(f"/var/lib/libvirt/qemu/{name}.sock")


def domain_xml(name: str, *, slots: int = SLOTS) -> str:
    """Return a domain with `slots` free PCIe ports and nothing that would take one of them.

    SCSI's controller is beside them, since the one that libvirt would choose is unknown to the guest. The domain's UUID
    is always the same on one machine: libvirt refuses a name that it knows under another one.
    """
    identity = uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.{platform.node()}")
    ports = "".join("<controller type='pci' model='pcie-root-port'/>" for _ in range(slots))
    return f"""<domain type='qemu'>
  <name>{name}</name><uuid>{identity}</uuid><memory unit='MiB'>{MEMORY_MIB}</memory><vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{PLACE}/guest-kernel</kernel><initrd>{PLACE}/guest-initrd</initrd>
    <cmdline>console=ttyS0 quiet mitigations=off</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <controller type='pci' model='pcie-root'/>{ports}
    <controller type='scsi' index='0' model='virtio-scsi'>
      <address type='pci' domain='0' bus='0' slot='0x10' function='0'/>
    </controller>
    <serial type='file'><source path='{PLACE}/{name}.log'/><target port='0'/></serial>
    <serial type='unix'><source mode='bind' path='{serial_socket(name)}'/><target port='1'/></serial>
  </devices>
</domain>
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenDisk:
    """A disk as the guest's kernel shows it."""

    name: str
    size_bytes: int
    read_only: bool
    serial: str


# --- on the hypervisor machine


def prepare() -> None:
    """Put the kernel and the RAM disk where domains find them; the machine's own kernel will do. And have libvirt look
    at its emulators, for which no later call has the time."""
    PLACE.mkdir(parents=True, exist_ok=True)
    kernel = Path(f"/boot/vmlinuz-{platform.release()}")
    (PLACE / "guest-kernel").write_bytes(kernel.read_bytes())
    write_initramfs(Path("/"), INIT, PLACE / "guest-initrd", DRIVERS)
    process.run(["virsh", "capabilities"], timeout_s=CAPABILITIES_S)


def define(name: str, *, slots: int = SLOTS) -> str:
    """Define a domain, or again one of that name; return its UUID."""
    process.run(["virsh", "define", "/dev/stdin"], stdin=domain_xml(name, slots=slots), timeout_s=DEFINE_S)
    return process.run(["virsh", "domuuid", name], timeout_s=30).stdout.strip()


def create(name: str) -> str:
    """Start a transient domain; return its UUID."""
    process.run(["virsh", "create", "/dev/stdin"], stdin=domain_xml(name), timeout_s=120)
    return process.run(["virsh", "domuuid", name], timeout_s=30).stdout.strip()


def await_ready(name: str, timeout_s: float = BOOT_S) -> None:
    """Wait until a guest that was started answers. Raises: LabError with the end of its console."""
    if answers(serial_socket(name), timeout_s):
        return
    console = PLACE / f"{name}.log"
    tail = console.read_text(errors="replace")[-2000:] if console.exists() else "it has no console"
    raise LabError(f"guest {name} does not answer after {timeout_s:g} s:\n{tail}")


def answers(port: Path, timeout_s: float) -> bool:
    """Say whether the guest whose serial port is at a path answers within a time; from here, since each program that is
    started on an emulated machine takes it seconds that its guest would need."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            if ask_at(port, "ping", timeout_s=PING_S) == ["pong"]:
                return True
        except (OSError, LabError):
            time.sleep(1)
    return False


def ask(name: str, command: str, *, timeout_s: float = ANSWER_S) -> list[str]:
    """Have a guest do something; return the lines of its answer. Raises: LabError; OSError when it does not run."""
    return ask_at(serial_socket(name), command, timeout_s=timeout_s)


def ask_at(port: Path, command: str, *, timeout_s: float = ANSWER_S) -> list[str]:
    """The same of a guest whose serial port is at a path."""
    token = secrets.token_hex(4)
    end = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX) as line, _directory(port.parent) as directory:
        # By a short name: the path of a socket may have 107 characters, and one below a pod has more. unix(7)
        line.connect(f"{directory}/{port.name}")
        # The empty line ends whatever an asker before us began to say.
        line.sendall(f"\n{token} {command}\n".encode())
        heard = b""
        while f"{token} .\n".encode() not in heard:
            left_s = end - time.monotonic()
            if left_s <= 0:
                raise LabError(f"the guest at {port} does not answer {command!r} within {timeout_s:g} s")
            line.settimeout(left_s)
            try:
                received = line.recv(65536)
            except TimeoutError:
                continue
            if not received:
                raise LabError(f"the guest at {port} ended while it was asked {command!r}")
            heard += received.replace(b"\r", b"")
    lines = heard.decode(errors="replace").splitlines()
    return [one.removeprefix(f"{token} ") for one in lines if one.startswith(f"{token} ")][:-1]


@contextmanager
def _directory(path: Path) -> Iterator[str]:
    opened = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{opened}"
    finally:
        os.close(opened)


def main() -> int:
    """Do one thing, as told by `Guest` from outside; the answer is a line of JSON."""
    act, *arguments = sys.argv[1:]
    answer: object = None
    match act:
        case "prepare":
            prepare()
        case "define":
            answer = define(arguments[0], slots=int(arguments[1]))
        case "await-ready":
            await_ready(arguments[0])
        case "ask":
            answer = ask(arguments[0], " ".join(arguments[1:]))
        case "answers-at":
            answer = answers(Path(arguments[0]), float(arguments[1]))
        case "ask-at":
            answer = ask_at(Path(arguments[0]), " ".join(arguments[1:]))
        case _:
            raise LabError(f"aoe_lab.guest does not know {act!r}")
    print(json.dumps(answer))
    return 0


# --- from outside


class GuestLine(ABC):
    """What a guest's script does when it is asked, whoever runs the guest."""

    __slots__ = ()

    @abstractmethod
    def ask(self, *words: str) -> list[str]:
        """Have the guest do something; return the lines of its answer. Raises: LabError."""

    def disks(self) -> tuple[SeenDisk, ...]:
        """Return the disks the guest's kernel has."""
        seen = []
        for line in self.ask("disks"):
            name, sectors, read_only, *serial = line.split(maxsplit=3)
            seen.append(
                SeenDisk(
                    name=name,
                    size_bytes=int(sectors) * SECTOR_BYTES,
                    read_only=read_only == "1",
                    serial="".join(serial).strip(),
                )
            )
        return tuple(seen)

    def find_disk(self, serial: str) -> SeenDisk | None:
        """Return the disk of a serial, None when the guest's kernel has none."""
        return next((disk for disk in self.disks() if disk.serial == serial), None)

    def await_disk(self, serial: str, *, size_bytes: int | None = None, timeout_s: float = SEEN_S) -> SeenDisk:
        """Wait until the guest's kernel has a disk of this serial, and size. Raises: LabError with what it has."""
        until = time.monotonic() + timeout_s
        while (disk := self.find_disk(serial)) is None or size_bytes not in (None, disk.size_bytes):
            if time.monotonic() > until:
                raise LabError(f"the guest has {self.disks()}, and no disk {serial} of {size_bytes or 'any'} bytes")
            time.sleep(1)
        return disk

    def write(self, disk: str, salt: str, block: int) -> bool:
        """Write a block of 4 KiB and have it on stable storage; say whether the guest was told that it is."""
        return self.ask("write", disk, salt, str(block)) == ["written"]

    def holds(self, disk: str, salt: str, block: int) -> bool:
        """Say whether a block is what `write` with this salt wrote."""
        return self.ask("read", disk, salt, str(block)) == ["same"]

    def start_writer(self, disk: str, salt: str) -> None:
        """Have it write one block after the other, each on stable storage before the next."""
        self.ask("writer", disk, salt)

    def acknowledged(self) -> int:
        """Return the number of the writer's newest block on stable storage, -1 before the first."""
        return int(self.ask("acknowledged")[0])

    def await_acknowledged(self, number: int, timeout_s: float = 300.0) -> None:
        """Wait until the writer has come so far. Raises: LabError."""
        until = time.monotonic() + timeout_s
        while (newest := self.acknowledged()) < number:
            if time.monotonic() > until:
                raise LabError(f"the guest's writer is at block {newest}, and was to come to {number}")
            time.sleep(1)

    def stalled_at(self) -> int:
        """Return the number of the writer's newest block, after proving that no more are acknowledged. Raises: LabError
        when some are."""
        time.sleep(STALLS_S)
        before = self.acknowledged()
        time.sleep(STALLS_S)
        # One may have been acknowledged, and its number not yet written down.
        if (now := self.acknowledged()) > before + 1:
            raise LabError(f"somebody acknowledges writes: the guest was at block {before}, and is at {now}")
        return before

    def stop_writer(self) -> int:
        """End the writer and return the number of its last block. Raises: LabError when there was none."""
        match self.ask("stop"):
            case [last]:
                return int(last)
            case said:
                raise LabError(f"the guest has no writer to stop; it says {said}")

    def wrong(self, disk: str, salt: str, last: int) -> int:
        """Return how many of the blocks 0 to `last` are not what the writer wrote."""
        return sum(
            int(self.ask("check", disk, salt, f"{first} {min(first + CHECKED_AT_ONCE - 1, last)}")[0])
            for first in range(0, last + 1, CHECKED_AT_ONCE)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest(GuestLine):
    """A guest of a hypervisor machine."""

    machine: Machine
    name: str

    @classmethod
    def define(cls, machine: Machine, name: str, *, slots: int = SLOTS) -> Guest:
        """Make a guest that does not run yet."""
        prepare_machine(machine)
        _call(machine, "define", name, str(slots), timeout_s=DEFINE_S + 60)
        return cls(machine=machine, name=name)

    def start(self) -> None:
        self.machine.run(["virsh", "start", self.name], timeout_s=120)
        self.await_ready()

    def await_ready(self) -> None:
        _call(self.machine, "await-ready", self.name, timeout_s=BOOT_S + 60)

    def revive(self, *hosts: Machine) -> None:
        """Have it run on its machine, whatever a test that failed has left of it there and on other hosts."""
        try:
            match self.state():
                case "shut off":
                    self.start()
                case "paused":
                    self.machine.run(["virsh", "resume", self.name])
        except CommandFailed:
            # It is not defined here, or with a disk that is gone.
            for host in (self.machine, *hosts):
                Guest(machine=host, name=self.name).undefine()
            Guest.define(self.machine, self.name).start()

    def destroy(self) -> None:
        """End it at once; one that does not run has ended."""
        self.machine.run(["virsh", "destroy", self.name], check=False)

    def undefine(self) -> None:
        self.destroy()
        self.machine.run(["virsh", "undefine", self.name], check=False)

    def xml(self, *, inactive: bool = False) -> str:
        return self.machine.run(["virsh", "dumpxml", self.name, *(["--inactive"] if inactive else [])]).stdout

    def state(self) -> str:
        """Return what virsh domstate says."""
        return self.machine.run(["virsh", "domstate", self.name]).stdout.strip()

    def migration_to(self, target: Machine, *options: str) -> list[str]:
        """Return the command by which its host's libvirt hands it over to another's; both `let_move` has prepared. An
        emulated libvirtd may be silent for longer than virsh has patience."""
        words = ["virsh", "-k", "0", "migrate", "--live", "--persistent", "--undefinesource", *options, self.name]
        return [*words, f"qemu+tcp://{target.address}/system", "--migrateuri", f"tcp://{target.address}"]

    def migrate(self, target: Machine) -> Guest:
        """Have it move to another host while it runs; return it there."""
        self.machine.run(self.migration_to(target, *CONVERGE), timeout_s=MIGRATION_S)
        return Guest(machine=target, name=self.name)

    def ask(self, *words: str) -> list[str]:
        """Have the guest do something; return the lines of its answer."""
        answer: list[str] = json.loads(_call(self.machine, "ask", self.name, *words, timeout_s=ANSWER_S + 60))
        return answer


def records_on(host: Machine) -> str:
    """Return what names guests' disks on a hypervisor: records, links and stage records."""
    return "".join(host.run(f"ls {directory} 2>/dev/null || true").stdout for directory in RECORDS)


def devices_on(host: Machine) -> str:
    """Return the AoE devices that a hypervisor's driver has."""
    return host.run("ls /dev/etherd | grep '^e[0-9]' || true").stdout


def let_move(*hosts: Machine) -> None:
    """Have hypervisors ready for guests that come from each other."""
    for host in hosts:
        prepare_machine(host)
        host.run(_LISTEN)


def prepare_machine(machine: Machine) -> None:
    """Have a hypervisor machine ready for guests, also for one that comes from elsewhere."""
    _call(machine, "prepare", timeout_s=CAPABILITIES_S + 60)


def _call(machine: Machine, *words: str, timeout_s: float = 120) -> str:
    return machine.run(["aoe-python", "-m", "aoe_lab.guest", *words], timeout_s=timeout_s).stdout


if __name__ == "__main__":
    sys.exit(main())
