"""What is decoded, looked at before there are threads.

msgspec looks at a struct's fields when the struct is first used. A thread that comes second while the first still looks
gets a half-made description, and ends the process (SIGSEGV; msgspec 0.22). The client library decodes by msgspec, too.
"""

from typing import Any

import msgspec
from lightkube.config import models as kubeconfig
from lightkube.core import decoders
from lightkube.models.meta_v1 import Status


def look_at(*kinds: Any) -> None:
    """Have msgspec look at kinds of the client library, and at what a list, a watch and a refusal of them come in.

    For the import of the module that uses them: two that import one wait for each other.
    """
    for kind in kinds:
        decoders.decode_list(b'{"items": []}', kind)
    for struct in (decoders.WatchEvent, Status, kubeconfig.Cluster, kubeconfig.Context, kubeconfig.User):
        msgspec.json.Decoder(struct)
