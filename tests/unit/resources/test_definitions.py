"""The committed definitions are those of the code, and structural as apiextensions.k8s.io/v1 demands."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from aoe_core.resources import definitions
from aoe_core.resources.definitions import KINDS, Kind
from aoe_core.resources.volume import AoEVolume

COMMITTED = Path(__file__).parents[3] / "charts/aoe-csi/files/crds"

each_kind = pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])


def schemas(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    for inner in schema.get("properties", {}).values():
        yield from schemas(inner)
    if "items" in schema:
        yield from schemas(schema["items"])


def root_of(kind: Kind) -> dict[str, Any]:
    (version,) = definitions.definition(kind)["spec"]["versions"]
    root: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return root


@each_kind
def test_the_committed_definition_is_the_code_s(kind: Kind) -> None:
    committed = (COMMITTED / f"{kind.plural}.yaml").read_text(encoding="utf-8")
    assert committed == definitions.text(kind), "run `make crds`"
    assert yaml.safe_load(committed) == definitions.definition(kind)


def test_nothing_else_is_committed_beside_them() -> None:
    assert {path.name for path in COMMITTED.iterdir()} == {f"{kind.plural}.yaml" for kind in KINDS}


@each_kind
def test_schemas_are_structural(kind: Kind) -> None:
    for schema in schemas(root_of(kind)):
        assert schema.get("type") in ("object", "array", "string", "integer", "boolean"), schema
        assert not schema.keys() & {"$ref", "$defs", "anyOf", "oneOf", "allOf", "title", "prefixItems"}, schema


@each_kind
def test_every_field_says_what_it_is(kind: Kind) -> None:
    root = root_of(kind)
    known_to_the_server = [root["properties"][name] for name in ("apiVersion", "kind", "metadata")]
    known_to_the_server += [root["properties"]["metadata"]["properties"]["name"]]
    for schema in schemas(root):
        for name, inner in schema.get("properties", {}).items():
            assert inner.get("description") or inner in known_to_the_server, name


@each_kind
def test_lists_and_texts_are_bounded_so_that_rules_have_a_price(kind: Kind) -> None:
    for schema in schemas(root_of(kind)):
        if schema["type"] == "array":
            assert "maxItems" in schema, schema
    for name, schema in root_of(kind)["properties"].items():
        for inner in schemas(schema) if name in ("spec", "status") else ():
            if inner["type"] == "string" and "enum" not in inner and inner.get("format") != "date-time":
                assert "maxLength" in inner or "pattern" in inner, inner


@each_kind
def test_every_rule_says_what_to_do(kind: Kind) -> None:
    for schema in schemas(root_of(kind)):
        for validation in schema.get("x-kubernetes-validations", ()):
            assert validation.keys() == {"rule", "message"}
            assert len(validation["message"]) > 15


@each_kind
def test_columns_point_at_fields_that_are_there(kind: Kind) -> None:
    for column in kind.columns:
        schema = root_of(kind)
        if column.path == ".metadata.creationTimestamp":
            continue
        for step in column.path.strip(".").split("."):
            name, _, filtered = step.partition("[")
            if name.startswith("@") or "==" in name or name.endswith("')]"):
                continue
            schema = schema["properties"][name]
            if filtered:
                schema = schema["items"]


def test_a_volume_as_a_person_writes_it_is_read() -> None:
    text = """
      apiVersion: aoe-csi.dev/v1alpha1
      kind: AoEVolume
      metadata: {name: scratch}
      spec: {size: 10Gi, pool: thin, source: {snapshot: monday}}
    """
    volume = msgspec.convert(yaml.safe_load(text), AoEVolume)
    assert (volume.spec.size, volume.spec.durability.value) == ("10Gi", "sync")
    assert volume.spec.source is not None
    assert volume.spec.source.snapshot == "monday"
    assert volume.spec.tickets == ()


def test_what_is_written_back_leaves_defaults_out() -> None:
    volume = msgspec.convert(
        {"metadata": {"name": "scratch"}, "spec": {"size": "1Gi", "pool": "thin"}, "status": {"phase": "Ready"}},
        AoEVolume,
    )
    assert msgspec.to_builtins(volume) == {
        "metadata": {"name": "scratch"},
        "spec": {"size": "1Gi", "pool": "thin"},
        "status": {"phase": "Ready"},
    }
