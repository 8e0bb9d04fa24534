"""What Prometheus is told of refusals, and of a storage node by nobody else."""

import subprocess
import sys

import prometheus_client

from aoe_core.resources.fields import Condition
from aoe_operator.metrics import Refusals


def said(type_: str, status: str, reason: str) -> Condition:
    return Condition(
        type=type_, status=status, reason=reason, message="m", last_transition_time="t", observed_generation=1
    )


def counted(kind: str, type_: str, reason: str) -> float:
    labels = {"kind": kind, "type": type_, "reason": reason}
    return prometheus_client.REGISTRY.get_sample_value("aoe_csi_refusals", labels) or 0.0


def test_what_is_false_is_counted_until_it_holds_or_is_gone() -> None:
    refusals = Refusals()
    for name in ("a", "b"):
        for _ in range(2):
            refusals.show("Kind", name, (said("Revoked", "False", "Unfinished"), said("Ready", "True", "Done")))
    assert counted("Kind", "Revoked", "Unfinished") == 2
    assert counted("Kind", "Ready", "Done") == 0
    refusals.show("Kind", "a", (said("Revoked", "True", "Done"),))
    refusals.show("Kind", "b", (said("Revoked", "False", "InUse"),))
    assert (counted("Kind", "Revoked", "Unfinished"), counted("Kind", "Revoked", "InUse")) == (0, 1)
    refusals.show("Kind", "b")
    assert counted("Kind", "Revoked", "InUse") == 0


def test_another_role_tells_of_no_storage_node_that_is_not_ready() -> None:
    program = "import prometheus_client, aoe_operator.metrics; print(prometheus_client.generate_latest().decode())"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "aoe_csi_reconcile_seconds" in told
    for name in ("aoe_csi_storage_ready", "aoe_csi_heartbeat_timestamp_seconds"):
        assert name not in told
