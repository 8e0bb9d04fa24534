"""The watchdog: looks after the devices of staged volumes.

A device whose target was away for aoe_deadsecs fails its I/O and stays down as long as it is open, until somebody has
it identified again. The watchdog does so once the pinned target answers with the right serial, and notes on the record
since when it has not. It also puts ingress rules and pins back when somebody flushed them.
"""

import logging
from dataclasses import dataclass

import msgspec

from aoe_core.attach.host import ComputeHost
from aoe_core.attach.prove import address_of, prove_answers
from aoe_core.attach.records import StageRecord, StageRecords
from aoe_core.attach.staged import StagedVolumes
from aoe_core.errors import AoECsiError, Busy, IdentityMismatch
from aoe_core.host.contracts import AoEDevice
from aoe_core.locks import Locks
from aoe_core.model import Transport
from aoe_core.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watchdog:
    """Looks once when told to."""

    host: ComputeHost
    settings: Settings
    records: StageRecords
    staged: StagedVolumes
    locks: Locks

    def look(self) -> None:
        """Look at the rules and at every staged device. What one volume does not tell leaves the others looked at."""
        for san in self.settings.san:
            try:
                self.staged.restore_pins(san.interface)
            except AoECsiError as error:
                log.error("ingress rules not restored", extra={"interface": san.interface, "error": str(error)})
        devices = {device.address: device for device in self.host.initiator.devices()}
        for record in self.records.all():
            if record.boot != self.host.boot or not record.staged or record.attachment.transport is not Transport.AOE:
                continue
            try:
                self._look_at(record, devices.get(address_of(record.attachment)))
            except Busy:
                continue  # A call is at work on it and sees for itself.
            except AoECsiError as error:
                log.warning(
                    "device not looked after", extra={"volume": record.attachment.volume_id, "error": str(error)}
                )

    def _look_at(self, record: StageRecord, device: AoEDevice | None) -> None:
        address = address_of(record.attachment)
        if device is None:
            log.error("device of a staged volume is gone", extra={"volume": record.attachment.volume_id})
            return
        if len(device.target_macs) > 1:
            log.error("device has several targets", extra={"device": str(address), "targets": device.target_macs})
        if device.up:
            self._note(record, 0)
            return
        answers = self.host.initiator.probe(record.interface, address, timeout_s=self.settings.initiator.probe_s)
        try:
            proven = prove_answers(record.attachment, answers) == record.pinned_mac
        except IdentityMismatch as mismatch:
            proven = False
            if answers:
                log.error("another target answers for a staged volume", extra={"error": str(mismatch)})
        if not proven:
            self._note(record, record.dead_since_s or self.host.now_s())
            return
        with self.locks.hold(f"volume {record.attachment.volume_id}"):
            if self.records.find(record.attachment.volume_id) == record:
                self.host.initiator.revalidate(address)
                log.info("device revalidated", extra={"device": str(address), "volume": record.attachment.volume_id})

    def _note(self, record: StageRecord, dead_since_s: int) -> None:
        """Write since when the target is dead, unless the record says so or changed meanwhile."""
        if record.dead_since_s == dead_since_s:
            return
        with self.locks.hold(f"volume {record.attachment.volume_id}"):
            if self.records.find(record.attachment.volume_id) == record:
                self.records.put(msgspec.structs.replace(record, dead_since_s=dead_since_s))
                fact = "target answers again" if dead_since_s == 0 else "target is dead"
                log.warning(fact, extra={"volume": record.attachment.volume_id})
