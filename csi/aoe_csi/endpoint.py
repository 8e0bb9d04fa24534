"""CSI's endpoints, `unix:///path`: where a server's socket is.

Beside the server, not in it: a client is begun for one call, and need not load what counts and serves them.
"""

import os
from pathlib import Path

from aoe_core.errors import Invalid

_MAX_PATH_BYTES = 107
"""unix(7): sun_path has 108 bytes with its NUL."""


def parse_endpoint(endpoint: str) -> Path:
    """Return the socket's path for `unix:///path`, `unix:/path` or `/path`. Raises: Invalid."""
    text = endpoint
    for scheme in ("unix://", "unix:"):
        if endpoint.startswith(scheme):
            text = endpoint.removeprefix(scheme)
            break
    if not text.startswith("/"):
        raise Invalid(
            f"endpoint {endpoint!r} is no unix socket; CSI has no authentication, so only local sockets are served: "
            "write unix:///run/aoe-csi/csi.sock"
        )
    path = Path(text)
    if not path.name or len(os.fsencode(private_path(path))) > _MAX_PATH_BYTES:
        raise Invalid(f"endpoint {endpoint!r} cannot be a socket's path; Linux takes about 100 bytes, name a file")
    return path


def private_path(path: Path) -> Path:
    """Return where a server makes its socket before it is moved to its place."""
    return path.with_name(f".{path.name}.new")
