"""Values of the chart for a control plane without nodes: everything but pods that run."""

from __future__ import annotations

from typing import Any

TAKE = "--take-ownership"
"""The tests' definitions are there before helm comes."""
STORAGE_NODES = ("storage1", "storage2")


def values(**changed: Any) -> dict[str, Any]:
    """Return values of a small cluster; `changed` go over them."""
    nodes = [
        {
            "name": name,
            "pools": [{"name": "thin", "volumeGroup": "data", "thinPool": "tp"}],
            "sans": [
                {"name": "main", "interface": "eth1", "shelves": [{"first": number * 100, "last": number * 100 + 99}]}
            ],
        }
        for number, name in enumerate(STORAGE_NODES, 1)
    ]
    return {
        "sans": [{"name": "main", "interfaces": ["eth1"]}],
        "storageNodes": nodes,
        "storageClasses": [{"name": "aoe", "pool": "thin", "default": True}],
        # The lab's control plane has no VolumeSnapshot, unless a test brings it.
        "snapshots": {"enabled": False},
        **changed,
    }
