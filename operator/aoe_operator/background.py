"""Work that is done again and again beside what kopf calls."""

import logging
from collections.abc import Callable

from aoe_core.errors import AoECsiError

log = logging.getLogger(__name__)


def attempt(work: Callable[[], object], name: str) -> None:
    """Do a round of some work; one that fails, or has a bug, is logged. The thread must outlive it."""
    try:
        work()
    except AoECsiError as error:
        log.error("background work failed", extra={"work": name, "error": str(error)})
    except Exception:
        log.exception("background work failed", extra={"work": name})
