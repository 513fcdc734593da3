"""Structured logging to standard error, as logfmt text or JSON lines, for structlog and the standard library alike.

Both forms carry `time` (RFC 3339, UTC, nanoseconds), `level` (containerd's names) and `msg` first.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

TRACE = 5
LEVELS = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "panic": logging.CRITICAL,
}
_NAMES = {"warning": "warn", "critical": "fatal", "exception": "error"}

Event = MutableMapping[str, Any]


def configure(level: str, format_: str, stream: TextIO | None = None) -> None:
    """Send all log records at `level` (a key of LEVELS, "" is info) and above to the stream, as `text` or `json`."""
    renderer: Any = structlog.processors.JSONRenderer(default=str) if format_ == "json" else _render_text
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        _add_time,
        structlog.processors.format_exc_info,
        _rename,
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(LEVELS[level or "info"])
    logging.addLevelName(TRACE, "TRACE")
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _add_time(_logger: Any, _name: str, event: Event) -> Event:
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    event["time"] = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanos:09d}Z"
    return event


def _rename(_logger: Any, _name: str, event: Event) -> Event:
    """Put time, level and msg in front, drop what is None."""
    level = str(event.pop("level", "info"))
    front = {"time": event.pop("time"), "level": _NAMES.get(level, level), "msg": event.pop("event", "")}
    return {**front, **{key: value for key, value in event.items() if value is not None}}


def _render_text(_logger: Any, _name: str, event: Event) -> str:
    return " ".join(f"{key}={_logfmt(key, value)}" for key, value in event.items())


def _logfmt(key: str, value: object) -> str:
    text = value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    plain = key == "level" or (text != "" and all(c.isalnum() or c in "-._/@^+:" for c in text))
    if plain and key not in ("time", "msg"):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t") + '"'
