"""A cluster in memory: storage and compute machines with the real engine and the real attacher on them.

Each machine runs one process of ours at a time; `restart` replaces it by a fresh one, as after a crash. What must hold
at every moment and what must be gone at the end is checked here, once, for every scenario.
"""

from collections.abc import Callable
from functools import lru_cache

from aoe_core.attach.attacher import Attacher
from aoe_core.attach.host import ComputeHost
from aoe_core.attach.records import staged_check
from aoe_core.errors import Busy, IdentityMismatch, InUse, Unfinished, Unreachable
from aoe_core.fakes.lvm import ThinMedium
from aoe_core.fakes.world import FakeMachine, Process, World
from aoe_core.host.contracts import LvKind
from aoe_core.host.exports import ExportFile, ExportFiles, ExportState, Former
from aoe_core.model import (
    MAX_SLOT,
    AccessMode,
    Address,
    Attachment,
    Durability,
    Mac,
    NodeIdentity,
    NodeName,
    SanName,
    Serial,
    VolumeId,
)
from aoe_core.settings import Exports, Node, Pool, San, Settings
from aoe_core.units import GIB
from aoe_core.volumes.engine import Engine
from aoe_core.volumes.host import StorageHost
from aoe_core.volumes.jobs import JobBoard

SAN = SanName("main")
INTERFACE = "san0"
SHELF = 10
GROUP_BYTES = 6 * GIB
POOL_BYTES = 2 * GIB
RESIDUE = b"of whoever had these disks before"
"""In the volume group's space from the beginning: not ours to wipe, and never to be taken for a file system."""
COMPUTE_NODES = (NodeName("compute1"), NodeName("compute2"))
ENGINE, ATTACHER = "engine", "attacher"
STORAGE_NODE = NodeName("storage1")

_PATIENCE = 60
"""How often something that may still be under way is asked again; each time a little later."""


@lru_cache(maxsize=2048)
def _parsed(name: str, text: str) -> ExportFile:
    return ExportFile.parse(name, text)


class Cluster:
    """One storage machine and two compute machines on one SAN, all up."""

    def __init__(
        self, *, free_addresses: int = 0, threads: bool = False, shelves: int = 1, same_host: bool = False
    ) -> None:
        """Build it.

        `free_addresses`: so many, all others of the first shelf rest for ever. `threads`: wipes and copies run in the
        background as they do in production, and no order of steps is certain any more. `same_host`: the storage machine
        attaches volumes, too.
        """
        self._threads = threads
        self.world = World()
        self.storage = self.world.add_machine(STORAGE_NODE, san0=SAN)
        self.storage.lvm.add_group("vg0", GROUP_BYTES).foul(RESIDUE)
        self.storage.lvm.add_thin_pool("vg0", "tp0", POOL_BYTES)
        self.compute = {name: self.world.add_machine(name, san0=SAN) for name in COMPUTE_NODES}
        if same_host:
            self.compute[STORAGE_NODE] = self.storage
        self.settings = Settings(
            node=STORAGE_NODE,
            san=(San(name=SAN, interface=INTERFACE, shelves=((SHELF, SHELF + shelves - 1),)),),
            pool=(
                Pool(name="thick", volume_group="vg0"),
                Pool(name="thin", volume_group="vg0", thin_pool="tp0"),
            ),
            known_node=tuple(Node(name=name) for name in COMPUTE_NODES),
            exports=Exports(rest_s=660),
        )
        if free_addresses:
            self._use_up(free_addresses)
        self._processes: dict[tuple[str, str], Process] = {}
        """(Machine, role) → its process; on a machine that is both there are two, as in a cluster."""
        self.engine = self.new_engine()
        self.attachments: dict[tuple[VolumeId, NodeName], Attachment] = {}
        """What the orchestrator remembers: publish_context, written once."""
        self.attachers = {name: self._start_attacher(name) for name in self.compute}

    def _use_up(self, left: int) -> None:
        """Leave tombstones on all addresses but the first few: revoked at a time that never comes to rest."""
        never_s = int(self.world.clock.now()) + 10**9
        directory = self.storage.record_directory("exports")
        for slot in range(left, MAX_SLOT + 1):
            file = ExportFile(
                address=Address(SHELF, slot),
                state=ExportState.RESTING,
                volume_id=VolumeId("gone"),
                device="/dev/vg0/v-gone",
                serial=Serial("gonegoneg"),
                node=NodeName("elsewhere"),
                node_id="elsewhere|00000000|",
                boot="00000000",
                mode=AccessMode.SINGLE_NODE_SINGLE_WRITER,
                writable=True,
                block=True,
                san=SAN,
                interface=INTERFACE,
                macs=(),
                durability=Durability.SYNC,
                buffers=16,
                exporter="/usr/sbin/vblade",
                granted_s=0,
                size_bytes=0,
                former=(Former(node=NodeName("elsewhere"), boot="00000000", revoked_s=never_s),),
            )
            directory.seen[file.name] = file.text()
        directory.sync()

    # --- processes ---

    def restart(self) -> None:
        """Bring every machine up and start our program anew where it is dead, as after any crash."""
        for machine in self.world.machines.values():
            if not machine.powered:
                self.world.boot(machine.name)
        if not self._processes[self.storage.name, ENGINE].alive:
            self.engine = self.new_engine()
            self.persist("recovery", self.engine.recover)
            self.persist("tending", self.engine.tend)
        for name in self.compute:
            if not self._processes[name, ATTACHER].alive:
                self.attachers[name] = self._start_attacher(name)
                self.attachers[name].tend()

    def _start(self, machine: FakeMachine, role: str) -> Process:
        old = self._processes.get((machine.name, role))
        if old is not None:
            old.kill()
        process = self._processes[machine.name, role] = machine.start_process(role)
        return process

    def new_engine(self) -> Engine:
        """Return the engine of a fresh process, which has not recovered yet; a former one is dead."""
        process = self._start(self.storage, ENGINE)
        host = StorageHost(
            lvm=process.lvm,
            blocks=process.blocks,
            export_files=ExportFiles(process.records("exports")),
            export_units=process.export_units,
            segments=process.segments,
            interface_mac=self._storage_mac,
            is_staged=staged_check(process.records("staged"), self.storage.boot_id),
            now_s=lambda: int(self.world.clock.now()),
        )
        return Engine(self.settings, host, jobs=JobBoard(threads=self._threads))

    def _start_attacher(self, node: NodeName) -> Attacher:
        return self.attacher_of(node, self._start(self.compute[node], ATTACHER))

    def attacher_of(self, node: NodeName, process: Process) -> Attacher:
        """Return the attacher of a process on a node."""
        host = ComputeHost(
            initiator=process.initiator,
            ingress=process.ingress,
            mounts=process.mounts,
            filesystems=process.filesystems,
            blocks=process.attached_blocks,
            record_files=process.records("staged"),
            locks=process.locks,
            interface_mac=lambda interface: self._linked_mac(node, interface),
            boot=self.compute[node].boot_id,
            now_s=lambda: int(self.world.clock.now()),
            sleep=self.world.clock.sleep,
        )
        return Attacher(Settings(node=node, san=(San(name=SAN, interface=INTERFACE),)), host)

    def _linked_mac(self, node: NodeName, interface: str) -> Mac:
        card = self.compute[node].cards.get(interface)
        if card is None or not card.linked:
            raise Unreachable(f"network interface {interface} has no link")
        return card.mac

    def _storage_mac(self, interface: str) -> Mac | None:
        card = self.storage.cards.get(interface)
        return card.mac if card is not None else None

    def identity(self, node: NodeName) -> NodeIdentity:
        """Return a compute node as its registration names it."""
        machine = self.compute[node]
        return NodeIdentity(name=node, boot=machine.boot_id, macs=((SAN, (machine.cards[INTERFACE].mac,)),))

    def persist(self, what: str, act: Callable[[], object]) -> None:
        """Do something as an orchestrator does: again and again, until it is done. Raises: IdentityMismatch."""
        refusals: list[str] = []
        for tried in range(_PATIENCE):
            try:
                act()
            except IdentityMismatch:
                raise
            except (Busy, Unfinished, Unreachable, InUse) as error:
                refusals.append(f"{type(error).__name__}: {error}")
                self.world.clock.sleep(min(5 * (tried + 1), 60))
            else:
                return
        raise AssertionError(f"{what} never came to its end: {refusals[0]} … {refusals[-1]}")

    # --- what is there ---

    def export_files(self) -> tuple[ExportFile, ...]:
        """Return the export files as they are seen on the storage machine."""
        seen = self.storage.record_directory("exports").seen
        return tuple(_parsed(name, text) for name, text in sorted(seen.items()))

    def held(self, volume_id: VolumeId) -> tuple[ExportFile, ...]:
        """Return the grants of a volume that are not wholly revoked."""
        return tuple(
            file
            for file in self.export_files()
            if file.volume_id == volume_id and file.state is not ExportState.RESTING
        )

    def is_staged(self, volume_id: VolumeId, node: NodeName) -> bool:
        """Say whether a node has a whole record of a volume from its present boot."""
        return any(
            one.attachment.volume_id == volume_id and one.staged and one.boot == self.compute[node].boot_id
            for one in self.attachers[node].records()
        )

    # --- what must hold ---

    def check_always(self) -> None:
        """Prove what must hold at every moment."""
        assert self.world.harms == []
        exporters = self.storage.exports.exporters
        files = {file.address: file for file in self.export_files()}
        for address, exporter in exporters.items():
            file = files.get(address)
            assert file is not None, f"{address} is served without a file"
            assert file.volume_id == exporter.file.volume_id, f"{address} serves another volume than its file says"
            assert file.state is not ExportState.RESTING, f"{address} is served and counts as free"
            assert len(exporter.file.macs) >= 1, f"{address} admits everybody"
        for lv in self.storage.lvm.volumes():
            writers = [one for one in exporters.values() if one.device is lv.device and one.file.writable]
            nodes = {one.file.node for one in writers}
            many = all(one.file.mode is AccessMode.MULTI_NODE_MULTI_WRITER for one in writers)
            assert len(nodes) <= (2 if many else 1), f"{lv.name} has writers {sorted(nodes)}"

    def check_nothing_left(self) -> None:
        """Prove that everything is gone after everything was deleted."""
        self.check_always()
        left = [lv.name for lv in self.storage.lvm.volumes() if lv.kind is not LvKind.THIN_POOL]
        assert left == [], f"logical volumes are left: {left}"
        held = [file.name for file in self.export_files() if file.state is not ExportState.RESTING]
        assert held == [], f"grants are left: {held}"
        assert not self.storage.exports.active, f"units are left: {self.storage.exports.active}"
        assert not self.storage.exports.exporters, f"exporters are left: {self.storage.exports.exporters}"
        assert not self.storage.lvm.running, f"changes still run: {self.storage.lvm.running}"
        self._check_nothing_to_read()
        for name, machine in self.compute.items():
            mounts = [one.mount.target for one in machine.mounts.table[1:]]
            assert mounts == [], f"{name} has mounts left: {mounts}"
            records = sorted(machine.record_directory("staged").seen)
            assert records == [], f"{name} has stage records left: {records}"
            pins = {interface: held for interface, held in machine.ingress.pins.items() if held}
            assert pins == {}, f"{name} has pins left: {pins}"
            devices = sorted(map(str, machine.initiator.known))
            assert devices == [], f"{name} has devices left: {devices}"
            paths = [path for path in machine.mounts.paths if path.startswith("/pods/")]
            assert paths == [], f"{name} has target paths left: {paths}"

    def _check_nothing_to_read(self) -> None:
        """Prove that free space shows nobody's data."""
        group = self.storage.lvm.groups["vg0"]
        readable = [one for one in group.free if set(group.content.get(one, {}).values()) - {RESIDUE}]
        assert readable == [], f"free extents hold data: {readable}"
        pool = group.volumes["tp0"]
        thin = [lv.medium for lv in group.volumes.values() if isinstance(lv.medium, ThinMedium)]
        assert pool.used_chunks() == len({id(chunk) for medium in thin for chunk in medium.chunks.values()})
