"""Examples of the documentation: the API server takes each resource, the chart each of its values."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import yaml
from tests.documented import Example, examples

from aoe_lab.kubernetes.helm import Helm

from .installed import values

if TYPE_CHECKING:
    from pathlib import Path

    from aoe_lab.kubernetes.control_plane import ControlPlane

EXAMPLES = examples("yaml")
RESOURCES = [one for one in EXAMPLES if one.resources()]
VALUES = [one for one in EXAMPLES if not one.resources()]
OTHERS = "kubevirt.io/"
"""Of which an API server knows nothing without them: these examples are tried in tests/kubevirt."""


def test_there_are_examples_of_both_kinds() -> None:
    assert {one["kind"] for example in RESOURCES for one in example.resources()} >= {"AoEVolume", "AoEGuestDisk"}
    assert {key for example in VALUES for key in yaml.safe_load(example.text)} >= {"storageNodes", "guests"}


@pytest.mark.parametrize("example", RESOURCES, ids=[one.place for one in RESOURCES])
def test_a_resource_is_accepted(clean: ControlPlane, example: Example) -> None:
    for one in example.resources():
        if one["apiVersion"].startswith(OTHERS):
            continue
        words = ("create", "--dry-run=server", "--validate=strict", "--namespace=default", "-f", "-")
        clean.kubectl(*words, stdin=json.dumps(one))


@pytest.mark.parametrize("example", VALUES, ids=[one.place for one in VALUES])
def test_values_are_accepted(tmp_path: Path, example: Example) -> None:
    helm = Helm(kubeconfig=tmp_path / "none", place=tmp_path)
    given = yaml.safe_load(example.text)
    # The class of an example is of pools that its own storage nodes have; one without either takes ours.
    helm.template(values(**given))
