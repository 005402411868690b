"""How a process writes its log: one event per line, on standard error, as text or as JSON.

The line of a transition has the message `job_` and the event, with fields of the job. Formatters of
other programs know no such fields, so the message that they get ends with them. A line that a
handler logs gets the fields of its job. In JSON it also has the fields of `extra`. Texts in a log
come from jobs and requests, so control characters are written as escapes. No stored text can then
forge a second line or send an escape sequence to the terminal.

`Repeats` says which errors to log, where an outage would bring the same one again and again.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, BinaryIO, TextIO, cast

import msgspec

from tenure.events import LeaseExpired, Retried
from tenure.handlers.results import traceback_of
from tenure.lifecycle import Job, retry_in
from tenure.values.redaction import MARK, NOTHING_HIDDEN, Redaction
from tenure.values.text import printable_json, shortened, visible

FIELDS = (
    *("job", "type", "queue", "status", "attempt", "worker", "actor"),
    *("duration", "error", "delay", "pause", "others"),
)
"""The fields of a record about a job, in this order. `duration` and `delay` are in seconds; `delay`
is the time until the job may run again, `pause` what waits with it. `others` is how many more there
were without a line."""
NOT_EXTRA = {*logging.makeLogRecord({}).__dict__, *FIELDS, "asctime", "message", "color_message"}
"""The attributes of a record that are no `extra`, or only repeat the message of uvicorn."""
TRANSITION = "job_%s%s"
"""The message of a transition: its event, and its fields for formatters that do not know them."""
MAX_EXTRA = 50
"""Most fields by `extra` in a line."""
MAX_FIELD = 1_000
MAX_MESSAGE = 64 * 1024
"""Longest field and message in characters; longer ones are cut, with a mark."""


LogFields = Callable[[], Mapping[str, Any]]
"""Returns the fields that are added to the log lines of an attempt."""

LOG_FIELDS: ContextVar[LogFields | None] = ContextVar("tenure_log_fields", default=None)
"""Those of the attempt whose handler runs in this context, or None."""


class JobFields(logging.Filter):
    """Adds the fields of the running job to the records that its handler logs.

    `tenure serve` and `tenure worker` use it. In your own program, add it to the logging handlers.
    A record that has such a field keeps it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; every record passes."""
        log_fields = LOG_FIELDS.get()
        if log_fields is not None:
            for name, value in log_fields().items():
                record.__dict__.setdefault(name, value)
        return True


def fields_of(job: Job) -> dict[str, Any]:
    """Return the fields of a log line about a job that is not changed by its own worker."""
    return {
        "job": job.id,
        "type": job.type,
        "queue": job.queue,
        "status": str(job.status),
        "attempt": job.attempts,
        "worker": job.worker,
        "actor": job.actor,
    }


def log_transition(
    log: logging.Logger, event: str, fields: Mapping[str, Any], level: int = logging.INFO
) -> None:
    """Log one transition, as the message `job_` and its event."""
    log.log(level, TRANSITION, event, _InWords(fields), extra=fields)


def log_failure(
    log: logging.Logger,
    event: str,
    fields: Mapping[str, Any],
    level: int,
    error: str,
    exception: BaseException | None,
) -> None:
    """Log a failed attempt as programs such as Sentry's look for it: with its exception.

    Formatters write `error`, from which values are hidden, instead of the exception.
    """
    if not log.isEnabledFor(level):
        return
    info = None if exception is None else (type(exception), exception, traceback_of(exception))
    said = (event, _InWords(fields))
    record = log.makeRecord(log.name, level, __file__, 0, TRANSITION, said, info, None, fields)
    if info or "\n" in error:
        record.exc_text = error
    log.handle(record)


def log_steps(log: logging.Logger, steps: Sequence[Job]) -> None:
    """Log each transition of one job, given the rows that the job passed through.

    Each line has the status and the delay of the last one, so that no failure looks final that is
    not: `failed` is a status only if the job stays so.
    """
    last: dict[str, Any] = {"status": str(steps[-1].status)}
    if steps[-1].event == Retried.name and (delay := retry_in(steps)) is not None:
        last["delay"] = round(delay, 3)
    for row in steps:
        level = logging.INFO
        if row.event == LeaseExpired.name:
            level = logging.ERROR if row is steps[-1] else logging.WARNING
        log_transition(log, row.event, fields_of(row) | last, level)


configured: tuple[str, str, tuple[str, ...]] | None = None
"""The arguments of the last `configure`, for child processes."""


def configure(form: str = "text", level: str = "info", redact: Sequence[str] = ()) -> None:
    """Send the logs of this process to standard error; `form` is `text` or `json`.

    `redact` are the keys of an `extra` whose values are hidden.
    """
    global configured  # noqa: PLW0603 - logging is global, too
    configured = (form, level, tuple(redact))
    handler = _ToStandardError()
    handler.setFormatter(JsonLines(Redaction(redact)) if form == "json" else TextLines())
    handler.addFilter(JobFields())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if level != "debug":  # the HTTP client logs every request
        logging.getLogger("httpx2").setLevel(logging.WARNING)


def announce(text: str) -> None:
    """Print what this program does from now on; as JSON if its log is."""
    if configured is not None and configured[0] == "json":
        record = logging.makeLogRecord({"name": "tenure", "levelname": "INFO", "msg": text})
        text = JsonLines().format(record)
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def outlast_output() -> None:
    """Have this process continue where its output cannot be written: that output is lost.

    Such as on a full disk, or where its reader has ended. Neither is a reason not to run jobs,
    nor for handlers that print to fail.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__") or not isinstance(stream, io.TextIOWrapper):
            continue  # it was replaced, and is not ours
        raw = _Lossy(stream.fileno(), "w", closefd=False)
        is_raw = isinstance(stream.buffer, io.RawIOBase)  # as with PYTHONUNBUFFERED
        lossy = io.TextIOWrapper(
            cast(BinaryIO, raw) if is_raw else io.BufferedWriter(raw),
            stream.encoding,
            stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, lossy)


class _Lossy(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


class _ToStandardError(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`, which a progress bar may have replaced.

    If it is closed, the record is lost; logging never raises into the code that logs.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        with suppress(ValueError):  # it writes to standard error itself
            super().handleError(record)


class TextLines(logging.Formatter):
    """`2026-01-31T12:00:00.000Z WARNING tenure.worker: …`; a traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        message, behind = _message(record)
        message = visible(shortened(message, MAX_MESSAGE))
        line = f"{_time(record)} {record.levelname} {visible(record.name)}: {message}"
        line += str(_InWords(record.__dict__))
        for text in (_trace(self, record) or behind, record.stack_info or ""):
            line += "".join(f"\n    {visible(part)}" for part in text.splitlines())
        return line


class JsonLines(logging.Formatter):
    """One JSON object per line: time, level, logger, message, job, traceback, and each `extra`."""

    def __init__(self, redaction: Redaction = NOTHING_HIDDEN) -> None:
        super().__init__()
        self._redaction = redaction

    def format(self, record: logging.LogRecord) -> str:
        message, behind = _message(record)
        event = {
            **_extra(record, self._redaction),
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _text(shortened(message, MAX_MESSAGE)),
            **dict(_fields(record.__dict__)),
        }
        if trace := _trace(self, record) or behind:
            event["traceback"] = _text(trace)
        return printable_json(msgspec.json.encode(event).decode())


class _InWords:
    """The job fields among some values, as a text that is made only where it is asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __str__(self) -> str:
        return "".join(_in_words(name, value) for name, value in _fields(self._values))

    __repr__ = __str__


def _message(record: logging.LogRecord) -> tuple[str, str]:
    """Return the message of a record, without the fields of a transition, and what is behind them.

    A handler that sends records elsewhere, such as `QueueHandler`, makes one text of the message,
    its arguments and the traceback.
    """
    if record.msg is TRANSITION and isinstance(record.args, tuple):
        return f"job_{record.args[0]}", ""
    message = record.getMessage()
    event = message.partition(" ")[0]
    if record.args or not event.startswith("job_"):
        return message, ""
    behind = message.removeprefix(event)
    for name, value in _fields(record.__dict__):  # a filter may have added some since
        behind = behind.removeprefix(_in_words(name, value))
    if behind and not behind.startswith("\n"):
        return message, ""
    return event, behind.removeprefix("\n")


def _in_words(name: str, value: Any) -> str:
    return f" {name}={_word(value)}"


def _fields(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the job fields among some values; one that a handler set is written as text."""
    found = ((name, values.get(name)) for name in FIELDS)
    return [
        (name, value if _is_number(value) else _text(shortened(str(value), MAX_FIELD)))
        for name, value in found
        if value is not None
    ]


def _extra(record: logging.LogRecord, redaction: Redaction) -> dict[str, Any]:
    """Return the fields of `extra`: numbers and booleans unchanged, other values as text."""
    found = [name for name in record.__dict__ if name not in NOT_EXTRA][:MAX_EXTRA]
    try:
        given = json.dumps({name: record.__dict__[name] for name in found}, default=str)
        shown = json.loads(redaction.document(given))
    except (TypeError, ValueError, RecursionError):  # a key that is no text, a circle
        shown = dict.fromkeys(found, MARK)
    return {_text(shortened(name, MAX_FIELD)): _plain(value) for name, value in shown.items()}


def _plain(value: Any) -> Any:
    if value is None or _is_number(value):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _text(shortened(text, MAX_FIELD))


def _is_number(value: Any) -> bool:
    """Return whether every reader of JSON reads the value as the same number."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**53)


def _word(value: Any) -> str:
    """Write a value in a text line, quoted unless it is one plain word."""
    text = str(value)
    if text and text.isascii() and text.isprintable() and not set(text) & set(' "=\\'):
        return text
    return visible(msgspec.json.encode(text).decode())


def _text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    if record.exc_text or not record.exc_info:
        return record.exc_text or ""
    return formatter.formatException(record.exc_info)


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- repeats --------------------------------------------------------------------------------------

REPEAT_SECONDS = 30.0
"""How long the same error has no further line."""


class Repeats:
    """Remembers the errors that were logged lately, for one place that logs."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}  # by the monotonic clock

    def is_due(self, error: BaseException | str) -> bool:
        """Whether to log an error, or what a text names, now. Call it once for each."""
        now = time.monotonic()
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self._said = {it: at for it, at in self._said.items() if now - at < REPEAT_SECONDS}
        return self._said.setdefault(text, now) == now
