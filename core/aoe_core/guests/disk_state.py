"""A recorded disk as it stands: what was written down, and what libvirt says now."""

import enum
from dataclasses import dataclass

from aoe_core.guests.disk import alias_of, find_disk, has_come
from aoe_core.guests.records import GuestRecord
from aoe_core.host.contracts import Domain


class DiskState(enum.Enum):
    """Where a recorded disk stands."""

    ATTACHED = "attached"
    """In every place of its domain where it is to be."""
    INCOMPLETE = "incomplete"
    """Wanted, and not in every such place: attach it again."""
    ENDING = "ending"
    """A detach has begun and not ended: detach it again."""
    EXPECTED = "expected"
    """Ready for a domain that is to come from another host: migrate it, or detach it again."""
    DOMAIN_GONE = "domain gone"
    """Detach it, to let go of its device."""
    UNKNOWN = "unknown"
    """libvirt does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestDisk:
    """A recorded disk as it is now."""

    record: GuestRecord
    device: str
    domain: Domain | None
    """None also when the domain is gone."""
    known: bool
    """Whether libvirt answered."""

    @property
    def live(self) -> bool:
        """Whether the running guest has it."""
        return self.domain is not None and find_disk(self.domain.live, self._alias) is not None

    @property
    def config(self) -> bool:
        """Whether the domain starts with it."""
        return self.domain is not None and find_disk(self.domain.config, self._alias) is not None

    @property
    def has_come(self) -> bool:
        """Whether its guest runs here with it."""
        return self.domain is not None and has_come(self.domain, self._alias)

    @property
    def state(self) -> DiskState:
        """Where it stands."""
        if not self.known:
            return DiskState.UNKNOWN
        if not self.record.wanted:
            return DiskState.ENDING
        if self.domain is None:
            return DiskState.EXPECTED if self.record.expected else DiskState.DOMAIN_GONE
        whole = self.config >= self.domain.persistent and self.live >= self.domain.running
        return DiskState.ATTACHED if whole else DiskState.INCOMPLETE

    @property
    def _alias(self) -> str:
        return alias_of(self.record.attachment.serial)
