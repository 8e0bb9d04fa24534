"""What Prometheus is told of what a node has staged."""

import math
from collections.abc import Callable
from pathlib import Path

import prometheus_client
import pytest

from aoe_core.settings import Settings
from aoe_csi.composition import Composition, compose_node, compose_standalone


def staged() -> float | None:
    return prometheus_client.REGISTRY.get_sample_value("aoe_csi_staged_volumes")


@pytest.mark.parametrize("compose", [compose_node, compose_standalone])
def test_a_node_without_kubernetes_counts_its_stage_records(
    tmp_path: Path, compose: Callable[[Settings], Composition]
) -> None:
    compose(Settings(node="n", state_directory=str(tmp_path)))
    assert staged() == 0
    (tmp_path / "staged").mkdir(exist_ok=True)
    (tmp_path / "staged" / "v").write_text("damaged")
    counted = staged()
    assert counted is not None
    assert math.isnan(counted)
