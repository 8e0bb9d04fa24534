"""Alerts and dashboard ask for metrics that our processes have, and docs name each of them."""

import json
import re
from pathlib import Path

import prometheus_client
import promql_parser
import pytest
import yaml

import aoe_csi.cluster_node
import aoe_csi.metrics
import aoe_operator.guests_process
import aoe_operator.metrics

CHECKOUT = Path(__file__).resolve().parents[2]
FILES = CHECKOUT / "charts" / "aoe-csi" / "files"
MODULES = (aoe_csi.cluster_node, aoe_csi.metrics, aoe_operator.guests_process, aoe_operator.metrics)
"""Whoever has metrics is imported here, which registers them."""


def ours() -> set[str]:
    aoe_operator.metrics.tell_of_storage_node()
    return {family.name for family in prometheus_client.REGISTRY.collect() if family.name.startswith("aoe_csi_")}


def asked_in(expressions: list[str]) -> set[str]:
    names = {name for one in expressions for name in re.findall(r"aoe_csi_\w+", one)}
    return {re.sub(r"_(count|bucket|sum)$", "", name) for name in names}


def alerts() -> list[dict[str, object]]:
    (group,) = yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"]
    return list(group["rules"])


def shown() -> list[str]:
    """Return the dashboard's expressions, its variables as Grafana fills them in."""
    board = json.loads((FILES / "dashboard.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return [re.sub(r"\$\w+", "x", one.replace("$__rate_interval", "5m")) for one in asked]


@pytest.mark.parametrize("expression", [*(str(rule["expr"]) for rule in alerts()), *shown()])
def test_prometheus_can_read_an_expression(expression: str) -> None:
    promql_parser.parse(expression)


def test_an_expression_that_prometheus_cannot_read_is_found() -> None:
    with pytest.raises(ValueError, match="unclosed"):
        promql_parser.parse("sum(aoe_csi_volumes")


def test_alerts_ask_for_what_there_is() -> None:
    assert asked_in([str(rule["expr"]) for rule in alerts()]) <= ours()


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, dict[str, str]]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert len(rule["annotations"]["summary"]) < 100
    assert rule["annotations"]["description"].endswith((".", '"'))


def test_the_dashboard_asks_for_what_there_is() -> None:
    board = json.loads((FILES / "dashboard.json").read_text())
    assert asked_in(shown()) <= ours()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@pytest.mark.parametrize("name", sorted(ours()))
def test_a_metric_is_documented(name: str) -> None:
    assert f"`{name}`" in (CHECKOUT / "docs" / "metrics.md").read_text()
