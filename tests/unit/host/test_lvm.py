"""HostLvm changes a volume group by one command at a time, and several groups side by side."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from aoe_core.host.contracts import Finished
from aoe_core.host.lvm import HostLvm


class Commands:
    """Runs nothing; counts how many commands of each VG, and of all, were under way at once."""

    def __init__(self, begins: threading.Barrier | None = None) -> None:
        self.most: dict[str, int] = {}
        self._running: dict[str, int] = {}
        self._guard = threading.Lock()
        self._begins = begins

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,  # noqa: ARG002
        stdin: bytes | None = None,  # noqa: ARG002
    ) -> Finished:
        for key in (argv[-1].split("/")[0], "all"):
            with self._guard:
                self._running[key] = self._running.get(key, 0) + 1
                self.most[key] = max(self.most.get(key, 0), self._running[key])
        if self._begins is not None:
            self._begins.wait(30)
        for key in (argv[-1].split("/")[0], "all"):
            with self._guard:
                self._running[key] -= 1
        return Finished(argv=tuple(argv), code=0, stdout="", stderr="", seconds=0)


def test_changes_of_one_volume_group_wait_for_each_other() -> None:
    commands = Commands()
    lvm = HostLvm(commands)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: lvm.remove("data", f"v-{number}"), range(64)))
    assert commands.most == {"data": 1, "all": 1}


def test_another_volume_group_is_not_waited_for() -> None:
    # Each command ends only when the other one has begun.
    commands = Commands(threading.Barrier(2))
    lvm = HostLvm(commands)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda vg: lvm.remove(vg, "v-a"), ["data", "other"]))
    assert commands.most == {"data": 1, "other": 1, "all": 2}
