from pathlib import Path

import pytest

from aoe_core.errors import Unreachable
from aoe_core.host.links import boot_id, interface_mac
from aoe_core.model import Mac


def show(root: Path, **files: str) -> None:
    directory = root / "class/net/san0"
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name).write_text(text)


def test_a_card_that_is_up_has_its_address(tmp_path: Path) -> None:
    show(tmp_path, address="52:54:00:00:01:15\n", flags="0x1003\n", carrier="1\n")
    assert interface_mac("san0", tmp_path) == Mac("52:54:00:00:01:15")


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"address": "52:54:00:00:01:15\n", "flags": "0x1002\n", "carrier": "1\n"},
        {"address": "52:54:00:00:01:15\n", "flags": "0x1003\n", "carrier": "0\n"},
        {"address": "52:54:00:00:01:15\n", "flags": "0x1003\n"},
        {"address": "\n", "flags": "0x1003\n", "carrier": "1\n"},
    ],
)
def test_a_card_that_is_missing_or_down_cannot_be_registered(tmp_path: Path, files: dict[str, str]) -> None:
    show(tmp_path, **files)
    with pytest.raises(Unreachable, match="san0"):
        interface_mac("san0", tmp_path)


def test_the_boot_is_eight_hex_digits() -> None:
    assert len(boot_id()) == 8
    assert int(boot_id(), 16) >= 0
    assert boot_id() == boot_id()
