"""Cleans up after a process that started a lab and ended without stopping it: `python -m aoe_lab.watcher NAME`.

Its standard input is a pipe from that process, which the kernel closes however the process ends.
"""

from __future__ import annotations

import os
import sys

from aoe_lab.lab import KEEP, end

if __name__ == "__main__":
    if sys.stdin.buffer.read() != KEEP:
        end(sys.argv[1], if_watched_by=os.getpid())
