"""Log lines on stderr: a fixed message and its facts, as text (key=value) or as JSON, one line each.

A fact is any `extra` a caller passes. Values are written as JSON strings, so no value can start a line of its own.
"""

import json
import logging
import sys
from typing import Literal, TextIO

Format = Literal["text", "json"]
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def facts_of(record: logging.LogRecord) -> dict[str, object]:
    """Return what a caller passed as `extra`."""
    return {key: value for key, value in vars(record).items() if key not in _PLAIN}


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = "".join(f" {key}={_value(value)}" for key, value in facts_of(record).items())
        trace = "\n" + self.formatException(record.exc_info) if record.exc_info else ""
        return f"{self.formatTime(record)} {record.levelname} {record.name}: {record.getMessage()}{facts}{trace}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **facts_of(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def _value(value: object) -> str:
    if isinstance(value, str) and value.isalnum():
        return value
    return json.dumps(value, default=str, ensure_ascii=False)


def start(form: Format, level: str, stream: TextIO | None = None) -> None:
    """Send all logging to a stream (stderr), from `level` up."""
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # The API server's client has a line for each request; one for each call of ours is enough.
    logging.getLogger("httpx2").setLevel(logging.NOTSET if level == "debug" else logging.WARNING)
