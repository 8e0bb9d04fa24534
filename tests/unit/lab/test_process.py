"""The programs that carry the lab: how they end."""

import sys
from pathlib import Path

from aoe_lab import process

BYSTANDERS = 40
"""Killed between the two: time enough for the second to see the first one's death, if it lived."""
ROUNDS = 5


def test_no_process_of_a_power_cut_lives_to_see_another_s_death(tmp_path: Path) -> None:
    """As an emulator would whose disk is gone: it tells its guest of an error, and the guest tells others."""
    for number in range(ROUNDS):
        pipe, noticed = tmp_path / f"pipe-{number}", tmp_path / f"noticed-{number}"
        process.run(["mkfifo", pipe], timeout_s=5)
        disk = process.start(["sh", "-c", f"exec 3>{pipe}; exec sleep 600"])
        watch = f"open({str(pipe)!r}).read(); open({str(noticed)!r}, 'w')"
        emulator = process.start([sys.executable, "-c", watch])
        children = [disk, *(process.start(["sleep", "600"]) for _ in range(BYSTANDERS)), emulator]
        while "sleep" not in Path(f"/proc/{disk.pid}/comm").read_text():
            pass  # Its shell waits for the reader.
        process.kill([child.pid for child in children])
        for child in children:
            child.wait()
        assert not noticed.exists()
