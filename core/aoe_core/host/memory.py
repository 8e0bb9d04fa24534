"""How the kernel gives this process its memory."""

import ctypes

_PR_SET_THP_DISABLE = 41
"""prctl(2), include/uapi/linux/prctl.h."""


def forgo_huge_pages() -> None:
    """Have memory given in small pages, to this process and those it starts.

    Where transparent huge pages are always given, as Debian's kernel does, each thread's stack and each corner of the
    heap takes 2 MiB for the few pages that it uses: a fifth of what a node server has. A kernel that cannot leaves it.
    """
    ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
