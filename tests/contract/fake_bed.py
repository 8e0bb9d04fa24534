"""The host in memory."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from tests.contract.beds import GROUP_BYTES, POOL_BYTES, Guests, export_file

from aoe_core.errors import AoECsiError
from aoe_core.fakes.hypervisor import Guest, Unplug
from aoe_core.fakes.world import FakeMachine, Killed, Step, World
from aoe_core.host import contracts
from aoe_core.host.exports import ExportFile, ExportFiles
from aoe_core.model import Address, Mac, Serial
from aoe_core.units import MIB


class FakeTarget:
    """A target on a machine of its own."""

    def __init__(self, machine: FakeMachine, file: ExportFile, name: str) -> None:
        self._machine = machine
        self._process = machine.start_process("target")
        self._name = name
        assert file.address is not None
        self._address = file.address
        self.mac = machine.cards["san0"].mac
        ExportFiles(self._process.records("exports")).put(file)

    def start(self) -> None:
        self._process.export_units.start(self._address)

    def stop(self) -> None:
        self._process.export_units.stop(self._address)

    def grow(self, size_bytes: int) -> None:
        self._process.lvm.extend("vg", self._name, size_bytes)

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        return self._machine.read(f"/dev/vg/{self._name}", offset_bytes, length_bytes)


class FakeGuests:
    """Domains of the machine in memory."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine
        self._state = machine.hypervisor

    def running(self, *, slots: bool = True) -> str:
        guest = self._state.define("with-slots" if slots else "without-slots", slots=4 if slots else 0)
        self._state.start(guest)
        return guest.uuid

    def shut_off(self) -> str:
        return self._state.define("shut-off").uuid

    def transient(self) -> str:
        return self._state.define("transient", persistent=False).uuid

    def name(self, uuid: str) -> str:
        return self._guest(uuid).name

    @contextmanager
    def deaf(self, uuid: str) -> Iterator[None]:
        self._guest(uuid).unplug = Unplug.IGNORES
        yield
        self._state.listens(self._guest(uuid))

    def stop(self, uuid: str) -> None:
        self._state.stop(self._guest(uuid))

    def save(self, uuid: str) -> None:
        self._state.save(self._guest(uuid))

    def rename(self, uuid: str) -> str:
        self._guest(uuid).name = "renamed"
        return "renamed"

    def undefine(self, uuid: str) -> None:
        self._state.undefine(self._guest(uuid))

    def start_with_host(self, uuid: str) -> None:
        self._guest(uuid).autostart = True

    @contextmanager
    def daemon_away(self) -> Iterator[None]:
        self._state.answers = False
        yield
        self._state.answers = True

    def _guest(self, uuid: str) -> Guest:
        return self._state.guests[uuid]


class FakeBed:
    """A machine in memory."""

    def __init__(self) -> None:
        self.world = World()
        self.machine = self.world.add_machine("host", san0="main")
        self.process = self.machine.start_process("test")
        self.machine.lvm.add_group("vg", GROUP_BYTES)
        self.machine.lvm.add_thin_pool("vg", "pool", POOL_BYTES)
        self._others: dict[str, FakeMachine] = {}
        self.lvm: contracts.Lvm = self.process.lvm
        self.blocks: contracts.BlockDevices = self.process.blocks
        self.attached_blocks: contracts.BlockDevices = self.process.attached_blocks
        self.export_files = ExportFiles(self.process.records("exports"))
        self.export_units: contracts.ExportUnits = self.process.export_units
        self.initiator: contracts.Initiator = self.process.initiator
        self.segments: contracts.Segments = self.process.segments
        self.ingress: contracts.IngressRules = self.process.ingress
        self.mounts: contracts.Mounts = self.process.mounts
        self.filesystems: contracts.FileSystems = self.process.filesystems
        self.hypervisor: contracts.Hypervisor = self.process.hypervisor
        self.links: contracts.DeviceLinks = self.process.links
        self.guests: Guests | None = FakeGuests(self.machine)
        self.vg = "vg"
        self.thin_pool = "pool"
        self.interface = "san0"
        self.mac = self.machine.cards["san0"].mac
        self.directory = "/srv"
        self.mounts.make_directory("/srv")
        # A boot leaves the interface closed to everybody; these tests begin without rules, as on the lab machine.
        self.machine.ingress.flush()

    def records(self) -> contracts.RecordFiles:
        return self.process.records("records")

    def leave_temporary(self, name: str) -> None:
        self.machine.record_directory("records").leftovers[name] = "half"

    def write(self, path: str, offset_bytes: int, data: bytes) -> None:
        self.machine.write(path, offset_bytes, data)

    def read(self, path: str, offset_bytes: int, length_bytes: int) -> bytes:
        return self.machine.read(path, offset_bytes, length_bytes)

    @contextmanager
    def opened(self, path: str) -> Iterator[None]:
        device = self.machine.get_device(path)
        device.open("test")
        yield
        device.close("test")

    @contextmanager
    def busy(self, directory: str) -> Iterator[None]:
        self.machine.mounts.busy.append(directory)
        yield
        self.machine.mounts.busy.remove(directory)

    def write_file(self, mounted_at: str, name: str, content: bytes) -> None:
        self.machine.write_file(mounted_at, name, content)

    def read_file(self, mounted_at: str, name: str) -> bytes:
        return self.machine.read_files(mounted_at)[name]

    def link(self, path: str) -> None:
        self.machine.mounts.add_path(path, "link")

    def add_foreign_group(self) -> str:
        group = self.machine.lvm.add_group("foreign", 64 * MIB)
        group.system_id, group.foreign = "elsewhere", True
        return "foreign"

    def restarted_lvm(self) -> contracts.Lvm:
        return self.machine.start_process("restarted").lvm

    @contextmanager
    def change_running(self, vg: str) -> Iterator[None]:
        def dies_waiting(step: Step) -> None:
            assert step.runs_on is not None
            step.runs_on()
            step.process.kill()

        other = self.machine.start_process("other")
        self.world.on_step = dies_waiting
        with contextlib.suppress(Killed):
            other.lvm.retag(vg, "v-missing")
        self.world.on_step = None
        yield
        self.machine.lvm.finish_due(everything=True)

    @contextmanager
    def lock_held(self, address: Address) -> Iterator[None]:
        self.machine.exports.foreign_locks.add(address)
        yield
        self.machine.exports.foreign_locks.remove(address)
        self.world.settle()

    def serve(
        self, address: Address, *, serial: str = "abcdefghi", size_bytes: int = 16 * MIB, twin: bool = False,
        writable: bool = True, admitted: Mac | None = None,
    ) -> FakeTarget:  # fmt: skip
        machine_name = "twin" if twin else "target"
        machine = self._others.get(machine_name)
        if machine is None:
            machine = self._others[machine_name] = self.world.add_machine(machine_name, san0="main")
            machine.lvm.add_group("vg", GROUP_BYTES)
        name = f"t{address}"
        machine.start_process("setup").lvm.create("vg", name, size_bytes, ())
        file = replace(
            export_file("san0", address, f"/dev/vg/{name}", size_bytes),
            serial=Serial(serial),
            writable=writable,
            macs=(admitted or self.mac,),
        )
        target = FakeTarget(machine, file, name)
        target.start()
        return target

    def flush_rules(self) -> None:
        self.machine.ingress.flush()

    def kill_mkfs(self, device: str, filesystem: str) -> Iterator[int]:
        moment = 0
        while True:
            passed = 0

            def at_moment(step: Step, last: int = moment) -> None:
                nonlocal passed
                passed += 1
                if passed > last:
                    step.process.kill()

            self.world.on_step = at_moment
            try:
                self.machine.start_process("mkfs").filesystems.make(device, filesystem, "aoe-mkfs")
            except Killed:
                self.world.on_step = None
                yield moment
            else:
                self.world.on_step = None
                return
            moment += 1

    def wait_out_deadsecs(self, touch: Callable[[], object]) -> None:
        with contextlib.suppress(AoECsiError):
            touch()
        self.world.clock.sleep(self.initiator.deadsecs() + 1)

    def settle(self) -> None:
        self.world.settle()

    def eventually(self, what: str, holds: Callable[[], bool]) -> None:
        for _ in range(100):
            if holds():
                return
            self.world.clock.sleep(1)
        raise AssertionError(f"{what} never came")
