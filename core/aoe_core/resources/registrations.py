"""Who has registered as a compute node: what kubelet was told, and who ought to have told it."""

from collections.abc import Mapping
from typing import Protocol


class RegistrationStore(Protocol):
    """Where registrations are kept. Every method raises Unreachable."""

    def node_ids(self) -> Mapping[str, str]:
        """Return node → the CSI node id that our driver is registered under there."""

    def node_pods(self) -> Mapping[str, int]:
        """Return node → since when its node server's pod is there, in seconds since the epoch.

        Of those alone that are not ready: who is ready has registered, or is on no SAN and takes no part.
        """
