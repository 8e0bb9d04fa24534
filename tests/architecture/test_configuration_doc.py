"""docs/configuration.md says what settings.py does: the same keys, the same defaults, examples that are accepted."""

import re

import msgspec
import pytest
from tests.documented import Example, examples

from aoe_core import settings
from aoe_lab.cachedir import CHECKOUT

PAGE = CHECKOUT / "docs/configuration.md"
EXAMPLES = examples("toml")
HEADINGS: dict[type[msgspec.Struct], str] = {
    settings.Settings: "Top level",
    settings.San: "san",
    settings.Pool: "pool",
    settings.Node: "known_node",
    settings.Exports: "exports",
    settings.Initiator: "initiator",
}


def documented(heading: str) -> dict[str, str]:
    """Return key → default, as the first table under a heading has them."""
    text = PAGE.read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]*) \|", sections[heading], re.MULTILINE)
    keys = [key for key, _ in rows]
    assert len(keys) == len(set(keys)), f"a key stands twice under {heading!r}"
    return dict(rows)


def default_of(field: msgspec.structs.FieldInfo) -> str:
    """Return a field's default as the page writes it."""
    if field.required:
        return "required"
    default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    match default:
        case msgspec.Struct():
            return "see below"
        case bool():
            return f"`{str(default).lower()}`"
        case tuple():
            return f"`{list(default)}`"
        case str():
            return f'`"{default}"`'
        case _:
            return f"`{default}`"


def test_every_table_of_the_configuration_has_its_section() -> None:
    structs = {one for one in vars(settings).values() if isinstance(one, type) and issubclass(one, msgspec.Struct)}
    assert structs == set(HEADINGS)


@pytest.mark.parametrize("struct", HEADINGS, ids=HEADINGS.values())
def test_the_page_has_every_key_and_its_default(struct: type[msgspec.Struct]) -> None:
    wanted = {field.encode_name: default_of(field) for field in msgspec.structs.fields(struct)}
    assert documented(HEADINGS[struct]) == wanted


@pytest.mark.parametrize("example", EXAMPLES, ids=[one.place for one in EXAMPLES])
def test_every_example_is_accepted(example: Example) -> None:
    settings.parse(example.text, example.place)


def test_there_is_an_example_for_each_kind_of_machine() -> None:
    kinds = {(bool(one.pool), one.compute) for one in (settings.parse(one.text) for one in EXAMPLES)}
    assert kinds == {(True, False), (False, True), (True, True)}
