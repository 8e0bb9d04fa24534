"""Data disks that lose in a power cut what was not flushed, as real ones with a write cache do.

Owns: one nbdkit per such disk: what the machine writes stays in the server's cache until the machine flushes, and dies
with the server. Refuses: to stop gently; a power cut is the only end these servers know.
Source: nbdkit-cache-filter(1), cache=writeback; nbdkit-delay-filter(1); nbdkit-error-filter(1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aoe_lab import process

if TYPE_CHECKING:
    from pathlib import Path

    from aoe_lab.topology import DataDisk

START_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskServer:
    """The files and the server of disk `name` ("data0") of a machine whose files are in `place`."""

    name: str
    place: Path
    disk: DataDisk

    @property
    def file(self) -> Path:
        return self.place / f"{self.name}.img"

    @property
    def socket(self) -> Path:
        return self.place / f"{self.name}.sock"

    @property
    def _pidfile(self) -> Path:
        return self.place / f"{self.name}.pid"

    @property
    def _flush_failure_switch(self) -> Path:
        return self.place / f"{self.name}.flushes-fail"

    def create(self) -> None:
        with self.file.open("wb") as file:
            file.truncate(self.disk.size_bytes)

    def start(self, enter: tuple[str, ...]) -> None:
        """Start the server inside the lab's network (`enter`), if this disk needs one, and wait until it answers."""
        if not self.disk.volatile_cache:
            return
        self.socket.unlink(missing_ok=True)
        self._pidfile.unlink(missing_ok=True)
        delay = [f"delay-write={self.disk.flush_delay_ms}ms"] if self.disk.flush_delay_ms else []
        process.run(  # It goes into the background by itself, once it answers.
            [
                *enter,
                "nbdkit",
                *("--unix", self.socket),
                *("--pidfile", self._pidfile),
                "--filter=cache",
                # Below the cache, only what a flush writes back passes.
                "--filter=error",
                *(["--filter=delay"] if delay else []),
                "file",
                self.file,
                "cache=writeback",
                "error-pwrite=EIO",
                "error-pwrite-rate=100%",
                f"error-pwrite-file={self._flush_failure_switch}",
                *delay,
            ],
            env={"TMPDIR": str(self.place)},  # The cache itself is a deleted file there, as big as what is unflushed.
            timeout_s=START_TIMEOUT_S,
            where=self.place.name,
        )

    def pids(self) -> tuple[int, ...]:
        """Return the running server's process id, or nothing."""
        pid = process.read_pid(self._pidfile)
        return (pid,) if pid is not None and process.is_running(pid, mark=str(self.socket)) else ()

    def fail_flushes(self, fail: bool) -> None:
        """Make the machine's flushes of unwritten data end with EIO, from now on, or no longer."""
        if fail:
            self._flush_failure_switch.touch()
        else:
            self._flush_failure_switch.unlink(missing_ok=True)

    def qemu_arguments(self) -> list[str]:
        if self.disk.volatile_cache:
            backend = f"driver=nbd,node-name={self.name},discard=unmap,server.type=unix,server.path={self.socket}"
        else:
            backend = f"driver=file,node-name={self.name},discard=unmap,filename={self.file}"
        return ["-blockdev", backend, "-device", f"virtio-blk-pci,drive={self.name},serial={self.name},write-cache=on"]
