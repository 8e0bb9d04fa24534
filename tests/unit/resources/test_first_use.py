"""Many threads may meet a kind of resource for the first time at once."""

import subprocess
import sys

_FIRST_USE = """
import sys, threading, msgspec
from aoe_core.resources import kubernetes
from aoe_core.resources.volume import AoEVolume

sys.setswitchinterval(1e-6)
ticket = {"node": "c", "nodeId": "c", "mode": "single-node-writer", "writable": True}
raw = {"metadata": {"name": "v"}, "spec": {"size": "1Gi", "pool": "thin", "tickets": [ticket]}}
together = threading.Barrier(16)

def meet():
    together.wait()
    msgspec.convert(raw, AoEVolume)

threads = [threading.Thread(target=meet) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_a_kind_that_sixteen_threads_meet_at_once_ends_no_process() -> None:
    """It ended every one of twelve with SIGSEGV, while msgspec first looked at a kind when it was used."""
    done = subprocess.run([sys.executable, "-c", _FIRST_USE], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
