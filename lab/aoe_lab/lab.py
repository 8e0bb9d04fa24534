"""A lab: a network, the machines on it, and the directory that holds their state, all under one name.

Owns: start and end of everything together. A lab held as a context manager ends with the process that holds it, however
that ends: a watcher process (watcher.py) waits for it and cleans up. A lab that was kept runs until `end`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from aoe_lab import process, progress, qemu, source_tree
from aoe_lab.cachedir import CHECKOUT
from aoe_lab.errors import LabError
from aoe_lab.image import Image, ensure_image, image_of
from aoe_lab.machine import Machine, disk_servers
from aoe_lab.network import Network
from aoe_lab.tools_disk import ensure_tools_disk
from aoe_lab.topology import Topology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    from aoe_lab.process import Child
    from aoe_lab.topology import MachineSpec

NAME = re.compile(r"[a-z][a-z0-9-]{0,20}")  # Part of the paths of unix sockets, which have 108 characters.
KEEP = b"keep"
WATCHER_PID = "watcher.pid"


def default_name() -> str:
    return os.environ.get("AOE_LAB_NAME") or "lab"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """A running lab; `machines` in the topology's order."""

    name: str
    topology: Topology
    network: Network
    machines: tuple[Machine, ...]
    _watcher: Child | None = None

    @classmethod
    def start(cls, topology: Topology, *, name: str | None = None, binaries: Sequence[Path] = ()) -> Self:
        """Build what is missing, boot all machines and push the code; `binaries` go into the tools disk's bin/.

        Raises: LabError if a lab of that name runs already; BootFailed with the end of a machine's console.
        """
        name = name or default_name()
        place = _place(name)
        if os.geteuid() != 0:
            raise LabError("a lab needs root, for its network namespace and for building its image: run it with sudo")
        images = {spec.name: image_of(spec) for spec in topology.machines()}
        tools_disk = ensure_tools_disk(binaries)
        accelerator = qemu.accelerator(ensure_image())
        with _lock(name):
            if Network(name).processes():
                raise LabError(f"a lab named {name!r} runs already: attach to it, stop it, or use another name")
            _destroy(name)  # What a run that crashed left behind.
            place.mkdir(parents=True)
            watcher = _watch(name)
            try:
                (place / WATCHER_PID).write_text(str(watcher.pid))
                (place / "lab.json").write_text(topology.to_json())
                for spec in topology.machines():
                    _create(spec, place / spec.name, images[spec.name], tools_disk, name=name, accelerator=accelerator)
                Network(name).create(topology)
                lab = cls._load(name, watcher)
                with progress.step(f"booting {len(lab.machines)} machines"):
                    _boot_all(lab.machines)
            except BaseException:
                _destroy(name)
                _release(watcher)
                raise
        return lab

    @classmethod
    def attach(cls, name: str | None = None) -> Self:
        """Return a running lab for steering; it goes on running after us. Raises: LabError if there is none."""
        name = name or default_name()
        if not is_running(name):
            raise LabError(f"no lab named {name!r} runs: start it with `python -m aoe_lab --name {name} up`")
        return cls._load(name, None)

    @classmethod
    def _load(cls, name: str, watcher: Child | None) -> Self:
        topology = Topology.from_json((_place(name) / "lab.json").read_text())
        network = Network(name)
        machines = tuple(Machine.load(spec, _place(name) / spec.name, network.enter) for spec in topology.machines())
        return cls(name=name, topology=topology, network=network, machines=machines, _watcher=watcher)

    @property
    def directory(self) -> Path:
        """Where the lab's state is; it goes with the lab."""
        return _place(self.name)

    def machine(self, name: str) -> Machine:
        for machine in self.machines:
            if machine.name == name:
                return machine
        known = ", ".join(machine.name for machine in self.machines)
        raise LabError(f"lab {self.name!r} has no machine {name!r}; it has: {known}")

    def push_code(self, machines: Iterable[Machine] | None = None) -> None:
        """Replace the project's code by the checkout's on some machines, or on all."""
        packed = source_tree.pack()
        at_once(lambda machine: machine.push_code(packed), self.machines if machines is None else machines)

    def heal(self) -> None:
        """Bring every machine back to a sound state, whatever was done to it; see `Machine.heal`."""
        at_once(lambda machine: machine.heal(), self.machines)

    def keep(self) -> None:
        """Let the lab run on after this process."""
        if self._watcher is not None:
            _release(self._watcher)

    def stop(self) -> None:
        """End the lab; one we attached to is left running."""
        if self._watcher is not None:
            end(self.name)
            _release(self._watcher)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def is_running(name: str) -> bool:
    return bool(Network(name).processes()) and (_place(name) / "lab.json").exists()


def end(name: str, *, if_watched_by: int | None = None) -> None:
    """End a lab and remove all it left; it is not an error when there is nothing.

    `if_watched_by`: only if it still is the lab this watcher was started for, and not a later one of the same name.
    """
    with _lock(name):
        if if_watched_by is None or process.read_pid(_place(name) / WATCHER_PID) == if_watched_by:
            _destroy(name)


def _destroy(name: str) -> None:
    Network(name).destroy()
    shutil.rmtree(_place(name), ignore_errors=True)


def at_once(act: Callable[[Machine], object], machines: Iterable[Machine]) -> None:
    """Do something with several machines at the same time; the first failure is raised without waiting for the rest."""
    pool = ThreadPoolExecutor(max_workers=64, thread_name_prefix="lab")
    try:
        for future in [pool.submit(act, machine) for machine in machines]:
            future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _boot_all(machines: Iterable[Machine]) -> None:
    packed = source_tree.pack()

    def bring_up(machine: Machine) -> None:
        machine.boot()
        machine.wait_ready()
        machine.push_code(packed)

    at_once(bring_up, machines)


def _place(name: str) -> Path:
    if not NAME.fullmatch(name):
        raise LabError(f"lab name {name!r}: 1 to 21 lower-case letters, digits and dashes, a letter first")
    # Not in the cache: its path may be long, and unix sockets are in here.
    return Path(os.environ.get("AOE_LAB_STATE") or "/var/tmp/aoe-lab") / name


@contextmanager
def _lock(name: str) -> Iterator[None]:
    root = _place(name).parent
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _create(spec: MachineSpec, place: Path, image: Image, tools_disk: Path, *, name: str, accelerator: str) -> None:
    """Write all a machine needs into its directory, its emulator's command line included: it may outlive our code."""
    place.mkdir()
    root_disk = place / "root.qcow2"
    backing = ["-F", "raw", "-b", str(image.root)]
    process.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, root_disk], timeout_s=30)
    disks = disk_servers(spec, place)
    for disk in disks:
        disk.create()
    argv = qemu.machine_argv(
        spec,
        image,
        accelerator=accelerator,
        place=place,
        root_disk=root_disk,
        tools_disk=tools_disk,
        machine_id=hashlib.md5(f"{name}/{spec.name}".encode(), usedforsecurity=False).hexdigest(),
        disk_arguments=[word for disk in disks for word in disk.qemu_arguments()],
    )
    (place / "qemu.json").write_text(json.dumps([str(word) for word in argv], indent=1))
    (place / "login-key").symlink_to(image.key)


def _watch(name: str) -> Child:
    env = {"PYTHONPATH": str(CHECKOUT / "lab")}
    return process.start_with_pipe([sys.executable, "-m", "aoe_lab.watcher", name], env=env)


def _release(watcher: Child) -> None:
    if watcher.poll() is None:
        watcher.communicate(KEEP)
