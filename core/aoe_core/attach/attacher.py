"""The compute node's engine as one object: what the CSI node server and guests call.

Thin: takes the volume's lock, hands over to staging or publishing, and runs watchdog and sweeper beside the calls. A
lock is of one volume or one address; no host command runs under anything wider, so a dead device blocks only itself.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from aoe_core.attach.host import ComputeHost
from aoe_core.attach.prove import address_of, prove_device
from aoe_core.attach.publishing import Publishing
from aoe_core.attach.records import FilesystemUse, StageRecord, StageRecords, Use, records_of
from aoe_core.attach.staged import StagedVolumes, device_path, is_read_only
from aoe_core.attach.staging import Staging
from aoe_core.attach.sweeper import Sweeper
from aoe_core.attach.watchdog import Watchdog
from aoe_core.errors import AoECsiError, CommandFailed, InUse, NotFound, Unfinished, Unreachable
from aoe_core.host.attached import AttachedBlockDevices
from aoe_core.host.blocking import BlockingCalls
from aoe_core.host.blocks import HostBlockDevices
from aoe_core.host.contracts import AoEDevice, Usage
from aoe_core.host.filesystems import HostFileSystems
from aoe_core.host.ingress import NftIngressRules
from aoe_core.host.initiator import LinuxInitiator
from aoe_core.host.links import boot_id, interface_mac
from aoe_core.host.lock_files import DIRECTORY, LockFiles
from aoe_core.host.mounts import HostMounts
from aoe_core.host.runner import HostRunner
from aoe_core.locks import Locks
from aoe_core.model import Address, Attachment, NodeIdentity, SanName, Transport, VolumeId
from aoe_core.settings import Settings

log = logging.getLogger(__name__)

_TEND_S = 30.0
"""Between two rounds of watchdog and sweeper."""
_LOOK_S = 0.5
_REVALIDATE_S = 2.0


class Attacher:
    """Stages, publishes and cleans up volumes on this machine."""

    def __init__(self, settings: Settings, host: ComputeHost, prepare: Callable[[], None] = lambda: None) -> None:
        self._settings = settings
        self._host = host
        self._prepare = prepare
        self._locks = Locks(host.locks)
        self._records = StageRecords(host.record_files)
        self._staged = StagedVolumes(host, self._records)
        self._staging = Staging(host=host, settings=settings, records=self._records, staged=self._staged)
        self._publishing = Publishing(host=host, records=self._records, staged=self._staged)
        self._sweeper = Sweeper(
            host=host, settings=settings, records=self._records, staged=self._staged, locks=self._locks
        )
        self._watchdog = Watchdog(
            host=host, settings=settings, records=self._records, staged=self._staged, locks=self._locks
        )
        self._stop = threading.Event()

    # --- this node ----------------------------------------------------------------------------------------------

    def identity(self) -> NodeIdentity:
        """Return this node's name, boot and SAN MACs. Raises: Unreachable when a SAN interface is missing or down."""
        macs = tuple((SanName(san.name), (self._host.interface_mac(san.interface),)) for san in self._settings.san)
        return NodeIdentity(name=self._settings.node_name, boot=self._host.boot, macs=macs)

    def sans(self) -> tuple[SanName, ...]:
        """Return the SANs this node is on."""
        return tuple(SanName(san.name) for san in self._settings.san)

    def max_volumes(self) -> int:
        """Return how many volumes this node takes at once."""
        return self._settings.initiator.max_volumes

    def records(self) -> tuple[StageRecord, ...]:
        """Return what is staged, or half-staged, on this node."""
        return self._records.all()

    def present_records(self) -> tuple[StageRecord, ...]:
        """Return those of this boot: one of an earlier boot describes nothing that is there."""
        return tuple(record for record in self._records.all() if record.boot == self._host.boot)

    # --- the calls ----------------------------------------------------------------------------------------------

    def stage(self, attachment: Attachment, staging_path: str, use: Use) -> None:
        """Bring the device up, prove it, and for a file system make or check it and mount it at `staging_path`.

        Raises: IdentityMismatch, InUse (the device is open), Conflict (staged otherwise, or another file system),
        Unreachable (target silent), Invalid (path, option, SAN), Busy; Unfinished instead of any while something is
        left here of an earlier attempt, or of a former grant.
        """
        with self._holding(attachment.volume_id), self._holding_both(attachment):
            self._staging.stage(attachment, staging_path, use)

    def unstage(self, volume_id: VolumeId, staging_path: str) -> None:
        """Unmount, prove the device closed, drop pins and record. Raises: InUse, Unfinished, Conflict, Busy."""
        # Its address is read under the lock: another process may have staged it anew, elsewhere, a moment ago.
        with self._holding(volume_id), self._holding_addresses(self._recorded_address(volume_id)):
            self._staging.unstage(volume_id, staging_path)

    def publish(
        self,
        volume_id: VolumeId,
        staging_path: str,
        target_path: str,
        use: Use,
        *,
        read_only: bool,
        attachment: Attachment | None = None,
    ) -> None:
        """Bind the staged volume to a target path. `attachment`: the grant it is to be used through, if the caller
        knows it; through a former one it is not published, but staged anew. Raises: NotFound, InUse, Conflict, Invalid,
        Busy, what stage raises."""
        with self._holding(volume_id):
            if attachment is not None and self._staging.is_behind(attachment, staging_path):
                with self._holding_both(attachment):
                    self._staging.catch_up(attachment, staging_path, use, target_path)
            self._publishing.publish(volume_id, staging_path, target_path, use, read_only=read_only)

    def unpublish(self, volume_id: VolumeId, target_path: str) -> None:
        """Undo publish and remove the target path. Raises: InUse, Unfinished, Invalid, Busy."""
        with self._holding(volume_id):
            self._publishing.unpublish(volume_id, target_path)

    def expand(self, volume_id: VolumeId, path: str, required_bytes: int) -> int:
        """Let the device and its file system take the volume's new size; return the device's size in bytes.

        Raises: NotFound, Unreachable (the target still has the old size, or is silent), IdentityMismatch, Busy.
        """
        with self._holding(volume_id):
            record = self._record_at(volume_id, path)
            if record.attachment.transport is Transport.LOCAL:
                size_bytes = self._host.blocks.size_bytes(record.attachment.device)
                if size_bytes < required_bytes:
                    raise Unreachable(
                        f"{record.attachment.device} has {size_bytes} bytes and volume {volume_id} is to have "
                        f"{required_bytes}; expand the volume on its storage node first"
                    )
            else:
                size_bytes = self._revalidated(record, required_bytes).size_bytes
            if isinstance(record.use, FilesystemUse) and not is_read_only(record):
                self._host.filesystems.grow(device_path(record.attachment), record.staging_path, record.use.filesystem)
            return size_bytes

    def usage(self, volume_id: VolumeId, path: str) -> Usage | int:
        """Return a file system's usage, or a block device's size in bytes. Raises: NotFound (also for a path that is
        not this volume's), Unfinished when the device does not answer."""
        record = self._record_at(volume_id, path)
        if isinstance(record.use, FilesystemUse):
            if not self._staged.mounts_at(self._staged.resolved(path)):
                raise NotFound(f"volume {volume_id} is not mounted at {path}; stage and publish it there again")
            return self._host.filesystems.usage(path)
        if record.attachment.transport is Transport.LOCAL:
            return self._host.blocks.size_bytes(record.attachment.device)
        device = self._staged.device(address_of(record.attachment))
        if device is None:
            raise Unreachable(f"device {record.attachment.address} of volume {volume_id} is gone; stage it again")
        return device.size_bytes

    def is_open(self, attachment: Attachment) -> bool:
        """Say whether anybody on this machine has a volume's device open. Of a local one also its exporters count,
        where other nodes have grants. Raises: NotFound."""
        if attachment.transport is Transport.LOCAL:
            return self._host.blocks.open_count(attachment.device) > 0
        return self._host.initiator.in_use(address_of(attachment))

    # --- beside the calls ---------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make rules stand and the driver ready, for whoever stages without tending: a command. Raises: NotFound (an
        interface is missing), CommandFailed."""
        self._prepare()

    def tend(self) -> None:
        """Let watchdog and sweeper make one round; what fails is logged and tried in the next."""
        for name, work in (("watchdog", self._watchdog.look), ("sweeper", self._sweeper.sweep)):
            try:
                work()
            except AoECsiError as error:
                log.warning("round not finished", extra={"by": name, "error": str(error)})

    def start_background(self) -> None:
        """Prepare the driver, then tend the devices every 30 s, in a thread of its own."""
        threading.Thread(target=self._tend_for_ever, name="tend", daemon=True).start()

    def stop_background(self) -> None:
        """Ask the thread to end after what it is doing."""
        self._stop.set()

    # --- parts --------------------------------------------------------------------------------------------------

    def _tend_for_ever(self) -> None:
        prepared = False
        while not self._stop.is_set():
            try:
                if not prepared:
                    self._prepare()
                    prepared = True
                self.tend()
            except AoECsiError as error:
                log.error("the AoE driver is not prepared", extra={"error": str(error)})
            except Exception:
                # The thread must outlive a bug in one round: without it no dead device would ever come back.
                log.exception("round failed")
            self._stop.wait(_TEND_S)

    def _holding(self, volume_id: VolumeId) -> AbstractContextManager[None]:
        return self._locks.hold(f"volume {volume_id}")

    def _holding_both(self, attachment: Attachment) -> AbstractContextManager[None]:
        """Hold the address of a grant, and that of a former one its volume is still staged through. Raises: Busy;
        Unfinished when the records cannot be read, and it may be staged."""
        try:
            former = self._recorded_address(attachment.volume_id)
        except CommandFailed as error:
            raise Unfinished(str(error)) from error
        return self._holding_addresses(attachment.address, former)

    @contextmanager
    def _holding_addresses(self, *addresses: Address | None) -> Iterator[None]:
        with ExitStack() as held:
            for address in sorted({one for one in addresses if one is not None}):
                held.enter_context(self._locks.hold(f"address {address}"))
            yield

    def _recorded_address(self, volume_id: VolumeId) -> Address | None:
        record = self._records.find(volume_id)
        return record.attachment.address if record is not None else None

    def _record_at(self, volume_id: VolumeId, path: str) -> StageRecord:
        """Return the record of a staged volume that has this path. Raises: NotFound."""
        record = self._staged.find(volume_id)
        resolved = self._staged.resolved(path) if path.startswith("/") else path
        if record is None or not record.staged or resolved not in (record.staging_path, *record.targets):
            raise NotFound(f"volume {volume_id} is not at {path} on this node; stage and publish it there first")
        return record

    def _revalidated(self, record: StageRecord, required_bytes: int) -> AoEDevice:
        """Have the device identified until it has its new size; return it, proven again."""
        address, waited_s, tell_s = address_of(record.attachment), 0.0, 0.0
        mac = record.pinned_mac
        if mac is None:
            raise InUse(f"volume {record.attachment.volume_id} was never proven on this node; stage it first")
        while True:
            if waited_s >= tell_s:
                self._host.initiator.revalidate(address)
                tell_s += _REVALIDATE_S
            device = self._staged.device(address)
            if device is not None and device.up and device.size_bytes >= required_bytes:
                prove_device(record.attachment, mac, device, self._host.initiator.identify(address))
                return device
            if waited_s >= self._settings.initiator.stage_s:
                shown = "is gone" if device is None else f"has {device.size_bytes} bytes" if device.up else "is down"
                raise Unreachable(
                    f"device {address} of volume {record.attachment.volume_id} {shown} and is to have at least "
                    f"{required_bytes} bytes; check the export on its storage node"
                )
            self._host.sleep(_LOOK_S)
            waited_s += _LOOK_S


def open_attacher(settings: Settings, *, enter_host: bool = False) -> Attacher:
    """Return the attach engine of this machine, made of its real parts. `enter_host`: see HostRunner."""
    runner, calls = HostRunner(enter_host=enter_host), BlockingCalls()
    filesystems = HostFileSystems(runner, calls)
    ingress = NftIngressRules(runner)
    initiator = LinuxInitiator(runner, calls)
    host = ComputeHost(
        initiator=initiator,
        ingress=ingress,
        mounts=HostMounts(runner, runner.process / "mountinfo"),
        filesystems=filesystems,
        blocks=AttachedBlockDevices(HostBlockDevices(runner), calls, filesystems.has_mark),
        record_files=records_of(Path(settings.state_directory)),
        # The host's own directory, also from a container: a command on the host must find it.
        locks=LockFiles(runner.root / DIRECTORY.relative_to("/")),
        interface_mac=interface_mac,
        boot=boot_id(),
        now_s=lambda: int(time.time()),
        sleep=time.sleep,
    )
    interfaces = [san.interface for san in settings.san]

    def prepare() -> None:
        # Rules first: a driver that is loaded before them hears everybody.
        ingress.ensure(interfaces)
        initiator.prepare(interfaces, settings.initiator.deadsecs)

    return Attacher(settings, host, prepare)
