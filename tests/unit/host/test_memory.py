"""Small pages: what the kernel says of a process that asked for them."""

import subprocess
import sys

from aoe_core.host import memory

_PR_GET_THP_DISABLE = 42


def test_a_process_and_those_it_starts_get_small_pages() -> None:
    said = f"import ctypes; print(ctypes.CDLL(None).prctl({_PR_GET_THP_DISABLE}, 0, 0, 0, 0))"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {said!r}], check=True)"
    words = f"from {memory.__name__} import forgo_huge_pages as f; f(); {said}; sys.stdout.flush(); {child}"
    done = subprocess.run([sys.executable, "-c", f"import sys; {words}"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]
