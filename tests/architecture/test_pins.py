"""What the machines run is what the rest is judged with: one version of each package."""

import re
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[2] / "requirements"


def pins(name: str) -> dict[str, str]:
    text = (REQUIREMENTS / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", text, re.MULTILINE))


def test_the_machines_have_the_versions_that_the_source_is_judged_with() -> None:
    machine, dev = pins("machine.txt"), pins("dev.txt")
    assert "grpcio" in machine
    assert machine.items() <= dev.items()


def test_every_pin_has_a_hash_and_no_address() -> None:
    for path in REQUIREMENTS.iterdir():
        text = path.read_text(encoding="utf-8")
        for block in re.split(r"\n(?=\S)", text.strip()):
            assert "--hash=sha256:" in block, block
        assert "://" not in text
