"""Where resources are kept: what the rest of the code needs of the Kubernetes API, and no more."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from aoe_core.resources.node import AoENode
from aoe_core.resources.shelf import AoEShelf
from aoe_core.resources.snapshot import AoESnapshot
from aoe_core.resources.volume import AoEVolume

Resource = TypeVar("Resource", AoEVolume, AoESnapshot, AoENode, AoEShelf)
Answer = TypeVar("Answer")


class Store(Protocol):
    """Reads are of the present: nothing is answered from memory.

    Every method raises Unreachable when the API server does not answer, or forbids.
    """

    def get(self, kind: type[Resource], name: str) -> Resource:
        """Return a resource. Raises: NotFound."""

    def find(self, kind: type[Resource], name: str) -> Resource | None:
        """Return a resource, None when it is not there."""

    def list(self, kind: type[Resource]) -> tuple[Resource, ...]:
        """Return all resources of a kind, ordered by name."""

    def create(self, resource: Resource) -> Resource:
        """Make a resource from its name, labels, finalizers and spec. Raises: Conflict (the name is taken), Invalid."""

    def apply(self, kind: type[Resource], name: str, fields: Mapping[str, Any], *, holder: str) -> Resource:
        """Set the fields that `holder` answers for, by server-side apply, and drop those it no longer names; also if
        somebody else has set them since.

        Raises: NotFound; Invalid when a rule of the schema refuses what would come out of it.
        """

    def update(self, resource: Resource) -> Resource:
        """Replace spec and metadata, if nobody has changed the resource since it was read. Raises: NotFound, Busy,
        Invalid."""

    def update_status(self, resource: Resource) -> Resource:
        """Replace the status, if nobody has changed the resource since it was read. Raises: NotFound, Busy."""

    def delete(self, kind: type[Resource], name: str) -> None:
        """Ask for a resource's end; finalizers may hold it up. An absent one is deleted."""

    def delete_as_seen(self, resource: Resource) -> None:
        """The same, if nobody has changed the resource since it was read. Raises: Busy."""

    def is_definition_going(self, kind: type[Resource]) -> bool:
        """Say whether a kind's definition is being removed, or gone: its resources go with it, and nobody wished it."""

    def await_(
        self,
        kind: type[Resource],
        name: str,
        answer: Callable[[Resource | None], Answer | None],
        *,
        timeout_s: float,
        first: Callable[[], Resource | None] | None = None,
    ) -> Answer | None:
        """Look at a resource now and whenever it changes, until `answer` returns something; None at the time limit.

        `answer` is given None for a resource that is not there, and may raise. `first`: done in place of the first
        look, and returns the resource; a change that follows it is not missed.
        """
