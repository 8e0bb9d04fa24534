"""What several kinds share: object metadata, conditions, and field types with the limits the API server enforces.

A rule is CEL (https://kubernetes.io/docs/reference/using-api/cel/) with the sentence a person reads when it is broken.
"""

import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from aoe_core.errors import Invalid

GROUP = "aoe-csi.dev"
VERSION = "v1alpha1"

MAX_TICKETS = 64
MAX_SANS = 16
"""Lists are bounded so that the API server can reckon what a rule over them costs at most."""


def rule(expression: str, message: str) -> dict[str, str]:
    """Return one validation of a schema."""
    return {"rule": expression, "message": message}


def rules(*validations: dict[str, str]) -> Meta:
    """Return what hangs validations on a field or a list."""
    return Meta(extra_json_schema={"x-kubernetes-validations": list(validations)})


def keyed_by(key: str) -> Meta:
    """Return what makes a list a map by `key`, so that each holder applies its own item (server-side apply)."""
    return Meta(extra_json_schema={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]})


A_SET = Meta(extra_json_schema={"x-kubernetes-list-type": "set"})

ObjectName = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$", max_length=253)]
"""The name of a Kubernetes object, a node's among them."""
LabelName = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", max_length=63)]
"""A DNS label: pools, SANs (they become topology keys), volumes and snapshots."""
MacAddress = Annotated[str, Meta(pattern=r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$", max_length=17)]
Interface = Annotated[str, Meta(pattern=r"^[^\s/]{1,15}$", max_length=15)]
ShelfNumber = Annotated[int, Meta(ge=0, le=65534)]
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
"""RFC 3339, as metav1.Time."""

_QUANTITY = re.compile(r"(\d{1,19})(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E)?")
_FACTORS = {None: 1} | {
    name + suffix: base**power
    for base, suffix in ((1000, ""), (1024, "i"))
    for power, name in enumerate("kMGTPE" if base == 1000 else "KMGTPE", start=1)
}
Quantity = Annotated[str, Meta(pattern=f"^{_QUANTITY.pattern}$", max_length=21)]
"""A whole number of bytes as Kubernetes writes it: `10Gi`, `500M`, `1073741824`. Fractions are not taken."""


def parse_quantity(text: str) -> int:
    """Return the bytes that a quantity says. Raises: Invalid."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise Invalid(f"{text!r} is no size in whole bytes; write it like 10Gi")
    return int(match[1]) * _FACTORS[match[2]]


def quantity(size_bytes: int) -> str:
    """Return bytes as Kubernetes writes them: by the largest binary unit that leaves no fraction."""
    for unit in ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki"):
        if size_bytes and size_bytes % _FACTORS[unit] == 0:
            return f"{size_bytes // _FACTORS[unit]}{unit}"
    return str(size_bytes)


class Fields(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A part of a resource: camelCase on the wire, defaults left out."""


class Condition(Fields, frozen=True, kw_only=True):
    """One thing that can be said of an object, with its reason: metav1.Condition."""

    type: Annotated[str, Meta(max_length=316, description="What is said, in CamelCase.")]
    status: Annotated[str, Meta(pattern="^(True|False|Unknown)$", description="Whether it holds.")]
    reason: Annotated[
        str, Meta(pattern="^[A-Za-z][A-Za-z0-9_]*$", max_length=1024, description="Why, in one CamelCase word.")
    ]
    message: Annotated[str, Meta(max_length=32768, description="The fact, and what to do about it.")] = ""
    last_transition_time: Annotated[Time, Meta(description="When `status` last changed.")]
    observed_generation: Annotated[int, Meta(ge=0, description="The generation it was judged by.")] = 0


Conditions = Annotated[tuple[Condition, ...], Meta(max_length=16), keyed_by("type")]


class Progress(Fields, frozen=True, kw_only=True):
    """Work that takes a while."""

    work: Annotated[str, Meta(max_length=256, description="What is being done.")]
    percent: Annotated[int, Meta(ge=0, le=100, description="How much of it is done.")]


class ObjectMeta(Fields, frozen=True, kw_only=True):
    """The part of metav1.ObjectMeta that is read here; the API server knows its schema."""

    name: str
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: tuple[str, ...] = ()
    owner_references: tuple[dict[str, Any], ...] = ()
    """Kept as they are: whoever replaces an object would else take them away."""
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
