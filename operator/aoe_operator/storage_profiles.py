"""What CDI, KubeVirt's importer, is told of our StorageClasses: which claims to make for a disk that names none.

CDI has an object for each class (StorageProfile) and knows the provisioners in a list of its own; of others it makes no
claims unless somebody says how. The chart cannot: CDI has mostly made the object before, and Helm takes no other's.
"""

import logging
from typing import Any, Protocol

from aoe_core.errors import Conflict

log = logging.getLogger(__name__)

PROFILE: dict[str, Any] = {
    # In order of preference: a block device on two nodes is what a machine moves with.
    "claimPropertySets": [
        {"accessModes": ["ReadWriteMany"], "volumeMode": "Block"},
        {"accessModes": ["ReadWriteOnce"], "volumeMode": "Block"},
        {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem"},
    ],
    "cloneStrategy": "csi-clone",
}
"""The spec of a StorageProfile (cdi.kubevirt.io/v1beta1)."""


class ProfileStore(Protocol):
    """StorageClasses and StorageProfiles. Every method raises Unreachable."""

    def has_profiles(self) -> bool:
        """Say whether CDI is there."""

    def classes(self) -> tuple[str, ...]:
        """Return the classes of this driver, ordered by name."""

    def apply(self, name: str, spec: dict[str, Any]) -> None:
        """Set what a class's profile says. Raises: Conflict when somebody else has said something else."""


class StorageProfiles:
    """Says so for each class; what a person has set otherwise stays."""

    def __init__(self, store: ProfileStore) -> None:
        self._store = store
        self._others: set[str] = set()
        """Classes of which it was told already that a person has set them."""

    def tell(self) -> None:
        """Tell CDI, if it is there, of every class. Raises: Unreachable."""
        if not self._store.has_profiles():
            return
        for name in self._store.classes():
            try:
                self._store.apply(name, PROFILE)
            except Conflict as error:
                if name not in self._others:
                    log.info("a StorageProfile is left as it is", extra={"class": name, "why": str(error)})
                self._others.add(name)
