"""A machine's serial console, which the emulator appends to a file.

Owns: where the current boot begins in it, and the line by which a machine says that it is ready.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

KERNEL_UP = re.compile(rb"AOE-LAB-KERNEL-UP")  # Written by lab/image/init.
READY = re.compile(rb"AOE-LAB-READY ([0-9a-f-]{36})")  # Written by lab/image/rootfs/usr/local/sbin/lab-ready.


@dataclass(frozen=True, slots=True)
class Console:
    """The console whose text is appended to `file`."""

    file: Path

    @property
    def _mark(self) -> Path:
        return self.file.with_suffix(".boot")

    def mark_boot(self) -> None:
        """Note that what follows belongs to a new boot."""
        self._mark.write_text(str(self.file.stat().st_size if self.file.exists() else 0))

    def kernel_is_up(self) -> bool:
        """Tell whether this boot's kernel has come as far as its first process."""
        return self._find(KERNEL_UP) is not None

    def ready_boot_id(self) -> str | None:
        """Return the boot's id once the machine is ready."""
        found = self._find(READY)
        return found.group(1).decode() if found else None

    def _find(self, word: re.Pattern[bytes]) -> re.Match[bytes] | None:
        if not self.file.exists():
            return None
        with self.file.open("rb") as text:
            text.seek(int(self._mark.read_text()))
            return word.search(text.read())

    def tail(self, lines: int) -> str:
        said = self.file.read_text(errors="replace").splitlines() if self.file.exists() else []
        return "\n".join(said[-lines:]) or "(the console is empty)"
