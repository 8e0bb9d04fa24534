"""One machine of a lab: its emulator, its disks, its connection, and what can befall it.

Owns: the machine's directory, in which all its state is; any process that knows the directory can steer the machine.
Refuses: to change the system inside beyond pushing code; preparing a host is the project's work, under test.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from aoe_lab import process, progress, source_tree
from aoe_lab.console import Console
from aoe_lab.disks import DiskServer
from aoe_lab.emulator import Emulator, MachineState
from aoe_lab.errors import BootFailed, CommandTimedOut, LabError, MachineUnreachable
from aoe_lab.remote_process import RemoteProcess
from aoe_lab.ssh import Connection

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from aoe_lab.process import Finished
    from aoe_lab.topology import MachineSpec

BOOT_TIMEOUT_S = 300.0
KERNEL_TIMEOUT_S = 180.0
"""How long a kernel may take to its first process; eight that boot at once on two cores take half a minute."""
SIGN_OF_LIFE_TIMEOUT_S = 60.0
_BOOTS_AGAIN = 3


@dataclass(slots=True, kw_only=True)
class Machine:
    """A machine whose directory is `place`; `enter` leads into the lab's network."""

    spec: MachineSpec
    place: Path
    enter: tuple[str, ...]
    emulator: Emulator
    _forwards: dict[str, Callable[[], object]] = field(default_factory=dict)
    _began_s: float | None = None
    """When the boot began whose clock nobody has looked at yet."""

    @classmethod
    def load(cls, spec: MachineSpec, place: Path, enter: tuple[str, ...]) -> Self:
        """Return the machine whose directory was made by `lab.Lab.start`."""
        argv = (*enter, *json.loads((place / "qemu.json").read_text()))
        return cls(spec=spec, place=place, enter=enter, emulator=Emulator(place=place, argv=argv))

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def address(self) -> str:
        return self.spec.address

    @property
    def disks(self) -> tuple[DiskServer, ...]:
        return disk_servers(self.spec, self.place)

    @property
    def console(self) -> Console:
        return Console(self.place / "console.log")

    @property
    def _connection(self) -> Connection:
        return Connection(
            machine=self.name,
            address=self.address,
            key=self.place / "login-key",
            place=self.place,
            enter=self.enter,
        )

    # --- life and death

    def boot(self) -> None:
        """Start the machine; `wait_ready` waits for it. Raises: LabError if it is not off."""
        if self.state() is not MachineState.OFF:
            raise LabError(f"{self.name} is {self.state()}: cut its power first")
        for disk in self.disks:
            disk.start(self.enter)
        for san in self.spec.sans:
            self._netem_mark(san).unlink(missing_ok=True)
        self._mark_boot()
        self.emulator.start()

    def wait_ready(self, timeout_s: float = BOOT_TIMEOUT_S) -> None:
        """Wait until this boot answers, all disks named; connect, and forward the sockets of earlier boots again.

        What emulation does to a kernel is no matter of what runs on it: a boot that it spoiled is ended, and another
        one begun. Raises: BootFailed if no boot can be used, or if the machine hangs once its kernel is up.
        """
        for boots_left in reversed(range(_BOOTS_AGAIN + 1)):
            spoiled = self._await_boot(timeout_s)
            if spoiled is None:
                break
            if not boots_left:
                raise BootFailed(f"{self.name}: {spoiled}, as at every boot before; is the host that busy?")
            progress.say(f"{self.name}: {spoiled}; booting it again")
            self.power_cut()
            self.boot()
        for forward in self._forwards.values():
            forward()

    def _await_boot(self, timeout_s: float) -> str | None:
        """Wait until this boot answers; return what emulation spoiled it with, if it did.

        A kernel that was kept from the processor while it measured its clock may run many times too fast for as long as
        it is up, and every time limit with it.
        """
        if not self._hears(self.console.kernel_is_up, KERNEL_TIMEOUT_S):
            return f"its kernel hangs ({self.emulator.whereabouts()})"
        self._await_answer(timeout_s)
        return "its clock runs too fast, the host was busy when it was set" if self._is_ahead_of_time() else None

    def _hears(self, word: Callable[[], object], timeout_s: float) -> bool:
        """Wait for a word on the console; say whether it came. Raises: BootFailed if the emulator ends."""
        end = time.monotonic() + timeout_s
        while not word():
            if time.monotonic() > end:
                return False
            if self.emulator.pid() is None:
                raise BootFailed(f"{self.name}: the emulator ended\n{self.console_tail()}")
            time.sleep(0.05)
        return True

    def _mark_boot(self) -> None:
        self.console.mark_boot()
        self._began_s = time.monotonic()

    def _is_ahead_of_time(self) -> bool:
        if self._began_s is None:
            return False
        uptime_s = float(self.run("cat /proc/uptime").stdout.split()[0])
        elapsed_s, self._began_s = time.monotonic() - self._began_s, None
        return uptime_s > elapsed_s + 1

    def _await_answer(self, timeout_s: float) -> None:
        if not self._hears(self.console.ready_boot_id, timeout_s):
            raise BootFailed(f"{self.name}: not ready after {timeout_s:g} s\n{self.console_tail()}")
        try:
            self._connection.open()
        except MachineUnreachable as error:
            raise BootFailed(f"{error}\n{self.console_tail()}") from error

    def power_cut(self) -> None:
        """End the machine without warning; its disks lose what they had not written. Nothing to do if it is off."""
        pids = [pid for disk in self.disks for pid in disk.pids()]
        if (emulator := self.emulator.pid()) is not None:
            pids.append(emulator)
        process.kill(pids)
        self._connection.close()

    def reboot(self) -> None:
        """Have the machine shut down and start again by itself, and wait until it is ready."""
        self._mark_boot()
        with suppress(MachineUnreachable):  # The connection may end before the answer.
            self.run("systemctl --no-block reboot")
        if not self._hears(self.console.kernel_is_up, BOOT_TIMEOUT_S):
            raise BootFailed(f"{self.name}: not down and up again after {BOOT_TIMEOUT_S:g} s\n{self.console_tail()}")
        self.wait_ready()

    def pause(self) -> None:
        """Stop the machine's processors, as an overloaded or suspended host does."""
        self.emulator.pause()

    def resume(self) -> None:
        """Let a paused machine run on, and set its clock, which stood still."""
        self.emulator.resume()
        self.run(f"date --utc --set=@{time.time():.3f}")

    def state(self) -> MachineState:
        return self.emulator.state()

    def heal(self) -> None:
        """Bring the machine back to a sound state: booted, running, connected, links up, nothing delayed or failing."""
        for disk in self.disks:
            disk.fail_flushes(False)
        state = self.state()
        if state is MachineState.OFF:
            self._start_afresh()
            return
        for san in self.spec.sans:
            self.link_up(san)
        self.emulator.set_link("mgmt", up=True)
        if state is MachineState.PAUSED:
            self.resume()
        if not self._connection.is_open():
            self.wait_ready()
        try:
            self.run("true", timeout_s=SIGN_OF_LIFE_TIMEOUT_S)
        except (CommandTimedOut, MachineUnreachable):
            self._start_afresh()
        for san in self.spec.sans:
            if self._netem_mark(san).exists():
                self.netem(san)

    def _start_afresh(self) -> None:
        self.power_cut()  # Even if it is off: its disk servers may have outlived the emulator.
        self.boot()
        self.wait_ready()

    # --- network

    def san_mac(self, san: str) -> str:
        return self.spec.san_mac(san)

    def san_interface(self, san: str) -> str:
        return self.spec.san_interface(san)

    def link_down(self, san: str) -> None:
        """Pull the machine's cable to a SAN: the interface stays, its carrier goes."""
        self._set_link(san, up=False)

    def link_up(self, san: str) -> None:
        self._set_link(san, up=True)

    def management_down(self) -> None:
        """Pull the cable by which we, and Kubernetes, reach the machine; it goes on with whatever it does."""
        self.emulator.set_link("mgmt", up=False)
        self._connection.close()

    def management_up(self) -> None:
        """Plug it in again, and connect."""
        self.emulator.set_link("mgmt", up=True)
        self.wait_ready()

    def netem(self, san: str, *, delay_ms: float = 0, loss_percent: float = 0) -> None:
        """Make what the machine sends on a SAN late or lossy, until the next call or boot; both 0: sound again.

        It happens inside the machine: the host's kernel need not have the queueing discipline.
        """
        interface = self.san_interface(san)
        if delay_ms or loss_percent:
            # Room for every frame of a burst: only what is asked for shall be lost.
            effect = f"netem limit 100000 delay {delay_ms:g}ms loss {loss_percent:g}%"
            self._netem_mark(san).touch()
            self.run(f"tc qdisc replace dev {interface} root {effect}")
        else:
            self.run(f"tc qdisc del dev {interface} root 2>&1 || true")
            self._netem_mark(san).unlink(missing_ok=True)

    def link_is_up(self, san: str) -> bool:
        """Tell whether the cable is plugged, as `link_down` and `link_up` of any process left it."""
        return self.emulator.link_is_up(f"san-{san}")

    def _set_link(self, san: str, *, up: bool) -> None:
        self.san_interface(san)  # Refuses a SAN the machine is not on.
        self.emulator.set_link(f"san-{san}", up=up)

    # --- inside

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        timeout_s: float = 60,
        stdin: bytes | str | None = None,
    ) -> Finished:
        """Run a command as root to its end; a string is a shell's line. See `Connection.run` for the errors."""
        return self._connection.run(command, check=check, timeout_s=timeout_s, stdin=stdin)

    def shell_argv(self, command: Sequence[str], *, terminal: bool) -> list[str]:
        """Return the argv of a program that runs `command` for a person, or a login shell if it is empty."""
        return self._connection.argv(" ".join(command) or "exec bash -l", *(["-t"] if terminal else []))

    def drop_caches(self) -> None:
        """Have what is clean in its memory read from the devices again. Source: sysctl/vm.rst of the kernel's docs."""
        self.run("echo 3 > /proc/sys/vm/drop_caches")

    def spawn(self, command: str | Sequence[str]) -> RemoteProcess:
        """Start a command that runs until it is stopped."""
        return RemoteProcess.start(self._connection, command, log=self.place)

    def copy_to(self, local: Path, remote: str, *, timeout_s: float = 300) -> None:
        connection = self._connection
        connection.copy(str(local), connection.remote(remote), timeout_s=timeout_s)

    def copy_from(self, remote: str, local: Path, *, timeout_s: float = 300) -> None:
        connection = self._connection
        connection.copy(connection.remote(remote), str(local), timeout_s=timeout_s)

    def push_code(self, packed: bytes | None = None) -> None:
        """Replace the project's code on the machine by the checkout's (`packed`: as `source_tree.pack` returned it)."""
        self.run(source_tree.UNPACK, stdin=source_tree.pack() if packed is None else packed)

    def forward_from(self, remote_socket: str) -> Path:
        """Return a local unix socket that leads to one on the machine; renewed by every `wait_ready`."""
        self._forwards[f"from {remote_socket}"] = lambda: self._connection.forward_from(remote_socket)
        return self._connection.forward_from(remote_socket)

    def forward_to(self, local_socket: Path, remote_socket: str) -> None:
        """Make a unix socket on the machine lead to a local one; renewed by every `wait_ready`."""
        self._forwards[f"to {remote_socket}"] = lambda: self._connection.forward_to(local_socket, remote_socket)
        self._connection.forward_to(local_socket, remote_socket)

    def boot_id(self) -> str:
        return self.run("cat /proc/sys/kernel/random/boot_id").stdout.strip()

    def last_words(self, lines: int = 60) -> str:
        """Return the end of the journal of this boot, or of the console when the machine does not answer."""
        try:
            return self.run(f"journalctl --no-pager -b -n {lines}", timeout_s=SIGN_OF_LIFE_TIMEOUT_S).stdout
        except LabError as error:
            return f"{error}\n{self.console_tail(lines)}"

    def console_tail(self, lines: int = 40) -> str:
        return self.console.tail(lines)

    def _netem_mark(self, san: str) -> Path:
        return self.place / f"netem-{san}"


def disk_servers(spec: MachineSpec, place: Path) -> tuple[DiskServer, ...]:
    return tuple(DiskServer(name=f"data{number}", place=place, disk=disk) for number, disk in enumerate(spec.disks))
