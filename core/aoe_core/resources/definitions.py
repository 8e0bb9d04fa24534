"""The CustomResourceDefinitions, made from the structs of this package.

`python -m aoe_core.resources.definitions DIRECTORY` writes one file a kind; a test holds the committed files to it.
Schemas are structural (apiextensions.k8s.io/v1): no references, one type everywhere, rules in CEL.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from aoe_core.resources import guest_disk, node, shelf, snapshot, volume
from aoe_core.resources.fields import GROUP, VERSION, Fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of `kubectl get`."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False
    """Shown by `-o wide` only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One custom resource."""

    struct: type[Fields]
    short_name: str
    columns: tuple[Column, ...]
    rules: tuple[dict[str, str], ...] = ()
    selectable: tuple[str, ...] = ()
    """Fields by which the API server itself picks what a watcher is told of."""
    longest_name: int = 63
    name_pattern: str | None = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
    """A DNS label, unless said otherwise: it becomes part of a logical volume's name."""
    namespaced: bool = False

    @property
    def name(self) -> str:
        """The kind, like `AoEVolume`."""
        return self.struct.__name__

    @property
    def plural(self) -> str:
        """Its name in URLs."""
        return "aoeshelves" if self.name == "AoEShelf" else f"{self.name.lower()}s"


_AGE = Column(name="Age", path=".metadata.creationTimestamp", type="date")
_MESSAGE = ".status.conditions[?(@.status=='False')].message"

KINDS = (
    Kind(
        struct=volume.AoEVolume,
        short_name="aoev",
        rules=volume.ROOT_RULES,
        selectable=(".spec.node", ".status.node"),
        columns=(
            Column(name="Phase", path=".status.phase"),
            Column(name="Size", path=".spec.size"),
            Column(name="Pool", path=".spec.pool"),
            Column(name="Node", path=".spec.node"),
            Column(name="Held by", path=".status.holders"),
            Column(name="Trouble", path=_MESSAGE),
            Column(name="Serial", path=".status.serial", wide=True),
            Column(name="Done %", path=".status.progress.percent", type="integer", wide=True),
            _AGE,
        ),
    ),
    Kind(
        struct=snapshot.AoESnapshot,
        short_name="aoes",
        selectable=(".spec.node",),
        columns=(
            Column(name="Ready", path=".status.ready", type="boolean"),
            Column(name="Volume", path=".spec.volume"),
            Column(name="Size", path=".status.size"),
            Column(name="Node", path=".spec.node"),
            Column(name="Trouble", path=_MESSAGE),
            _AGE,
        ),
    ),
    Kind(
        struct=node.AoENode,
        short_name="aoen",
        longest_name=253,
        name_pattern=None,
        columns=(
            Column(name="Ready", path=".status.conditions[?(@.type=='Ready')].status"),
            Column(name="Free", path=".status.free"),
            Column(name="Volumes", path=".status.volumes", type="integer"),
            Column(name="Exports", path=".status.exports", type="integer"),
            Column(name="Trouble", path=_MESSAGE),
            Column(name="SANs", path=".status.sans[*].name", wide=True),
            Column(name="Work", path=".status.work[*].work", wide=True),
            Column(name="Done %", path=".status.work[*].percent", wide=True),
            _AGE,
        ),
    ),
    Kind(
        struct=shelf.AoEShelf,
        short_name="aoesh",
        rules=shelf.ROOT_RULES,
        longest_name=69,
        name_pattern=shelf.NAME_PATTERN,
        columns=(
            Column(name="SAN", path=".spec.san"),
            Column(name="Shelf", path=".spec.shelf", type="integer"),
            Column(name="Node", path=".spec.node"),
            _AGE,
        ),
    ),
    Kind(
        struct=guest_disk.AoEGuestDisk,
        short_name="aoeg",
        namespaced=True,
        rules=guest_disk.ROOT_RULES,
        longest_name=253,
        name_pattern=None,
        columns=(
            Column(name="Attached", path=".status.conditions[?(@.type=='Attached')].status"),
            Column(name="Claim", path=".spec.claim"),
            Column(name="Guest", path=".status.guest"),
            Column(name="Size", path=".status.size"),
            Column(name="Trouble", path=_MESSAGE),
            Column(name="Target", path=".status.hosts[?(@.here==true)].target", wide=True),
            Column(name="Serial", path=".status.serial", wide=True),
            Column(name="Hosts", path=".status.hosts[*].host", wide=True),
            _AGE,
        ),
    ),
)


def definition(kind: Kind) -> dict[str, Any]:
    """Return the CustomResourceDefinition of one kind."""
    schema = structural(kind.struct)
    # The API server knows the first three itself, and lets a schema say nothing more of them.
    known = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": _metadata(kind)}
    properties = schema["properties"] = {**known, **{k: v for k, v in schema["properties"].items() if k not in known}}
    has_status = "status" in properties
    if has_status:
        properties["status"].pop("default", None)
    if kind.rules:
        schema["x-kubernetes-validations"] = list(kind.rules)
    version: dict[str, Any] = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [_column(column) for column in kind.columns],
        "schema": {"openAPIV3Schema": schema},
    }
    if kind.selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in kind.selectable]
    if has_status:
        version["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{kind.plural}.{GROUP}",
            # Removing the chart must not remove the record of what the volumes are.
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": [kind.short_name],
                "categories": ["aoe"],
            },
            "versions": [version],
        },
    }


def structural(struct: type[Fields]) -> dict[str, Any]:
    """Return a struct's JSON schema as apiextensions takes it."""
    (root,), components = msgspec.json.schema_components((struct,), ref_template="{name}")
    return _structural(root, components)


def _structural(schema: Mapping[str, Any], components: Mapping[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        return _structural({**components[schema["$ref"]], **beside}, components)
    if "anyOf" in schema:
        # `X | None`: a field that may be left out. Anything else has no place in a structural schema.
        (only,) = (choice for choice in schema["anyOf"] if choice != {"type": "null"})
        beside = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
        inner = _structural(only, components)
        return {**inner, **_merged_rules(inner, beside)}
    result = {key: value for key, value in schema.items() if key not in ("title", "properties", "items", "required")}
    if "enum" in result:
        result["type"] = "string"
    if "default" in result and result["default"] in (None, (), [], {}, ""):
        # Left out and empty are the same to us; writing the default into every object would only make it longer.
        result.pop("default", None)
    if "properties" in schema:
        result["properties"] = {name: _structural(one, components) for name, one in schema["properties"].items()}
        if schema.get("required"):
            result["required"] = list(schema["required"])
    if "items" in schema:
        result["items"] = _structural(schema["items"], components)
    return result


def _merged_rules(inner: Mapping[str, Any], outer: Mapping[str, Any]) -> dict[str, Any]:
    validations = [*inner.get("x-kubernetes-validations", ()), *outer.get("x-kubernetes-validations", ())]
    return {**outer, **({"x-kubernetes-validations": validations} if validations else {})}


def _metadata(kind: Kind) -> dict[str, Any]:
    # All that may be said of metadata. The limit also keeps the price of rules that read the name in bounds.
    name: dict[str, Any] = {"type": "string", "maxLength": kind.longest_name}
    if kind.name_pattern is not None:
        name["pattern"] = kind.name_pattern
    return {"type": "object", "properties": {"name": name}}


def _column(column: Column) -> dict[str, Any]:
    return {
        "name": column.name,
        "type": column.type,
        "jsonPath": column.path,
        **({"priority": 1} if column.wide else {}),
    }


class _Plain(yaml.SafeDumper):
    """YAML without anchors: what is the same twice is written twice."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


def text(kind: Kind) -> str:
    """Return a kind's definition as YAML."""
    head = "# Made by `make crds` from core/aoe_core/resources; do not edit.\n"
    return head + str(yaml.dump(definition(kind), Dumper=_Plain, sort_keys=False, width=120))


def main(directory: Path) -> None:
    """Write all definitions."""
    directory.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        (directory / f"{kind.plural}.yaml").write_text(text(kind), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
