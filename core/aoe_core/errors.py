"""The one error tree: what can go wrong, said once, for every process.

    AoECsiError
    ├── Invalid          malformed or contradictory request
    ├── NotFound         volume, snapshot, node or path is absent (absent, not unknown)
    ├── Conflict         the same name exists with other content
    ├── OutOfRange       a size outside the limits, or a shrink
    ├── InUse            attached, mounted, exported or opened by somebody
    ├── NoSpace          space, slots, shelves or attachments are exhausted
    ├── Busy             another call holds the object
    ├── Unfinished       something changed and the end is not proven; ask again
    ├── Unreachable      a target, a daemon or a host does not answer
    ├── Unsupported      not offered here
    ├── CommandFailed    a host command failed and nothing changed
    └── IdentityMismatch a device is not the volume it should be (an InUse-like refusal: nothing was mounted)

`str(error)` is one sentence for a person: object, fact, number, remedy. Command lines and their output go to the log.
The edges translate the tree by one table each: `aoe_csi.interceptor` to gRPC codes, the operator to kopf's errors.
"""


class AoECsiError(Exception):
    """Root of the tree; never raised itself."""


class Invalid(AoECsiError):
    """The request is malformed, or asks for something no volume of ours can be."""


class NotFound(AoECsiError):
    """The named object is proven absent."""


class Conflict(AoECsiError):
    """An object of this name exists and differs from what is asked for."""


class OutOfRange(AoECsiError):
    """A size lies outside the limits, or would shrink a volume."""


class InUse(AoECsiError):
    """Somebody uses the object, so the change is refused."""


class NoSpace(AoECsiError):
    """A finite supply (bytes, slots, masks, attachments) is used up."""


class Busy(AoECsiError):
    """Another operation on the same object is under way."""


class Unfinished(AoECsiError):
    """Something may have changed and the end is not proven; the same call again will find out."""


class Unreachable(AoECsiError):
    """Something outside this process does not answer."""


class Unsupported(AoECsiError):
    """Not offered by this driver, or not by this pool."""


class CommandFailed(AoECsiError):
    """A host command failed before it changed anything."""


class IdentityMismatch(InUse):
    """The device that answers is not provably the volume; it was neither read from nor written to."""
