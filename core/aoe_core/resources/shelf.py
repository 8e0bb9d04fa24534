"""AoEShelf: the claim of one storage node to one AoE shelf of one SAN.

The claim is the creation of the object: its name is SAN and shelf, so the API server lets one node have it.
"""

from typing import Annotated

from msgspec import Meta

from aoe_core.resources.fields import (
    Fields,
    LabelName,
    ObjectMeta,
    ObjectName,
    ShelfNumber,
    rule,
    rules,
)


class AoEShelfSpec(Fields, frozen=True, kw_only=True):
    """Whose it is."""

    san: Annotated[LabelName, Meta(description="The SAN.")]
    shelf: Annotated[
        ShelfNumber,
        Meta(description="The shelf: 0 to 65534, without 4095."),
        rules(rule("self != 4095", "shelf 4095 cannot be used: Linux drops what it says")),
    ]
    node: Annotated[ObjectName, Meta(description="The storage node.")]
    machine_id: Annotated[
        str,
        Meta(
            max_length=32,
            description="Who claimed it, and alone knows which addresses rest: /etc/machine-id of the node then, or a"
            " name made up after its memory was lost. /var/lib/aoe-csi/claimant/id has it.",
        ),
    ] = ""


class AoEShelf(Fields, frozen=True, kw_only=True):
    """A shelf of ATA-over-Ethernet addresses, e<shelf>.0 to e<shelf>.254, that one storage node exports on."""

    metadata: ObjectMeta
    spec: Annotated[
        AoEShelfSpec,
        Meta(description="Whose it is."),
        rules(rule("self == oldSelf", "a claimed shelf cannot change hands; see the runbook on replacing a node")),
    ]


def shelf_name(san: str, shelf: int) -> str:
    """Return the name of the claim."""
    return f"{san}-{shelf}"


NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?-(0|[1-9][0-9]{0,4})$"
"""No leading zeros: else `main-010` would claim shelf 10 a second time."""

ROOT_RULES = (
    # Not by writing the number out: the API server reckons such a text to be of any length, and refuses the rule.
    rule(
        "self.metadata.name.startsWith(self.spec.san + '-')"
        " && int(self.metadata.name.substring(self.spec.san.size() + 1)) == self.spec.shelf",
        "the name must be <san>-<shelf>: it is what makes the claim the only one",
    ),
)
