"""The grammar of `aoe-csi guest`, and that it leaves the other commands' alone."""

import subprocess
import sys

import pytest

from aoe_csi.__main__ import parser
from aoe_csi.guest import ACTS

UUID = "00000000-0000-4000-8000-000000000001"
CONTROLLER = ["--controller", "unix:///run/aoe-csi/storage1.sock"]


def test_every_act_has_its_words_and_is_done() -> None:
    acts = {
        "attach": ["g1", "web", *CONTROLLER],
        "prepare": ["g1", "web", "--uuid", UUID, *CONTROLLER],
        "detach": ["g1", "web", *CONTROLLER],
        "resize": ["g1", "web", "2GiB", *CONTROLLER],
        "list": [],
        "ready": [],
    }
    assert set(acts) == set(ACTS)
    for act, more in acts.items():
        options = parser().parse_args(["guest", act, *more])
        assert (options.command, options.guest_act) == ("guest", act)


def test_what_is_not_said() -> None:
    options = parser().parse_args(["guest", "attach", "g1", "web", *CONTROLLER])
    assert (options.bus, options.read_only, options.log_level) == ("virtio", False, "warning")
    assert not options.shared
    options = parser().parse_args(["guest", "prepare", "g1", "web", "--uuid", UUID.replace("-", ""), *CONTROLLER])
    assert options.uuid == UUID
    assert parser().parse_args(["node"]).log_level == "info"


@pytest.mark.parametrize(
    "words",
    [
        ["attach", "g1", "web"],
        ["attach", "g1", "web", "--bus", "ide", *CONTROLLER],
        ["prepare", "g1", "web", *CONTROLLER],
        ["prepare", "g1", "web", "--uuid", "g1", *CONTROLLER],
        ["detach", "g1", "web"],
        ["detach", "g1", "web", "--orphan", *CONTROLLER],
        ["resize", "g1", "web"],
        [],
    ],
)
def test_what_is_missing_or_unknown_is_a_usage_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(["guest", *words])
    assert ended.value.code == 2
    assert "usage: aoe-csi guest" in capsys.readouterr().err


def test_asking_for_help_loads_no_grpc() -> None:
    script = "import sys; from aoe_csi.__main__ import parser; parser(); print('grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"
