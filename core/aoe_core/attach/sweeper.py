"""The sweeper: makes the driver forget devices that nobody here has any business with.

Flushed is a device that is on no record, closed, on one of this node's SAN interfaces, and whose target is silent to
this host: its grant is revoked. A device whose target still answers would come back, and one that is open is never
touched. Pins without a record go too, and so do records that describe nothing: those of an earlier boot, whose mounts
and devices went with it, and those of a staging that was given up half-way before it mounted anything.
The driver's flush does not look whether a device is open, so the last look and the flush are made under the address's
lock, which staging holds too.
"""

import logging
from contextlib import ExitStack
from dataclasses import dataclass

from aoe_core.attach.host import ComputeHost
from aoe_core.attach.records import StageRecord, StageRecords
from aoe_core.attach.staged import StagedVolumes
from aoe_core.errors import AoECsiError, Busy
from aoe_core.host.contracts import AoEDevice
from aoe_core.locks import Locks
from aoe_core.model import Address
from aoe_core.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweeper:
    """Sweeps once when told to."""

    host: ComputeHost
    settings: Settings
    records: StageRecords
    staged: StagedVolumes
    locks: Locks

    def sweep(self) -> tuple[Address, ...]:
        """Clean up; return the addresses flushed. What cannot be found out about one device leaves that one alone."""
        for record in self.records.all():
            try:
                self._drop_if_empty(record)
            except Busy:
                continue  # A call is at work on it.
            except AoECsiError as error:
                log.warning("record not swept", extra={"volume": record.attachment.volume_id, "error": str(error)})
        self._drop_lost_pins()
        flushed = []
        for device in self.host.initiator.devices():
            try:
                if self._is_left_over(device) and self._flush(device.address):
                    flushed.append(device.address)
            except Busy:
                continue  # Staging is at it.
            except AoECsiError as error:
                log.warning("device not swept", extra={"device": str(device.address), "error": str(error)})
        return tuple(flushed)

    def _drop_if_empty(self, record: StageRecord) -> None:
        """Drop a record that describes nothing on this node; its pin, if it has one, is then one without a record."""
        old = record.boot != self.host.boot
        if not old and (record.staged or record.targets or not self._is_silent(record)):
            return
        volume_id, address = record.attachment.volume_id, record.attachment.address
        with ExitStack() as held:
            held.enter_context(self.locks.hold(f"volume {volume_id}"))
            if address is not None:
                held.enter_context(self.locks.hold(f"address {address}"))
            if self.records.find(volume_id) != record:
                return
            if not old and (
                self.staged.mounts_at(record.staging_path)
                or (address is not None and self.host.initiator.in_use(address))
            ):
                return
            self.records.drop(volume_id)
        log.info("record of nothing dropped", extra={"volume": volume_id, "earlier_boot": old})

    def _is_silent(self, record: StageRecord) -> bool:
        """Say whether a half-staged volume's grant is gone, as far as the wire tells."""
        address = record.attachment.address
        if address is None or not record.interface:
            return False
        limit_s = self.settings.initiator.probe_s
        return not self.host.initiator.probe(record.interface, address, timeout_s=limit_s)

    def _drop_lost_pins(self) -> None:
        # Pins first, records second: a pin is set after its record is written.
        pinned = sorted(self.host.ingress.pinned())
        recorded = self._recorded_pins()
        for interface, address, mac in pinned:
            if (interface, address) in recorded:
                continue  # Without the lock, which would have whoever unstages just now come again.
            try:
                with self.locks.hold(f"address {address}"):
                    if (interface, address) not in self._recorded_pins():
                        self.host.ingress.unpin(interface, address)
                        log.info("pin without a record dropped", extra={"address": str(address), "mac": mac})
            except Busy:
                continue

    def _recorded_pins(self) -> frozenset[tuple[str, Address | None]]:
        """Return interface and address of everything recorded in this boot."""
        present = (one for one in self.records.all() if one.boot == self.host.boot)
        return frozenset((one.interface, one.attachment.address) for one in present)

    def _is_left_over(self, device: AoEDevice) -> bool:
        """Say whether a device seems to be nobody's; takes as long as the probe listens."""
        if device.interface not in {san.interface for san in self.settings.san} or device.closewait:
            return False
        if self._is_recorded(device.address) or self.host.initiator.in_use(device.address):
            return False
        limit_s = self.settings.initiator.probe_s
        return not self.host.initiator.probe(device.interface, device.address, timeout_s=limit_s)

    def _flush(self, address: Address) -> bool:
        with self.locks.hold(f"address {address}"):
            if self._is_recorded(address) or self.host.initiator.in_use(address):
                return False
            self.host.initiator.flush(address)
        log.info("device of a silent target flushed", extra={"device": str(address)})
        return True

    def _is_recorded(self, address: Address) -> bool:
        record = self.records.of_address(address)
        return record is not None and record.boot == self.host.boot
