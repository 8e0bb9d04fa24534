"""StorageClass and VolumeSnapshotClass parameters, parsed once.

An unknown parameter is refused by name: a misspelt `durability` must not quietly become the default.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from aoe_core.errors import Invalid, NoSpace
from aoe_core.model import Durability, PoolName, SanName, Wipe
from aoe_csi.capabilities import FileSystemName, parse_filesystem
from aoe_csi.requests import shown

FSTYPE = "csi.storage.k8s.io/fstype"
KNOWN = ("pool", "san", "durability", "wipe", FSTYPE)
"""What a StorageClass may say."""
_ADDED = frozenset(f"csi.storage.k8s.io/{key}" for key in ("pvc/name", "pvc/namespace", "pv/name"))
"""What the external-provisioner adds under --extra-create-metadata; of no use here."""
_ADDED_TO_SNAPSHOTS = frozenset(
    f"csi.storage.k8s.io/{key}"
    for key in ("volumesnapshot/name", "volumesnapshot/namespace", "volumesnapshotcontent/name")
)
"""The same of the external-snapshotter."""

Choice = TypeVar("Choice", Durability, Wipe)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """A StorageClass's wishes; None where it leaves the choice open."""

    pool: PoolName | None
    san: SanName | None
    durability: Durability
    wipe: Wipe
    filesystem: FileSystemName | None


def _choose(parameters: Mapping[str, str], key: str, otherwise: Choice) -> Choice:
    kind = type(otherwise)
    text = parameters.get(key, otherwise.value)
    try:
        return kind(text)
    except ValueError:
        offered = " or ".join(choice.value for choice in kind)
        raise Invalid(f"parameter {key} is {shown(text)}; say {offered}") from None


def parse_parameters(parameters: Mapping[str, str]) -> Parameters:
    """Return what a StorageClass asks for. Raises: Invalid naming the parameter and those there are."""
    for key in sorted(parameters):
        if key not in KNOWN and key not in _ADDED:
            raise Invalid(f"parameter {shown(key)} is not known; the known ones are {', '.join(KNOWN)}")
    return Parameters(
        pool=PoolName(parameters["pool"]) if "pool" in parameters else None,
        san=SanName(parameters["san"]) if "san" in parameters else None,
        durability=_choose(parameters, "durability", Durability.SYNC),
        wipe=_choose(parameters, "wipe", Wipe.ZERO),
        filesystem=parse_filesystem(parameters[FSTYPE], f"parameter {FSTYPE}") if FSTYPE in parameters else None,
    )


def refuse_mutable(parameters: Mapping[str, str]) -> None:
    """Raise Invalid when there are mutable parameters: nothing of a volume but its size can change."""
    if parameters:
        raise Invalid(
            f"mutable parameter {shown(min(parameters))} is not known; there are none, "
            "so leave the VolumeAttributesClass out"
        )


def refuse_snapshot_parameters(parameters: Mapping[str, str]) -> None:
    """Raise Invalid when a snapshot class has parameters of its own: there are none."""
    for key in sorted(parameters):
        if key not in _ADDED_TO_SNAPSHOTS:
            raise Invalid(f"parameter {shown(key)} is not known; snapshots have none, so remove it from the class")


def choose_pool(wanted: PoolName | None, pools: Sequence[PoolName]) -> PoolName:
    """Return the pool to use. Raises: Invalid when it is unknown, or left out where there are several."""
    if not pools:
        raise NoSpace("no pool is offered by any storage node; configure one, then ask again")
    offered = ", ".join(sorted(pools))
    if wanted is None:
        if len(pools) > 1:
            raise Invalid(f"parameter pool is missing and there are {len(pools)} pools; say one of {offered}")
        return pools[0]
    if wanted not in pools:
        raise Invalid(f"parameter pool is {shown(wanted)}, which no storage node offers; say one of {offered}")
    return wanted


def choose_sans(wanted: SanName | None, sans: Sequence[SanName]) -> tuple[SanName, ...]:
    """Return the SANs a volume may be reached over: the one asked for, or all. Raises: Invalid when it is unknown."""
    if wanted is None:
        return tuple(sans)
    if wanted not in sans:
        offered = ", ".join(sorted(sans)) or "none"
        raise Invalid(f"parameter san is {shown(wanted)}, which no storage node is on; the SANs there are: {offered}")
    return (wanted,)
