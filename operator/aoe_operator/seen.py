"""What this storage node has already seen of each volume's spec: so that a restored backup is not taken for a wish.

An API server whose etcd was put back to an older state says with the same voice what was so yesterday: tickets that are
long since given back, and none of those given since. Who followed it would revoke what is in use. So the generation of
the newest spec is kept on the host, written before anything is done about it; a spec that is older, or another one of
the same generation, is not followed until a person says so.
"""

import hashlib
import threading

import msgspec

from aoe_core.errors import CommandFailed, Conflict
from aoe_core.host.contracts import RecordFiles
from aoe_core.resources.fields import GROUP
from aoe_core.resources.volume import AoEVolume

FOLLOW = f"{GROUP}/follow-restored"
"""Annotation of an AoEVolume: the generation that a person wants to be forgotten."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The newest spec that was seen."""

    uid: str
    generation: int
    digest: str
    revision: int = 0
    """The API server's, when this spec was first seen; it only grows. 0: not known."""
    held: bool = False
    """Whether an older spec was seen since: then no newer one is followed either, since it grew out of that."""


# Made before there are threads: two that make it at once would crash in msgspec.
_DECODER = msgspec.json.Decoder(Record)


class Seen:
    """The records of one storage node."""

    def __init__(self, files: RecordFiles) -> None:
        self._files = files
        self._guard = threading.Lock()
        self._known: dict[str, Record] | None = None
        self._damaged: dict[str, str] = {}

    def require_current(self, volume: AoEVolume) -> None:
        """Note a volume's spec as seen. Raises: Conflict when it is older than one seen before, CommandFailed when the
        records cannot be read or written."""
        known = self._records()
        name = volume.metadata.name
        if name in self._damaged:
            raise CommandFailed(
                f"the record of what was seen of volume {name} cannot be read ({self._damaged[name]}); remove"
                f" /var/lib/aoe-csi/seen/{name} if its resource is of today, and restart the storage role's pod"
            )
        before, now = known.get(name), plan(known.get(name), volume)
        if now != before:
            self._files.write(name, msgspec.json.encode(now).decode())
            known[name] = now
        if now.held:
            raise Conflict(
                f"the spec of volume {name} is older than one this storage node has seen (generation"
                f" {now.generation}): was etcd restored from a backup? Nothing is granted, revoked, grown or deleted"
                f" until somebody has compared it with /var/lib/aoe-csi/exports of the storage node, and says:"
                f" kubectl annotate --overwrite aoevolume {name} {FOLLOW}={now.generation}"
            )

    def is_noted(self, volume: AoEVolume) -> bool:
        """Say whether a volume's spec is the one that was seen last, and is followed. Notes nothing: for what may be
        older than what is being looked at just now."""
        name = volume.metadata.name
        known = self._records().get(name)
        return known is not None and not known.held and name not in self._damaged and plan(known, volume) == known

    def forget(self, name: str) -> None:
        """Forget a volume that was deleted. Raises: CommandFailed."""
        if name in self._records():
            self._files.remove(name)
            self._records().pop(name, None)

    def _records(self) -> dict[str, Record]:
        # Many volumes are looked at at once when a process starts: none may take what is not read yet for never seen.
        with self._guard:
            if self._known is None:
                known = {}
                for name, text in self._files.read_all().items():
                    try:
                        known[name] = _DECODER.decode(text)
                    except msgspec.DecodeError as error:
                        self._damaged[name] = str(error)
                self._known = known
            return self._known


def plan(before: Record | None, volume: AoEVolume) -> Record:
    """Return the record of a volume after its present spec was seen."""
    uid, generation = volume.metadata.uid, volume.metadata.generation
    now = Record(uid=uid, generation=generation, digest=_digest(volume), revision=_revision(volume))
    if before is None:
        return now
    if before.held:
        return now if volume.metadata.annotations.get(FOLLOW) == str(before.generation) else before
    if before.uid != uid:
        # Made anew under the same name, or the one that had the name before, out of a backup.
        is_newer = now.revision >= before.revision or not now.revision
        return now if is_newer else msgspec.structs.replace(before, held=True)
    if (generation, now.digest) == (before.generation, before.digest):
        return before
    # A restored spec that was changed several times since may count as many generations as the one that was lost.
    if generation > before.generation and (now.revision >= before.revision or not now.revision):
        return now
    return msgspec.structs.replace(before, held=True)


def _revision(volume: AoEVolume) -> int:
    version = volume.metadata.resource_version
    return int(version) if version.isdecimal() else 0


def _digest(volume: AoEVolume) -> str:
    return hashlib.sha256(msgspec.json.encode(volume.spec)).hexdigest()[:16]
