import io
import json
import logging
from collections.abc import Iterator

import pytest

from aoe_csi import logs


@pytest.fixture
def root() -> Iterator[None]:
    logger = logging.getLogger()
    before = (logger.handlers[:], logger.level)
    for handler in before[0]:
        logger.removeHandler(handler)
    yield
    logging.basicConfig(handlers=before[0], level=before[1], force=True)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_is_one_line_whatever_it_holds(form: logs.Format) -> None:
    stream = io.StringIO()
    logs.start(form, "info", stream)
    logging.getLogger("x").info("call", extra={"volume": 'a"b\n2026 ERROR forged', "ms": 3})
    logging.getLogger("x").debug("hidden")
    (line,) = stream.getvalue().splitlines()
    assert "forged" in line
    assert "hidden" not in line


@pytest.mark.usefixtures("root")
def test_json_lines_hold_the_facts() -> None:
    stream = io.StringIO()
    logs.start("json", "info", stream)
    try:
        _ = 1 // 0
    except ZeroDivisionError:
        logging.getLogger("x").exception("bug", extra={"ms": 3, "argv": ["a", "b"], "path": io})
    line = json.loads(stream.getvalue())
    assert line["message"] == "bug"
    assert line["ms"] == 3
    assert line["argv"] == ["a", "b"]
    assert "ZeroDivisionError" in line["traceback"]
