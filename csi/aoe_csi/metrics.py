"""Prometheus metrics of the calls a CSI server answers."""

import prometheus_client

CALLS = prometheus_client.Histogram(
    "aoe_csi_call_seconds",
    "Calls of CSI by method and gRPC code, with how long they took.",
    ("method", "code"),
    # From a look at a table to a copy that is waited for.
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
