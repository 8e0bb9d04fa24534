"""The real host: a throwaway lab machine."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.contract.beds import GROUP_BYTES, POOL_BYTES, Guests

from aoe_core.errors import CommandFailed, NotFound
from aoe_core.host import contracts, device_links, exports
from aoe_core.host.attached import AttachedBlockDevices
from aoe_core.host.blocking import BlockingCalls
from aoe_core.host.blocks import HostBlockDevices
from aoe_core.host.device_links import HostDeviceLinks
from aoe_core.host.exports import ExportFiles, HostExportUnits
from aoe_core.host.files import DurableFiles
from aoe_core.host.filesystems import HostFileSystems
from aoe_core.host.ingress import NftIngressRules
from aoe_core.host.initiator import LinuxInitiator
from aoe_core.host.libvirt import LibvirtHypervisor
from aoe_core.host.lvm import HostLvm
from aoe_core.host.mounts import HostMounts
from aoe_core.host.runner import HostRunner
from aoe_core.host.wire import RawSegments
from aoe_core.model import Address, Mac, parse_mac
from aoe_core.units import MIB
from aoe_lab import guest


def _run(*argv: str, check: bool = True) -> str:
    finished = subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    if check and finished.returncode:
        raise AssertionError(f"{' '.join(argv)}: exit {finished.returncode}: {finished.stderr}{finished.stdout}")
    return finished.stdout


class RealTarget:
    """A vblade in a network namespace of its own, at the other end of a veth pair."""

    def __init__(
        self, backing: Path, *, interface: str, mac: Mac, address: Address, serial: str, flags: list[str]
    ) -> None:
        self.mac = mac
        self._backing = backing
        self._argv = [
            "ip", "netns", "exec", "target", "unshare", "--uts", "sh", "-c", 'hostname "$1"; shift; exec "$@"', "sh",
            serial, "/usr/sbin/vblade", "-s", *flags, str(address.shelf), str(address.slot), interface, str(backing),
        ]  # fmt: skip
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert self._child is None
        self._child = subprocess.Popen(self._argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        child = self._child
        deadline = time.monotonic() + 20
        while Path(f"/proc/{child.pid}/comm").read_text(encoding="utf-8").strip() != "vblade":
            assert child.poll() is None, "vblade ended"
            assert time.monotonic() < deadline, "vblade did not start"
            time.sleep(0.05)

    def stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def grow(self, size_bytes: int) -> None:
        os.truncate(self._backing, size_bytes)

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        with self._backing.open("rb") as handle:
            handle.seek(offset_bytes)
            return handle.read(length_bytes)


class RealGuests:
    """Domains of this machine's libvirt. One guest is booted, which takes minutes, and serves every test until one
    ends it."""

    _DAEMON = ("libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket", "libvirtd.service")

    def __init__(self) -> None:
        guest.prepare()
        self._hypervisor = LibvirtHypervisor(BlockingCalls())

    def running(self, *, slots: bool = True) -> str:
        name = "with-slots" if slots else "without-slots"
        uuid = guest.define(name, slots=guest.SLOTS if slots else 0)
        if not self._hypervisor.get_domain(uuid).running:
            _run("virsh", "start", name)
            if slots:  # The other one is never asked for anything.
                guest.await_ready(name)
        return uuid

    def shut_off(self) -> str:
        return guest.define("shut-off")

    def transient(self) -> str:
        return guest.create("transient")

    def name(self, uuid: str) -> str:
        return _run("virsh", "domname", uuid).strip()

    @contextmanager
    def deaf(self, uuid: str) -> Iterator[None]:
        # Without its processor it hears nothing, and once it has it again it hears what was said meanwhile.
        _run("virsh", "suspend", uuid)
        try:
            yield
        finally:
            _run("virsh", "resume", uuid)

    def stop(self, uuid: str) -> None:
        _run("virsh", "destroy", uuid)

    def save(self, uuid: str) -> None:
        _run("virsh", "managedsave", uuid)

    def rename(self, uuid: str) -> str:
        _run("virsh", "domrename", uuid, "renamed")
        return "renamed"

    def undefine(self, uuid: str) -> None:
        _run("virsh", "undefine", uuid)

    def start_with_host(self, uuid: str) -> None:
        _run("virsh", "autostart", uuid)

    @contextmanager
    def daemon_away(self) -> Iterator[None]:
        _run("systemctl", "stop", *self._DAEMON)
        try:
            yield
        finally:
            _run("systemctl", "start", *self._DAEMON)

    def clear(self) -> None:
        """Take every disk from everybody; a guest that does not let go is ended."""
        for name in ("transient", "without-slots", "shut-off"):
            _run("virsh", "destroy", name, check=False)
        for name in ("shut-off", "without-slots", "renamed"):
            _run("virsh", "undefine", "--managed-save", name, check=False)
        with contextlib.suppress(NotFound):
            domain = self._hypervisor.get_domain("with-slots")
            for disk in domain.config:
                self._hypervisor.detach_config(domain.uuid, disk.alias)
            deadline = time.monotonic() + 60
            while domain.live:
                for disk in domain.live:
                    with contextlib.suppress(CommandFailed, NotFound):
                        self._hypervisor.ask_to_detach(domain.uuid, disk.alias)
                if time.monotonic() > deadline:
                    _run("virsh", "destroy", "with-slots")
                time.sleep(1)
                domain = self._hypervisor.get_domain("with-slots")


class RealBed:
    """A throwaway lab machine: Debian, LVM on /dev/disk/by-id/virtio-data0, vblade, the aoe module, nftables."""

    _STATE = Path("/var/lib/aoe-csi")
    _DISK = "/dev/disk/by-id/virtio-data0"
    _SECOND_DISK = "/dev/disk/by-id/virtio-data1"
    _DEADSECS = 4

    def __init__(self) -> None:
        assert os.geteuid() == 0, "the real host's contract needs root, on a machine that may be thrown away"
        assert Path(self._DISK).exists(), f"{self._DISK} is missing: this is no lab machine"
        self.vg = "contract"
        self.thin_pool = "pool"
        self.interface = "san0"
        self.directory = "/srv/contract"
        self._records = Path("/srv/contract-records")
        self._targets: list[RealTarget] = []
        self._prepare_wire()
        self._prepare_group()
        self._prepare_units()
        runner, calls = HostRunner(), BlockingCalls()
        devices, filesystems = HostBlockDevices(runner), HostFileSystems(runner, calls)
        self.lvm: contracts.Lvm = HostLvm(runner)
        self.blocks: contracts.BlockDevices = devices
        self.attached_blocks: contracts.BlockDevices = AttachedBlockDevices(devices, calls, filesystems.has_mark)
        self.export_files = ExportFiles(DurableFiles(self._STATE / "exports"))
        self.export_units: contracts.ExportUnits = HostExportUnits(runner)
        self.initiator: contracts.Initiator = LinuxInitiator(runner, calls)
        self.segments: contracts.Segments = RawSegments()
        self.ingress: contracts.IngressRules = NftIngressRules(runner)
        self.mounts: contracts.Mounts = HostMounts(runner)
        self.filesystems: contracts.FileSystems = filesystems
        self.hypervisor: contracts.Hypervisor = LibvirtHypervisor(calls)
        self.links: contracts.DeviceLinks = HostDeviceLinks()
        self.guests: Guests | None = None
        if shutil.which("virsh"):
            self._guests = RealGuests()
            self.guests = self._guests

    # --- preparing and clearing ---

    def _prepare_wire(self) -> None:
        if not Path("/sys/class/net/san0").exists():
            _run("ip", "netns", "add", "target")
            _run("ip", "link", "add", "san0", "mtu", "9000", "type", "veth", "peer", "name", "peer0", "netns", "target")
            _run("ip", "link", "set", "san0", "up")
            inside = ("ip", "-n", "target", "link")
            _run(*inside, "set", "peer0", "mtu", "9000", "up")
            _run(*inside, "add", "link", "peer0", "name", "peer1", "type", "macvlan", "mode", "bridge")
            _run(*inside, "set", "peer1", "mtu", "9000", "up")
        self.mac = parse_mac(Path("/sys/class/net/san0/address").read_text(encoding="ascii"))
        _run("modprobe", "aoe", "aoe_iflist=san0")
        Path("/dev/etherd/interfaces").write_text("san0", encoding="ascii")
        Path("/sys/module/aoe/parameters/aoe_deadsecs").write_text(str(self._DEADSECS), encoding="ascii")

    def _prepare_group(self) -> None:
        if "contract" in _run("vgs", "--noheadings", "-o", "vg_name").split():
            return
        size = f"{GROUP_BYTES // MIB + 4}m"
        _run("pvcreate", "--yes", "--force", "--force", "--setphysicalvolumesize", size, self._DISK)
        _run("vgcreate", "contract", self._DISK)
        _run(
            "lvcreate",
            "--yes",
            "--type",
            "thin-pool",
            "--size",
            f"{POOL_BYTES}b",
            "--zero",
            "y",
            "-n",
            "pool",
            "contract",
        )

    def _prepare_units(self) -> None:
        """Install the unit and its wrapper as the host's preparation does, unless that has been done."""
        unit = Path("/etc/systemd/system/aoe-csi-export@.service")
        if unit.exists():
            return
        files = Path(exports.__file__).parent / "files"
        libexec = Path("/usr/local/libexec/aoe-csi")
        libexec.mkdir(parents=True, exist_ok=True)
        wrapper = libexec / "export-wrapper"
        shutil.copyfile(files / "export-wrapper", wrapper)
        wrapper.chmod(0o755)
        text = (files / "aoe-csi-export@.service").read_text(encoding="utf-8")
        unit.write_text(text.replace("@STATE@", str(self._STATE)).replace("@LIBEXEC@", str(libexec)), encoding="utf-8")
        _run("systemctl", "daemon-reload")

    def clear(self) -> None:
        """Bring the machine back to where a test begins, and leave nothing of the last one."""
        for target in self._targets:
            target.stop()
        self._targets.clear()
        if self.guests is not None:
            self._guests.clear()
        shutil.rmtree(device_links.DIRECTORY / "guests", ignore_errors=True)
        for line in reversed(Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()):
            if line.split()[1].startswith(self.directory + "/"):
                _run("umount", line.split()[1])
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.rmtree(self._records, ignore_errors=True)
        Path(self.directory).mkdir(parents=True)
        _run("systemctl", "stop", "aoe-csi-export@*.service", check=False)
        shutil.rmtree(self._STATE / "exports", ignore_errors=True)
        (self._STATE / "exports").mkdir(parents=True)
        _run("nft", "flush", "ruleset")
        for device in Path("/sys/block").glob("etherd!e*"):
            Path("/dev/etherd/flush").write_bytes(device.name.removeprefix("etherd!").encode() + b"\0")
        for lv in _run("lvs", "--noheadings", "-o", "lv_name", "contract").split():
            if lv != "pool":
                _run("lvremove", "--yes", f"contract/{lv}")
        if "foreign" in _run("vgs", "--foreign", "--noheadings", "-o", "vg_name").split():
            as_its_owner = 'global/system_id_source="lvmlocal" local/system_id="elsewhere"'
            _run("vgremove", "--yes", "--config", as_its_owner, "foreign")
        _run("wipefs", "--all", "--quiet", self._SECOND_DISK)

    # --- what a test needs ---

    def records(self) -> contracts.RecordFiles:
        return DurableFiles(self._records)

    def leave_temporary(self, name: str) -> None:
        self._records.mkdir(exist_ok=True)
        (self._records / f".{name}.new").write_text("half", encoding="utf-8")

    def write(self, path: str, offset_bytes: int, data: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.pwrite(descriptor, data, offset_bytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self, path: str, offset_bytes: int, length_bytes: int) -> bytes:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return os.pread(descriptor, length_bytes, offset_bytes)
        finally:
            os.close(descriptor)

    @contextmanager
    def opened(self, path: str) -> Iterator[None]:
        # Another process, without O_EXCL: as a guest or an exporter holds a device.
        child = subprocess.Popen(["sh", "-c", 'exec 3<"$1"; echo; exec sleep 1000', "sh", path], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        try:
            yield
        finally:
            child.kill()
            child.wait()
            child.stdout.close()

    @contextmanager
    def busy(self, directory: str) -> Iterator[None]:
        with (Path(directory) / "held-open").open("w", encoding="ascii"):
            yield

    def write_file(self, mounted_at: str, name: str, content: bytes) -> None:
        with (Path(mounted_at) / name).open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())

    def read_file(self, mounted_at: str, name: str) -> bytes:
        return (Path(mounted_at) / name).read_bytes()

    def link(self, path: str) -> None:
        Path(path).symlink_to("/nowhere")

    def add_foreign_group(self) -> str:
        _run("pvcreate", "--yes", "--force", "--force", "--setphysicalvolumesize", "68m", self._SECOND_DISK)
        _run(
            "vgcreate", "--config", 'local/extra_system_ids=["elsewhere"]', "--systemid", "elsewhere", "foreign",
            self._SECOND_DISK,
        )  # fmt: skip
        return "foreign"

    def restarted_lvm(self) -> contracts.Lvm:
        return HostLvm(HostRunner())

    @contextmanager
    def change_running(self, vg: str) -> Iterator[None]:
        unit = f"aoe-csi-lvm-{vg}.service"
        _run("systemd-run", "--quiet", "--collect", f"--unit={unit}", "sleep", "1000")
        try:
            yield
        finally:
            _run("systemctl", "stop", unit)

    @contextmanager
    def lock_held(self, address: Address) -> Iterator[None]:
        directory = Path("/run/aoe-csi/exports")
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / address.instance).open("a", encoding="ascii") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield

    def serve(
        self, address: Address, *, serial: str = "abcdefghi", size_bytes: int = 16 * MIB, twin: bool = False,
        writable: bool = True, admitted: Mac | None = None,
    ) -> RealTarget:  # fmt: skip
        interface = "peer1" if twin else "peer0"
        shown = _run("ip", "-n", "target", "-o", "link", "show", interface)
        mac = parse_mac(shown.split("link/ether ")[1].split()[0])
        backing = Path(self.directory).parent / f"backing-{interface}-{address}"
        backing.unlink(missing_ok=True)
        with backing.open("wb") as handle:
            handle.truncate(size_bytes)
        flags = ["-m", admitted or self.mac, *([] if writable else ["-r"])]
        target = RealTarget(backing, interface=interface, mac=mac, address=address, serial=serial, flags=flags)
        self._targets.append(target)
        target.start()
        return target

    def flush_rules(self) -> None:
        _run("nft", "flush", "ruleset")

    def kill_mkfs(self, device: str, filesystem: str) -> Iterator[int]:
        script = (
            "import sys; from aoe_core.host.blocking import BlockingCalls; "
            "from aoe_core.host.filesystems import HostFileSystems; from aoe_core.host.runner import HostRunner; "
            "HostFileSystems(HostRunner(), BlockingCalls()).make(sys.argv[1], sys.argv[2], 'aoe-mkfs')"
        )
        for moment in range(1, 40):
            child = subprocess.Popen([sys.executable, "-c", script, device, filesystem])
            time.sleep(0.1 * moment)
            ended = child.poll() is not None
            child.kill()
            # The mkfs may have been started in a session of its own; it dies with the machine, so it dies here too.
            for pid in _run("pgrep", "-f", f"^(/sbin/|/usr/sbin/)?mkfs.*{device}", check=False).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            child.wait()
            if ended:
                return
            yield moment

    def wait_out_deadsecs(self, touch: Callable[[], object]) -> None:
        waiting = os.fork()
        if waiting == 0:
            with contextlib.suppress(BaseException):
                touch()
            os._exit(0)
        deadline = time.monotonic() + 20 * self._DEADSECS
        while os.waitpid(waiting, os.WNOHANG)[0] == 0:
            assert time.monotonic() < deadline, "I/O to a dead target never failed"
            time.sleep(0.2)

    def settle(self) -> None:
        _run("udevadm", "settle", "--timeout=30")

    def eventually(self, what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not holds():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} never came")
            time.sleep(0.1)
