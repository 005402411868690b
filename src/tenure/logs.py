"""How a process writes its log: one event per line, on standard error, as text or as JSON.

Texts in a log come from jobs and requests, so control characters are shown, never sent: nothing
that somebody stored can forge a second line or speak to the terminal.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import msgspec


def configure(form: str = "text", level: str = "info") -> None:
    """Send the logs of this process to standard error; `form` is `text` or `json`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if level != "debug":  # the HTTP client tells of every request
        logging.getLogger("httpx2").setLevel(logging.WARNING)


class TextLines(logging.Formatter):
    """`2026-01-31T12:00:00.000Z WARNING tenure.worker: …`; a traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname} {record.name}: {visible(record.getMessage())}"
        for text in (_trace(self, record), record.stack_info or ""):
            line += "".join(f"\n    {visible(part)}" for part in text.splitlines())
        return line


class JsonLines(logging.Formatter):
    """One JSON object per line: time, level, logger, message, and traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage().encode("utf-8", "backslashreplace").decode(),
        }
        if trace := _trace(self, record):
            event["traceback"] = trace.encode("utf-8", "backslashreplace").decode()
        return msgspec.json.encode(event).decode()


def visible(text: str) -> str:
    """`text` on one line, with control and direction characters written as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
