"""The kernel's AoE initiator: sysfs, debugfs, its control files, and the probe that goes past it.

Reading sysfs and debugfs never blocks, so state is taken from there first. What opens a device runs in a thread that
can be abandoned; what writes a control file runs in a child that can be killed (revalidate sleeps while the driver has
no free frame). Sources, all in drivers/block/aoe: aoeblk.c (sysfs, debugfs, HDIO_GET_IDENTITY), aoechr.c (control
files), aoedev.c (flush), aoe.h.

Never used: the aoe-flush tool and flush's word `all`. The driver compares as many bytes as were written, so a name is
written with its NUL, or `e2.1` would flush `e2.10` too.
"""

import errno
import fcntl
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from aoe_core.errors import AoECsiError, CommandFailed, NotFound, Unfinished, Unreachable
from aoe_core.host import wire
from aoe_core.host.blocking import BlockingCalls
from aoe_core.host.contracts import Answer, AoEDevice, Runner
from aoe_core.host.openers import DeviceUsers, HostPaths, find_claim
from aoe_core.model import Address, Mac
from aoe_core.units import SECTOR_BYTES

log = logging.getLogger(__name__)

HDIO_GET_IDENTITY = 0x030D
_CONTROL_LIMIT_S = 20.0
_OPEN_LIMIT_S = 15.0
"""An open of a healthy device takes milliseconds."""
_USERS_LIMIT_S = 60.0
"""Looking through every process's files takes up to a second or two, many times that on a small node that is busy; and
one waits for the look before."""
_DIRECTORY = re.compile(r"etherd!(e\d+\.\d+)")
_TARGET = re.compile(r"^([0-9a-f]{12}):\d+:\d+:\d+$", re.MULTILINE)


class LinuxInitiator:
    """Initiator of this host."""

    def __init__(self, runner: Runner, calls: BlockingCalls, paths: HostPaths | None = None) -> None:
        self._runner = runner
        self._calls = calls
        self._paths = paths or HostPaths()
        self._users = DeviceUsers(self._paths)

    def probe(self, interface: str, address: Address, *, timeout_s: float) -> tuple[Answer, ...]:
        """Ask the wire for the whole of `timeout_s`."""
        return wire.probe(interface, address, timeout_s=timeout_s)

    def discover(self) -> None:
        """Make the driver query its interfaces once."""
        self._write("discover", b"\n")

    def revalidate(self, address: Address) -> None:
        """Make the driver identify one known device again."""
        # The end of the name is written too: the driver reads digits on into what its stack happens to hold.
        self._write("revalidate", f"{address}\n".encode())

    def flush(self, address: Address) -> None:
        """Make the driver forget exactly one device, open or not."""
        self._write("flush", f"{address}\0".encode())

    def devices(self) -> tuple[AoEDevice, ...]:
        """Return every device with a gendisk, in the order of addresses."""
        try:
            names = [match[1] for path in (self._paths.sys / "block").iterdir() if (match := _name(path))]
        except OSError as error:
            raise CommandFailed(f"/sys/block cannot be listed ({error.strerror}); mount sysfs") from error
        found = (self._find(Address.parse(name)) for name in names)
        return tuple(sorted((device for device in found if device is not None), key=lambda device: device.address))

    def identify(self, address: Address) -> str:
        """Return the serial of the driver's last IDENTIFY."""
        device = self._find(address)
        if device is None:
            raise NotFound(f"the driver knows no device {address}; discover it first")
        if not device.up:
            raise Unreachable(f"device {address} is down; check that its target runs and revalidate it")
        return self._calls.run(device.path, lambda: self._identify(address), timeout_s=_OPEN_LIMIT_S)

    def in_use(self, address: Address) -> bool:
        """Say whether anybody has the device open; who it is goes to the log."""
        device = self._find(address)
        if device is None:
            return False
        if not device.up:
            # The driver refuses to open a device that is down, and says closewait while somebody has it open.
            return device.closewait or self._kicked(address)
        node, numbers = self._node(address), self._numbers(address)

        def claim() -> str | None:
            return self._calls.run(device.path, lambda: find_claim(node, numbers, self._paths), timeout_s=_OPEN_LIMIT_S)

        # Claims a second time: who had it open may have mounted it while we looked who has it open.
        opener = claim() or self._find_user(device, numbers) or claim()
        if opener is not None:
            log.info("device is open", extra={"device": str(address), "opener": opener})
        return opener is not None

    def deadsecs(self) -> int:
        """Return aoe_deadsecs as the module has it."""
        try:
            return int(self._parameter("aoe_deadsecs").read_text(encoding="ascii"))
        except FileNotFoundError as error:
            raise NotFound("the kernel module aoe is not loaded; load it with modprobe aoe") from error
        except (OSError, ValueError) as error:
            raise CommandFailed(f"aoe_deadsecs cannot be read ({error})") from error

    def prepare(self, interfaces: Sequence[str], deadsecs: int) -> None:
        """Load the driver if need be, and hold it to these interfaces and this limit. Call with ingress rules in force.

        A module that somebody loaded earlier ignores modprobe's options silently, so the values are set in the running
        driver and read back. Raises: CommandFailed when the driver does not take them.
        """
        if not self._parameter("aoe_deadsecs").exists():
            finished = self._runner.run(
                ["modprobe", "aoe", f"aoe_iflist={','.join(interfaces)}", f"aoe_deadsecs={deadsecs}"], timeout_s=60
            )
            if finished.code != 0:
                raise CommandFailed("the kernel module aoe cannot be loaded; install the kernel's extra modules")
        self._write("interfaces", " ".join(interfaces).encode())
        try:
            self._parameter("aoe_deadsecs").write_text(f"{deadsecs}\n", encoding="ascii")
        except OSError as error:
            raise CommandFailed(f"aoe_deadsecs cannot be set to {deadsecs} ({error.strerror})") from error
        taken = re.split(r"[\s,]+", self._parameter("aoe_iflist").read_text(encoding="ascii").strip())
        if set(taken) != set(interfaces) or self.deadsecs() != deadsecs:
            raise CommandFailed(
                f"the aoe driver has interfaces {' '.join(taken) or 'all'} and aoe_deadsecs {self.deadsecs()} instead "
                f"of {' '.join(interfaces)} and {deadsecs}; see who else configures it"
            )

    # --- parts --------------------------------------------------------------------------------------------------

    def _find(self, address: Address) -> AoEDevice | None:
        directory = self._directory(address)
        try:
            state = _read(directory / "state").split(",")
            size_bytes = int(_read(directory / "size")) * SECTOR_BYTES
            interface = _read(directory / "netif").split(",")[0]
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENODEV:
                return None  # It went away between opening and reading the file.
            raise CommandFailed(f"the state of device {address} cannot be read ({error})") from error
        up, closewait = state[0] == "up", "closewait" in state
        return AoEDevice(
            address=address,
            up=up,
            closewait=closewait,
            size_bytes=size_bytes,
            interface="" if interface == "none" else interface,
            target_macs=self._targets(address),
            open_count=None if up or "kickme" in state else int(closewait),
        )

    def _find_user(self, device: AoEDevice, numbers: frozenset[str]) -> str | None:
        users = self._users
        try:
            return self._calls.run(
                f"the look for users of {device.path}", lambda: users.find(numbers), timeout_s=_USERS_LIMIT_S
            )
        except Unfinished:
            # It hangs, or waits for one that does; what comes later shall not wait for it, too.
            if self._users is users:
                self._users = DeviceUsers(self._paths)
            raise

    def _targets(self, address: Address) -> tuple[Mac, ...]:
        directory = self._paths.sys / "kernel/debug/aoe"
        try:
            text = _read(directory / str(address))
        except FileNotFoundError as error:
            if directory.is_dir():
                return ()  # The driver shows a device in sysfs first and takes it from there last.
            raise CommandFailed(
                f"the targets of device {address} are not shown; mount debugfs at /sys/kernel/debug"
            ) from error
        except OSError as error:
            raise CommandFailed(f"the targets of device {address} cannot be read ({error.strerror})") from error
        return parse_targets(text)

    def _kicked(self, address: Address) -> bool:
        """Say whether the driver shows `kickme`, which hides whether the device is open."""
        try:
            return "kickme" in _read(self._directory(address) / "state")
        except FileNotFoundError:
            return False

    def _numbers(self, address: Address) -> frozenset[str]:
        directory = self._directory(address)
        return frozenset(_read(path) for path in (directory / "dev", *directory.glob(f"{directory.name}p*/dev")))

    def _identify(self, address: Address) -> str:
        try:
            descriptor = os.open(self._node(address), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFound(f"{self._node(address)} does not exist; is /dev the host's?") from error
        except OSError as error:
            raise Unreachable(f"device {address} cannot be opened ({error.strerror}); check its target") from error
        try:
            identity = fcntl.ioctl(descriptor, HDIO_GET_IDENTITY, bytes(512))
        except OSError as error:
            raise Unreachable(
                f"device {address} does not identify itself ({error.strerror}); check its target"
            ) from error
        finally:
            os.close(descriptor)
        # The driver has already put the serial's bytes in order (aoecmd.c, ata_ident_fixstring).
        return wire.serial_text(identity[20:40])

    def _write(self, name: str, content: bytes) -> None:
        control = self._paths.dev / "etherd" / name
        # nocreat: with the module gone, a plain file of that name must not come into being.
        finished = self._runner.run(
            ["dd", f"of={control}", "bs=512", "count=1", "conv=nocreat,notrunc", "status=none"],
            timeout_s=_CONTROL_LIMIT_S,
            stdin=content,
        )
        if finished.code != 0:
            raise CommandFailed(
                f"the aoe driver refused {content.decode().strip(chr(0)).strip()!r} on {control}; "
                "check that the module aoe is loaded and knows the device"
            )
        log.info("driver told", extra={"control": name, "content": content.decode("ascii").rstrip("\n\0")})

    def _directory(self, address: Address) -> Path:
        return self._paths.sys / "block" / f"etherd!{address}"

    def _node(self, address: Address) -> str:
        return str(self._paths.dev / "etherd" / str(address))

    def _parameter(self, name: str) -> Path:
        return self._paths.sys / "module/aoe/parameters" / name


def parse_targets(text: str) -> tuple[Mac, ...]:
    """Return the MACs in a device's debugfs file. Source: aoeblk.c, aoe_debugfs_show: `<12 digits>:<nout>:…`."""
    return tuple(Mac(":".join(re.findall("..", digits))) for digits in _TARGET.findall(text))


def _name(path: Path) -> re.Match[str] | None:
    match = _DIRECTORY.fullmatch(path.name)
    if match is not None:
        try:
            Address.parse(match[1])
        except AoECsiError:
            return None  # An address the driver would not take, so not its device.
    return match


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii").rstrip("\n")
