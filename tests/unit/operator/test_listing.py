"""What kopf is told of a list: what needs something, and nothing that nobody asks for."""

import msgspec

from aoe_core.errors import CommandFailed
from aoe_operator.listing import decode

KIND = "AoEVolume"


def resource(name: str) -> dict[str, object]:
    return {"kind": KIND, "metadata": {"name": name, "managedFields": [{"manager": "m"}]}, "status": {"size": "1Gi"}}


def answer(*names: str) -> bytes:
    listed = [resource(name) for name in names]
    return msgspec.json.encode({"kind": f"{KIND}List", "metadata": {"resourceVersion": "7"}, "items": listed})


def name_of(listed: msgspec.Raw) -> str:
    name = msgspec.json.decode(listed)["metadata"]["name"]
    assert isinstance(name, str)
    return name


def test_a_list_holds_what_needs_something() -> None:
    told = decode(answer("a", "b", "c"), {KIND: lambda listed: name_of(listed) != "b"})
    assert told == {
        "kind": "AoEVolumeList",
        "metadata": {"resourceVersion": "7"},
        "items": [{"kind": KIND, "metadata": {"name": "b"}, "status": {"size": "1Gi"}}],
    }


def test_of_other_kinds_all_are_listed() -> None:
    told = decode(answer("a", "b"), {"AoENode": lambda _: True})
    assert [one["metadata"]["name"] for one in told["items"]] == ["a", "b"]


def test_nobody_is_asked_again_who_cannot_say() -> None:
    """LVM that hangs takes a minute to say so: not once for each volume."""
    asked = []

    def fails_at_b(listed: msgspec.Raw) -> bool:
        asked.append(name_of(listed))
        if asked[-1] == "b":
            raise CommandFailed("lvm hangs")
        return True

    told = decode(answer("a", "b", "c"), {KIND: fails_at_b})
    assert asked == ["a", "b"]
    assert [one["metadata"]["name"] for one in told["items"]] == ["b", "c"]


def test_what_is_no_list_is_told_as_it_is() -> None:
    one = resource("a")
    assert decode(msgspec.json.encode(one), {KIND: lambda _: True}) == one
    assert decode(b" ", {}) is None
