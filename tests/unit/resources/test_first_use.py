"""Many threads may meet a kind of resource for the first time at once."""

import subprocess
import sys

import pytest

_TOGETHER = """
import sys, threading, msgspec
from lightkube.core import decoders
from lightkube.config.models import Cluster, Context, User
from aoe_core.resources import guest_kubernetes, kubernetes
from aoe_core.resources.volume import AoEVolume

sys.setswitchinterval(1e-6)
together = threading.Barrier(16)

def meet():
    together.wait()
    {what}

threads = [threading.Thread(target=meet) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
_TICKETS = "[{'node': 'c', 'nodeId': 'c', 'mode': 'single-node-writer', 'writable': True}]"
_VOLUME = "{'metadata': {'name': 'v'}, 'spec': {'size': '1Gi', 'pool': 'p', 'tickets': " + _TICKETS + "}}"
_METADATA = """{"metadata": {"name": "v", "labels": {}, "creationTimestamp": "2026-01-01T00:00:00Z"}}"""


@pytest.mark.parametrize(
    "what",
    [
        f"msgspec.convert({_VOLUME}, AoEVolume)",
        f"decoders.decode_list(b'''{{\"items\": [{_METADATA}]}}''', kubernetes.Lease)",
        f"decoders.decode_object(b'''{_METADATA}''', kubernetes.Lease)",
        f"decoders.decode_object(b'''{_METADATA}''', kubernetes.Pod)",
        f"decoders.decode_list(b'''{{\"items\": [{_METADATA}], \"metadata\": {{}}}}''', guest_kubernetes._CLAIM)",
        """decoders.decode_watch_event(b'{"type": "ADDED", "object": {}}')""",
        """decoders.decode_status(b'{"code": 404, "message": "not found", "details": {"name": "v"}}')""",
        "msgspec.convert({'server': 'https://127.0.0.1:6443'}, Cluster)",
    ],
)
def test_what_sixteen_threads_meet_at_once_ends_no_process(what: str) -> None:
    """It ended every one of twelve with SIGSEGV, while msgspec first looked at a kind when it was used."""
    code = _TOGETHER.replace("{what}", what)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


_KNOWN = """
import aoe_core.resources.kubernetes as kubernetes
from lightkube.generic_resource import get_generic_resource
print([kind.__name__ for kind in kubernetes._PLURALS
       if not get_generic_resource(f"{kubernetes.GROUP}/{kubernetes.VERSION}", kind.__name__)])
"""

_MET = """
from lightkube.core import decoders
from aoe_core.resources import guest_kubernetes, kubernetes
used = [kind for module in (kubernetes, guest_kubernetes) for kind in vars(module).values()
        if isinstance(kind, type) and hasattr(kind, "_api_info") and kind.__name__ != "GenericGlobalResource"]
used += kubernetes._GENERIC.values()
assert len(used) > 10, used
print([kind.__name__ for kind in used if kind not in decoders._list_models])
"""


@pytest.mark.parametrize(
    "code",
    [
        # It refused the second of two threads that told it of one kind, and a storage node's process ended.
        _KNOWN,
        # A Lease that two threads met at once ended the process.
        _MET,
    ],
)
def test_the_client_library_knows_every_kind_before_there_are_threads(code: str) -> None:
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert said.stdout.strip() == "[]"
