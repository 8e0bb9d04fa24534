"""SANs as CSI topology: one key per SAN, so that a node can be on several.

`san.aoe-csi.dev/<san>` = "true" on a node says it is on that SAN; a volume is reachable from every node that is on
any SAN its storage node is on, so its accessible topology lists one single-key term per SAN.
"""

from collections.abc import Iterable, Sequence

from aoe_core.errors import NoSpace
from aoe_core.model import SanName
from aoe_csi.proto import csi_pb2 as csi

PREFIX = "san.aoe-csi.dev/"
"""csi.proto, Topology: one prefix for every key of a plugin."""
_ON = "true"


def node_topology(sans: Iterable[SanName]) -> csi.Topology:
    """Return where a node is: on all of these SANs."""
    return csi.Topology(segments={PREFIX + san: _ON for san in sans})


def volume_topologies(sans: Iterable[SanName]) -> list[csi.Topology]:
    """Return where a volume can be reached from: any of these SANs."""
    return [node_topology((san,)) for san in sans]


def shared_sans(topology: csi.Topology, sans: Sequence[SanName]) -> tuple[SanName, ...] | None:
    """Return which of a volume's SANs nodes of a topology are on; None when they cannot reach it.

    An empty topology asks for nothing, so every SAN (and a volume without any) will do. A key that is not ours is a
    demand we cannot meet.
    """
    segments = topology.segments
    if not segments:
        return tuple(sans)
    if not all(key.startswith(PREFIX) for key in segments):
        return None
    return tuple(san for san in sans if segments.get(PREFIX + san) == _ON) or None


def required_sans(requirement: csi.TopologyRequirement, sans: Sequence[SanName]) -> tuple[SanName, ...]:
    """Return the SANs one of which must reach the volume, out of those it may be on; empty when nothing is required.

    `preferred` only orders choices between SANs that will all do, and is not looked at. Raises: NoSpace naming the
    SANs there are.
    """
    shared = [shared_sans(topology, sans) for topology in requirement.requisite]
    if not shared:
        return ()
    if all(found is None for found in shared):
        offered = ", ".join(sorted(sans)) or "none"
        raise NoSpace(
            "accessibility_requirements name no SAN that the storage can be reached over "
            f"(there: {offered}); let the workload run on nodes of these SANs"
        )
    wanted = {san for found in shared for san in found or ()}
    return tuple(san for san in sans if san in wanted)
