from pathlib import Path

import pytest

from aoe_core.errors import Invalid
from aoe_csi.endpoint import parse_endpoint


@pytest.mark.parametrize("endpoint", ["unix:///run/csi.sock", "unix:/run/csi.sock", "/run/csi.sock"])
def test_spellings_of_a_socket(endpoint: str) -> None:
    assert parse_endpoint(endpoint) == Path("/run/csi.sock")


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://0.0.0.0:9000", "0.0.0.0:9000", "dns:///host:1", "unix://csi.sock", "unix-abstract:x", "", "csi.sock", "/"],
)
def test_other_endpoints_are_refused_with_the_reason(endpoint: str) -> None:
    with pytest.raises(Invalid, match="endpoint"):
        parse_endpoint(endpoint)


def test_a_path_too_long_for_a_socket_is_refused() -> None:
    with pytest.raises(Invalid, match="100 bytes"):
        parse_endpoint("/" + "x" * 104)
