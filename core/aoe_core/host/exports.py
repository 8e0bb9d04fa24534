"""Exports: one file per grant, and the host's template unit that serves what the file says.

The files are the truth of what is on the wire. They are plain KEY=value lines, because systemd (EnvironmentFile=)
and the wrapper read them without any of our code: after a reboot every live export comes back by itself.
A file is `live` (serve it), `revoking` (never start it again; its writer may still run) or `resting` (a tombstone: the
address is free again only after its rest, and not for the node that held it).
Units: `aoe-csi-export@<shelf>.<slot>.service`, files/aoe-csi-export@.service and files/export-wrapper.
"""

import enum
import fcntl
import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from aoe_core.errors import CommandFailed, Invalid, Unfinished
from aoe_core.host.contracts import ExportUnit, RecordFiles, Runner
from aoe_core.host.looks import SharedLook
from aoe_core.model import (
    AccessMode,
    Address,
    Durability,
    Grant,
    Mac,
    NodeName,
    SanName,
    Serial,
    Transport,
    VolumeId,
)

log = logging.getLogger(__name__)

LOCK_DIRECTORY = Path("/run/aoe-csi/exports")
"""One lock file per export, inherited by the exporter; on tmpfs, since no process outlives a reboot."""

_UNIT_S = 180.0
"""systemd itself gives up on a process that will not die (TimeoutStopSec, twice); beyond that it is busy with other
units: fifty stopped at once have taken a slow machine more than a minute."""
_SERVING_S = 20.0


UNKNOWN_BOOT = ""
"""The boot of a former holder that has not been heard of since: it may have rebooted between grant and revocation, so
the boot of the grant proves nothing. Its next publish tells which boot it is in, and only a later one is clean."""


UNSTARTED_BYTES = 0
"""The size in a file whose exporter has not started since the file was changed, as far as anybody knows."""


class ExportState(enum.Enum):
    """What an export file allows."""

    LIVE = "live"
    REVOKING = "revoking"
    RESTING = "resting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Former:
    """Somebody who held an address: it does not go back to them in the same boot."""

    node: NodeName
    boot: str
    revoked_s: int

    def __str__(self) -> str:
        return f"{self.node}|{self.boot}|{self.revoked_s}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what `str` wrote. Raises: ValueError."""
        node, boot, revoked_s = text.split("|")
        return cls(node=NodeName(node), boot=boot, revoked_s=int(revoked_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFile:
    """One export file. `address` is None for a same-host grant, which is recorded and never exported."""

    address: Address | None
    state: ExportState
    volume_id: VolumeId
    device: str
    serial: Serial
    node: NodeName
    node_id: str
    boot: str
    mode: AccessMode
    writable: bool
    block: bool
    san: SanName | None
    interface: str
    macs: tuple[Mac, ...]
    durability: Durability
    buffers: int
    exporter: str
    granted_s: int
    size_bytes: int
    """The device's size when the exporter last started: it reads the size once. Or UNSTARTED_BYTES."""
    former: tuple[Former, ...] = field(default=())

    @property
    def name(self) -> str:
        """The file's name: `10.3` (systemd's instance name), or `local.<volume>` for a same-host grant."""
        return self.address.instance if self.address else f"local.{self.volume_id}"

    @property
    def grant(self) -> Grant:
        """The grant this file puts in force."""
        return Grant(
            volume_id=self.volume_id,
            node=self.node,
            node_id=self.node_id,
            boot=self.boot,
            mode=self.mode,
            writable=self.writable,
            block=self.block,
            transport=Transport.AOE if self.address else Transport.LOCAL,
            san=self.san,
            macs=self.macs,
            address=self.address,
            granted_s=self.granted_s,
            half_revoked=self.state is ExportState.REVOKING,
        )

    def text(self) -> str:
        """Return the file's text. No value needs quoting: all are checked names, paths and numbers."""
        values = {
            "STATE": self.state.value,
            "VOLUME": self.volume_id,
            "DEVICE": self.device,
            "SERIAL": self.serial,
            "NODE": self.node,
            "NODE_ID": self.node_id,
            "BOOT": self.boot,
            "MODE": self.mode.value,
            "WRITABLE": "yes" if self.writable else "no",
            "BLOCK": "yes" if self.block else "no",
            "SHELF": str(self.address.shelf) if self.address else "",
            "SLOT": str(self.address.slot) if self.address else "",
            "SAN": self.san or "",
            "INTERFACE": self.interface,
            "MACS": ",".join(self.macs),
            "DURABILITY": self.durability.value,
            "BUFFERS": str(self.buffers),
            "EXPORTER": self.exporter,
            "GRANTED": str(self.granted_s),
            "SIZE": str(self.size_bytes),
            "FORMER": ",".join(map(str, self.former)),
        }
        return "".join(f"{key}={value}\n" for key, value in values.items())

    @classmethod
    def parse(cls, name: str, text: str) -> Self:
        """Return the export a file spells. Raises: Invalid naming file and key."""
        values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        try:
            export = cls(
                address=Address(int(values["SHELF"]), int(values["SLOT"])) if values["SHELF"] else None,
                state=ExportState(values["STATE"]),
                volume_id=VolumeId(values["VOLUME"]),
                device=values["DEVICE"],
                serial=Serial(values["SERIAL"]),
                node=NodeName(values["NODE"]),
                node_id=values["NODE_ID"],
                boot=values["BOOT"],
                mode=AccessMode(values["MODE"]),
                writable={"yes": True, "no": False}[values["WRITABLE"]],
                block={"yes": True, "no": False}[values["BLOCK"]],
                san=SanName(values["SAN"]) if values["SAN"] else None,
                interface=values["INTERFACE"],
                macs=tuple(Mac(mac) for mac in values["MACS"].split(",") if mac),
                durability=Durability(values["DURABILITY"]),
                buffers=int(values["BUFFERS"]),
                exporter=values["EXPORTER"],
                granted_s=int(values["GRANTED"]),
                size_bytes=int(values["SIZE"]),
                former=tuple(Former.parse(item) for item in values["FORMER"].split(",") if item),
            )
        except (KeyError, ValueError, Invalid) as error:
            raise Invalid(
                f"export file {name!r} is damaged ({error}); its address is left alone until the file is mended or "
                "removed by hand"
            ) from error
        if export.name != name:
            raise Invalid(f"export file {name!r} speaks of {export.name}; it was copied or renamed, remove it")
        return export


class ExportFiles:
    """All export files of this host."""

    def __init__(self, files: RecordFiles) -> None:
        self._files = files

    def all(self) -> tuple[ExportFile, ...]:
        """Return every export file. Raises: CommandFailed for a damaged one: guessing could put two on one address."""
        try:
            return tuple(ExportFile.parse(name, text) for name, text in sorted(self._files.read_all().items()))
        except Invalid as error:
            # Not the caller's fault: whoever asked for whatever cannot be answered until the file is mended.
            raise CommandFailed(str(error)) from error

    def put(self, export: ExportFile) -> None:
        """Write an export file durably."""
        self._files.write(export.name, export.text())

    def drop(self, export: ExportFile) -> None:
        """Remove an export file durably."""
        self._files.remove(export.name)


class HostExportUnits:
    """ExportUnits through systemctl and the locks in /run."""

    def __init__(self, runner: Runner, lock_directory: Path = LOCK_DIRECTORY) -> None:
        self._runner = runner
        self._locks = lock_directory
        self._look = SharedLook(self._states)

    def start(self, address: Address) -> None:
        """Start a unit and wait until its main process is the exporter. Raises: CommandFailed, Unfinished."""
        self._systemctl("start", address)
        self._await_serving(address)

    def restart(self, address: Address) -> None:
        """Restart a unit and wait until its main process is the exporter. Raises: CommandFailed, Unfinished."""
        self._systemctl("restart", address)
        self._await_serving(address)

    def stop(self, address: Address) -> None:
        """Stop a unit. The caller looks at `states` for the lock: systemd gives up on a process the kernel holds."""
        self._systemctl("stop", address)
        # A unit that failed to start keeps its failed state loaded; nobody needs it once it is stopped.
        self._runner.run(["systemctl", "reset-failed", _unit(address)], timeout_s=_UNIT_S)

    def states(self) -> Mapping[Address, ExportUnit]:
        """Return loaded units and held locks, read after this call with one systemctl call. Raises: CommandFailed."""
        return self._look.take()

    def _states(self) -> Mapping[Address, ExportUnit]:
        finished = self._runner.run(
            ["systemctl", "show", "aoe-csi-export@*.service", "--property=Id,ActiveState,MainPID"], timeout_s=_UNIT_S
        )
        if finished.code != 0:
            raise CommandFailed(
                f"systemd could not report the export units (exit {finished.code}): {finished.complaint}; try again"
            )
        active: dict[Address, int] = {}
        for block in finished.stdout.split("\n\n"):
            values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
            match = re.fullmatch(r"aoe-csi-export@(\d+\.\d+)\.service", values.get("Id", ""))
            if match and values.get("ActiveState") in ("active", "activating", "reloading", "deactivating"):
                active[Address.parse(match[1])] = int(values.get("MainPID", "0") or 0)
        locked = {address for address in self._lock_files() if self._is_locked(address)}
        return {
            address: ExportUnit(
                active=address in active,
                serving=address in active and _is_exporter(active[address]),
                locked=address in locked,
            )
            for address in active.keys() | locked
        }

    def _systemctl(self, verb: str, address: Address) -> None:
        finished = self._runner.run(["systemctl", verb, _unit(address)], timeout_s=_UNIT_S)
        log.info(
            "export unit",
            extra={"argv": list(finished.argv), "code": finished.code, "ms": round(finished.seconds * 1000)},
        )
        if finished.code != 0:
            raise CommandFailed(
                f"systemd could not {verb} the export {address} (exit {finished.code}): {finished.complaint}; "
                f"see journalctl -u {_unit(address)}"
            )

    def _await_serving(self, address: Address) -> None:
        deadline = time.monotonic() + _SERVING_S
        while True:
            finished = self._runner.run(
                ["systemctl", "show", _unit(address), "--property=ActiveState,MainPID"], timeout_s=_UNIT_S
            )
            values = dict(line.split("=", 1) for line in finished.stdout.splitlines() if "=" in line)
            if values.get("ActiveState") == "active" and _is_exporter(int(values.get("MainPID", "0") or 0)):
                return
            if time.monotonic() > deadline:
                raise Unfinished(
                    f"export {address} was started and does not serve yet ({values.get('ActiveState', 'unknown')}); "
                    f"see journalctl -u {_unit(address)}"
                )
            time.sleep(0.05)

    def _lock_files(self) -> tuple[Address, ...]:
        try:
            names = [path.name for path in self._locks.iterdir()]
        except FileNotFoundError:
            return ()
        return tuple(Address.parse(name) for name in names if re.fullmatch(r"\d+\.\d+", name))

    def _is_locked(self, address: Address) -> bool:
        try:
            descriptor = os.open(self._locks / address.instance, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            # Shared: calls that look at once must not take each other for an exporter, which holds it exclusively.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


def _unit(address: Address) -> str:
    return f"aoe-csi-export@{address.instance}.service"


def _is_exporter(pid: int) -> bool:
    """Say whether a process has become the exporter: the wrapper's interpreters are all in this short list."""
    if pid <= 0:
        return False
    try:
        command = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return False
    return command not in ("sh", "dash", "bash", "export-wrapper", "unshare", "setpriv", "(wrapper)", "") and not (
        command.startswith("(")
    )
