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


_KNOWN = """
import aoe_core.resources.kubernetes as kubernetes
from lightkube.generic_resource import get_generic_resource
print([kind.__name__ for kind in kubernetes._PLURALS
       if not get_generic_resource(f"{kubernetes.GROUP}/{kubernetes.VERSION}", kind.__name__)])
"""


def test_the_client_library_knows_every_kind_before_there_are_threads() -> None:
    """It refused the second of two threads that told it of one kind, and a storage node's process ended."""
    said = subprocess.run([sys.executable, "-c", _KNOWN], capture_output=True, text=True, timeout=120, check=True)
    assert said.stdout.strip() == "[]"
