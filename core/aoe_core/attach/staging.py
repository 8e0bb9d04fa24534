"""Staging: a granted volume becomes a proven, pinned device here, with its file system mounted; and the way back.

Forwards: record → rules → probe → prove → pin → discover → prove again → make or check → mount → record. Every step
may be cut by SIGKILL; the next call finds what is there and goes on. Backwards needs no target: unmount, prove closed,
drop pins and record. Never a lazy unmount, never a flush of what is open.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from aoe_core.attach import options
from aoe_core.attach.content import Step, judge_content
from aoe_core.attach.host import ComputeHost
from aoe_core.attach.prove import address_of, prove_answers, prove_device
from aoe_core.attach.records import BlockUse, FilesystemUse, StageRecord, StageRecords, Use
from aoe_core.attach.staged import StagedVolumes, device_path, is_of_grant, is_read_only
from aoe_core.errors import (
    AoECsiError,
    Busy,
    CommandFailed,
    Conflict,
    IdentityMismatch,
    InUse,
    Invalid,
    NotFound,
    Unfinished,
    Unreachable,
)
from aoe_core.host.blocks import MKFS_LABEL
from aoe_core.host.contracts import Answer, AoEDevice
from aoe_core.model import Attachment, Mac, Transport, VolumeId
from aoe_core.settings import Settings

log = logging.getLogger(__name__)

_LOOK_S = 0.05
"""Between two looks at a device that is coming up; a look costs a few reads of sysfs."""
_CLOSE_LOOK_S = 0.2
_DISCOVER_S = 1.0
_CLOSE_LOOKS = 10
"""How often a device that should be closed is looked at: what has it open may be just ending."""
_CLOSES_S = 20
"""And for how long; on a node with much to do one look takes a while."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Staging:
    """Stages and unstages. The caller holds the volume's and the address's lock."""

    host: ComputeHost
    settings: Settings
    records: StageRecords
    staged: StagedVolumes

    def stage(self, attachment: Attachment, staging_path: str, use: Use) -> None:
        """Bring a volume to the state its use needs, from wherever an earlier attempt left it; one that is staged
        through a former grant is staged anew.

        Raises: Unfinished, and nothing else, as long as something is left here of a staging that did not come to its
        end, or of a former grant: kubelet takes most other errors for the word that the volume is not here, and never
        asks to unstage it (k8s.io/kubernetes/pkg/volume/csi/csi_client.go, isFinalError).
        """
        self._stage(attachment, self.staged.resolved(staging_path), use)

    def is_behind(self, attachment: Attachment, staging_path: str) -> bool:
        """Say whether a volume is staged at a path through another grant than it is to be used through, or not to the
        end."""
        record = self.staged.find(attachment.volume_id)
        if record is None or record.staging_path != self.staged.resolved(staging_path):
            return False
        return not (record.staged and is_of_grant(record, attachment))

    def catch_up(self, attachment: Attachment, staging_path: str, use: Use, target_path: str) -> None:
        """Stage a volume that is behind, to be published at a target path.

        A node that was given up for lost, and was not, may have the volume mounted still when it is granted it anew,
        and kubelet, which sees it mounted, publishes it without staging it. What is mounted is the past: the volume may
        have been written elsewhere since, and nothing that is written here arrives. The target is on record from the
        beginning, so that nothing drops what the next call is to go on from: kubelet will not stage it then either.
        Raises: Unfinished, also while somebody here has the former one; Busy.
        """
        target = self.staged.resolved(target_path)
        self._stage(attachment, self.staged.resolved(staging_path), use, targets=(target,))

    def unstage(self, volume_id: VolumeId, staging_path: str) -> None:
        """Undo staging, finished or not. Needs no target."""
        path = self.staged.resolved(staging_path)
        record = self.records.find(volume_id)
        if record is None:
            if self.staged.mounts_at(path):
                raise InUse(
                    f"{path} is a mount that this driver has no record of (volume {volume_id}); unmount it by hand"
                )
            return
        if record.boot != self.host.boot:
            self.forget(record)
            return
        if record.staging_path != path:
            raise Conflict(f"volume {volume_id} is staged at {record.staging_path}, not at {path}; unstage it there")
        self._undo(record)
        self.forget(record)

    def forget(self, record: StageRecord) -> None:
        """Drop a record's pins, then the record."""
        self._unpin(record)
        self.records.drop(record.attachment.volume_id)

    # --- the way there ------------------------------------------------------------------------------------------

    def _stage(self, attachment: Attachment, path: str, use: Use, targets: tuple[str, ...] = ()) -> None:
        try:
            self._bring(attachment, path, use, targets)
        except (Busy, Unfinished):
            raise
        except AoECsiError as error:
            if self._is_left(attachment, path):
                raise Unfinished(str(error)) from error
            raise

    def _bring(self, attachment: Attachment, path: str, use: Use, targets: tuple[str, ...]) -> None:
        record = StageRecord(
            attachment=attachment,
            staging_path=path,
            use=use,
            interface=self._interface(attachment),
            pinned_mac=None,
            staged=False,
            boot=self.host.boot,
            targets=targets,
        )
        self._admit_path(record)
        if isinstance(use, FilesystemUse):
            options.mount_options(use, read_only=is_read_only(record))
        earlier = self._settle_earlier(record)
        if earlier is not None:
            if earlier.staged and self._is_there(earlier):
                return
            record = msgspec.structs.replace(
                record,
                pinned_mac=earlier.pinned_mac,
                targets=tuple(dict.fromkeys((*earlier.targets, *targets))),
                read_only_targets=earlier.read_only_targets,
            )
        # A mount without a record is adopted for a local volume only: elsewhere it may be an older volume's.
        mounted = (
            isinstance(use, FilesystemUse)
            and (earlier is not None or attachment.transport is Transport.LOCAL)
            and bool(self.staged.mounts_at(path))
        )
        if attachment.transport is Transport.AOE and not mounted:
            self._refuse_open(attachment, earlier)
        self.records.put(record)
        try:
            if attachment.transport is Transport.AOE:
                record = self._attach(record)
            else:
                self._prove_local(attachment)
            self._ready(record, mounted=mounted)
            self.records.put(msgspec.structs.replace(record, staged=True))
        except (Busy, Unfinished):
            raise  # Something may still be at work on the device; the record is what the next call goes by.
        except AoECsiError:
            self._forget_if_idle(record)
            raise

    def _is_left(self, attachment: Attachment, path: str) -> bool:
        """Say whether something is here of a staging that did not come to its end, or of a former grant; what cannot be
        told may be."""
        try:
            return self.is_behind(attachment, path)
        except AoECsiError:
            return True

    # --- before anything changes --------------------------------------------------------------------------------

    def _interface(self, attachment: Attachment) -> str:
        if attachment.transport is Transport.LOCAL:
            return ""
        address_of(attachment)
        san = self.settings.san_named(attachment.san) if attachment.san is not None else None
        if san is None:
            known = ", ".join(one.name for one in self.settings.san) or "none"
            raise Invalid(
                f"volume {attachment.volume_id} comes over SAN {attachment.san!r}, and this node is on: {known}; "
                "add the SAN to this node's configuration"
            )
        return san.interface

    def _admit_path(self, record: StageRecord) -> None:
        path, attachment = record.staging_path, record.attachment
        mounts = self.staged.mounts_at(path)
        # A mount point is a directory; to look at one asks its file system, and a dead one answers with an error.
        if not mounts and (kind := self.host.mounts.kind(path)) not in ("directory", "absent"):
            raise Invalid(f"staging path {path} is a {kind}; give a directory")
        earlier = self.staged.find(attachment.volume_id)
        for mount in mounts:
            if earlier is not None and _is_former(earlier, record) and self.staged.is_own(mount, earlier):
                continue  # It goes before the present one comes.
            if isinstance(record.use, BlockUse) or not self.staged.is_filesystem_of(mount, attachment):
                raise Conflict(
                    f"staging path {path} already has {mount.source} mounted; unmount it, or stage volume "
                    f"{attachment.volume_id} elsewhere"
                )

    def _settle_earlier(self, record: StageRecord) -> StageRecord | None:
        """Return the record an earlier attempt at the same left in this boot; clean up after one at something else."""
        volume_id = record.attachment.volume_id
        earlier = self.staged.find(volume_id)
        if earlier is None:
            return None
        if (
            earlier.staging_path == record.staging_path
            and earlier.use == record.use
            and is_of_grant(earlier, record.attachment)
        ):
            return earlier
        is_former = _is_former(earlier, record)
        if earlier.staged and not is_former:
            raise Conflict(
                f"volume {volume_id} is staged on this node at {earlier.staging_path} as {_use_text(earlier)} through "
                f"{device_path(earlier.attachment)}, and was asked for at {record.staging_path} as {_use_text(record)} "
                f"through {device_path(record.attachment)}; unstage it first"
            )
        if is_former:
            self._end_former(earlier, record)
        else:
            self._undo(earlier)
        # Its record stays until this one is written over it.
        self._unpin(earlier)
        return None

    def _end_former(self, former: StageRecord, record: StageRecord) -> None:
        """Undo what is staged through a former grant, once the present one has proven to be there."""
        before, now = device_path(former.attachment), device_path(record.attachment)
        has_former = (
            f"volume {former.attachment.volume_id} is staged on this node through {before}, a grant that was revoked, "
            f"and is granted now through {now}; it is staged anew once nobody here has the former: "
        )
        with _said_before(has_former):
            self._require_unpublished(former)
        if record.attachment.transport is Transport.AOE:
            prove_answers(record.attachment, self._listen(record))
        with _said_before(has_former):
            self._undo(former)
        log.warning(
            "staged anew, through another grant",
            extra={"volume": former.attachment.volume_id, "former": before, "present": now},
        )

    def _is_there(self, record: StageRecord) -> bool:
        if isinstance(record.use, FilesystemUse):
            return bool(self.staged.mounts_at(record.staging_path))
        if record.attachment.transport is Transport.LOCAL:
            return True
        return self.staged.device(address_of(record.attachment)) is not None

    def _refuse_open(self, attachment: Attachment, earlier: StageRecord | None) -> None:
        address = address_of(attachment)
        other = self.staged.of_address(address)
        if other is not None and other.attachment.volume_id != attachment.volume_id:
            raise InUse(
                f"address {address} of volume {attachment.volume_id} is held on this node by volume "
                f"{other.attachment.volume_id}; unstage that one first"
            )
        if self.staged.device(address) is None or not self.host.initiator.in_use(address):
            return
        if earlier is None:
            raise InUse(
                f"device {address} is open on this node and was not staged by this driver, so it may be a stale one "
                f"with another volume's data; find its user and close it, then volume {attachment.volume_id} can be "
                "staged"
            )
        raise Busy(
            f"device {address} is still open from an earlier attempt to stage volume {attachment.volume_id}; "
            "try again when that has ended"
        )

    # --- the device ---------------------------------------------------------------------------------------------

    def _attach(self, record: StageRecord) -> StageRecord:
        """Prove the target on the wire, pin it, bring the driver's device up and prove that too."""
        attachment, address = record.attachment, address_of(record.attachment)
        self._check_deadsecs()
        self.staged.restore_pins(record.interface)
        mac = prove_answers(attachment, self._listen(record))
        proven = msgspec.structs.replace(record, pinned_mac=mac)
        self.records.put(proven)
        self.host.ingress.pin(record.interface, address, mac)
        self._drop_stale(attachment, mac)
        self._bring_up(attachment, mac)
        return proven

    def _check_deadsecs(self) -> None:
        limit = self.settings.initiator.deadsecs
        try:
            found = self.host.initiator.deadsecs()
        except NotFound as error:
            raise Unreachable(f"this node cannot attach yet: {error}") from error
        if not 0 < found <= limit:
            raise CommandFailed(
                f"aoe_deadsecs is {found} on this node and must be 1 to {limit}, or a fenced write could land after "
                "its address rested; set /sys/module/aoe/parameters/aoe_deadsecs and the options in modprobe.d"
            )

    def _listen(self, record: StageRecord) -> tuple[Answer, ...]:
        """Return everyone who answers within one listening; listen again while nobody does, or somebody answers who
        does not tell what they are: a busy target may say so a moment later. Who is later still is kept out by the pin.
        """
        address, waited_s = address_of(record.attachment), 0.0
        listen_s = self.settings.initiator.probe_s
        heard: tuple[Answer, ...] = ()
        while waited_s < self.settings.initiator.stage_s:
            heard = self.host.initiator.probe(record.interface, address, timeout_s=listen_s) or heard
            if heard and all(answer.serial for answer in heard):
                return heard
            waited_s += listen_s
        if heard:
            return heard
        raise Unreachable(
            f"nobody answers for {address} (volume {record.attachment.volume_id}) on {record.interface} within "
            f"{self.settings.initiator.stage_s:g} s; check the export on its storage node and the SAN between"
        )

    def _drop_stale(self, attachment: Attachment, mac: Mac) -> None:
        """Make the driver forget targets it learned before the pin stood."""
        address = address_of(attachment)
        device = self.staged.device(address)
        if device is None or not set(device.target_macs) - {mac}:
            return
        if self.host.initiator.in_use(address):
            raise InUse(
                f"device {address} is open on this node and the driver would also use targets "
                f"{', '.join(sorted(set(device.target_macs) - {mac}))}; close it, then stage volume "
                f"{attachment.volume_id} again"
            )
        log.warning("stale device flushed", extra={"device": str(address), "targets": device.target_macs})
        self.host.initiator.flush(address)

    def _bring_up(self, attachment: Attachment, mac: Mac) -> AoEDevice:
        """Discover until the device is up and provably the volume; return it."""
        address, waited_s, discover_s = address_of(attachment), 0.0, 0.0
        while True:
            if waited_s >= discover_s:
                self.host.initiator.discover()
                discover_s += _DISCOVER_S
            device = self.staged.device(address)
            if device is not None and device.up and device.target_macs:
                serial = self.host.initiator.identify(address)
                try:
                    prove_device(attachment, mac, device, serial)
                except IdentityMismatch:
                    # A closed device the driver knew before shows what it was, until it is identified again.
                    if waited_s >= self.settings.initiator.stage_s:
                        raise
                else:
                    return device
            if waited_s >= self.settings.initiator.stage_s:
                raise Unreachable(
                    f"device {address} of volume {attachment.volume_id} did not come up within {waited_s:g} s although "
                    f"target {mac} answers; look at the kernel log and the MTU of the SAN"
                )
            self.host.sleep(_LOOK_S)
            waited_s += _LOOK_S

    def _prove_local(self, attachment: Attachment) -> None:
        found_bytes = self.host.blocks.size_bytes(attachment.device)
        if found_bytes < attachment.size_bytes:
            raise IdentityMismatch(
                f"{attachment.device} has {found_bytes} bytes and volume {attachment.volume_id} at least "
                f"{attachment.size_bytes}; nothing was mounted, look at the logical volume"
            )

    # --- its content --------------------------------------------------------------------------------------------

    def _ready(self, record: StageRecord, *, mounted: bool) -> None:
        """Mount the file system, if that is the use; for a block device being proven is all."""
        device, read_only = device_path(record.attachment), is_read_only(record)
        if isinstance(record.use, BlockUse):
            self.host.filesystems.set_read_only(device, read_only=read_only)
            return
        use = record.use
        if not mounted:
            self.host.filesystems.set_read_only(device, read_only=read_only)
            step = judge_content(
                record.attachment,
                use,
                self.host.blocks.signature(device),
                read_only=read_only or options.is_read_only(use),
            )
            if step is Step.MAKE:
                self.host.filesystems.make(device, use.filesystem, MKFS_LABEL)
                self.host.filesystems.set_label(device, use.filesystem, "")
            elif step is Step.CHECK:
                self.host.filesystems.check(device, use.filesystem)
            self.host.mounts.make_directory(record.staging_path)
            self.host.mounts.mount(
                device, record.staging_path, use.filesystem, options.mount_options(use, read_only=read_only)
            )
        if not (read_only or options.is_read_only(use)):
            self.host.filesystems.grow(device, record.staging_path, use.filesystem)

    # --- the way back -------------------------------------------------------------------------------------------

    def _undo(self, record: StageRecord) -> None:
        self._unmount(record)
        self._prove_closed(record)
        self._clear_read_only(record)

    def _unpin(self, record: StageRecord) -> None:
        if record.attachment.transport is Transport.AOE and record.interface:
            self.host.ingress.unpin(record.interface, address_of(record.attachment))

    def _forget_if_idle(self, record: StageRecord) -> None:
        """After a refusal, leave nothing behind, unless something of the volume's is there to be cleaned up."""
        try:
            address = record.attachment.address
            if record.targets or self.staged.mounts_at(record.staging_path):
                return
            if address is not None and self.staged.device(address) is not None and self.host.initiator.in_use(address):
                return
            self.forget(record)
        except AoECsiError as error:
            log.warning(
                "half-staged volume stays on record",
                extra={"volume": record.attachment.volume_id, "error": str(error)},
            )

    def _require_unpublished(self, record: StageRecord) -> None:
        volume_id, path = record.attachment.volume_id, record.staging_path
        mounts = (one for one in self.host.mounts.table() if one.target != path)
        elsewhere = sorted({one.target for one in mounts if self.staged.is_own(one, record)})
        if elsewhere:
            raise InUse(f"volume {volume_id} is still mounted at {', '.join(elsewhere)}; unpublish it there first")

    def _unmount(self, record: StageRecord) -> None:
        volume_id, path = record.attachment.volume_id, record.staging_path
        self._require_unpublished(record)
        for mount in reversed(self.staged.mounts_at(path)):
            if not self.staged.is_filesystem_of(mount, record.attachment):
                raise InUse(f"{path} has {mount.source} mounted, which is not volume {volume_id}; unmount it by hand")
            try:
                self.host.mounts.unmount(path)
            except NotFound:
                continue  # An umount given up earlier has come to its end.

    def _prove_closed(self, record: StageRecord) -> None:
        """Check that nobody holds the device any more. A local volume's openers are its storage side's to judge."""
        if record.attachment.transport is Transport.LOCAL:
            return
        address = address_of(record.attachment)
        until_s = self.host.now_s() + _CLOSES_S
        for _ in range(_CLOSE_LOOKS):
            if not self.host.initiator.in_use(address):
                return
            if self.host.now_s() > until_s:
                break
            self.host.sleep(_CLOSE_LOOK_S)
        volume_id = record.attachment.volume_id
        if isinstance(record.use, FilesystemUse):
            raise Unfinished(
                f"device {address} of volume {volume_id} is unmounted and still open: the kernel is writing back, or "
                f"waits for a silent target (at most {self.settings.initiator.deadsecs} s), or a process that came "
                "while it was mounted keeps a copy of the mount (fuser -vm); try again"
            )
        raise InUse(f"device {address} of volume {volume_id} is still open on this node; stop what uses it")

    def _clear_read_only(self, record: StageRecord) -> None:
        if not is_read_only(record) and not record.read_only_targets:
            return
        attachment = record.attachment
        if attachment.transport is Transport.LOCAL:
            self.host.filesystems.set_read_only(attachment.device, read_only=False)
            return
        device = self.staged.device(address_of(attachment))
        if device is not None and device.up:
            try:
                self.host.filesystems.set_read_only(device.path, read_only=False)
            except (CommandFailed, Unfinished) as error:
                # Needs no target: the flag goes with the device, and staging sets it anew.
                log.warning("read-only flag left", extra={"device": device.path, "error": str(error)})


@contextmanager
def _said_before(why: str) -> Iterator[None]:
    """Begin the sentence of a refusal that may pass with what it is about."""
    try:
        yield
    except (InUse, Unfinished) as error:
        raise type(error)(f"{why}{error}") from error


def _is_former(earlier: StageRecord, record: StageRecord) -> bool:
    """Say whether a volume was staged at the same path through another grant: a node has one at a time."""
    return earlier.staging_path == record.staging_path and not is_of_grant(earlier, record.attachment)


def _use_text(record: StageRecord) -> str:
    kind = "a block device" if isinstance(record.use, BlockUse) else record.use.filesystem
    return f"{kind} ({'read-only' if is_read_only(record) else 'writable'}, {record.use.mode.value})"
