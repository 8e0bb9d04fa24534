"""Prometheus metrics of a CSI server: the calls it answers, and on a compute node the volumes it has staged."""

from collections.abc import Callable, Sequence

import prometheus_client

from aoe_core.attach.records import StageRecord
from aoe_core.errors import AoECsiError

CALLS = prometheus_client.Histogram(
    "aoe_csi_call_seconds",
    "Calls of CSI by method and gRPC code, with how long they took.",
    ("method", "code"),
    # From a look at a table to a copy that is waited for.
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)

_STAGED = prometheus_client.Gauge("aoe_csi_staged_volumes", "Volumes this node has staged.")
_SILENT = prometheus_client.Gauge(
    "aoe_csi_silent_volumes", "Staged volumes whose target has not answered for aoe_deadsecs: their I/O fails."
)


def show_staged(records: Callable[[], Sequence[StageRecord]]) -> None:
    """Count the records whenever somebody asks; one that cannot be read makes both counts NaN."""

    def count(counts: Callable[[StageRecord], bool]) -> float:
        try:
            return sum(counts(record) for record in records())
        except AoECsiError:
            return float("nan")

    _STAGED.set_function(lambda: count(lambda _: True))
    _SILENT.set_function(lambda: count(lambda record: record.dead_since_s > 0))
