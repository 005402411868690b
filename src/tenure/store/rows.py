"""How a job is laid out in a row, the same in both engines except for times and ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import cache, lru_cache
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from tenure.errors import InvalidInput
from tenure.lifecycle import TRANSITIONS, Job, Status
from tenure.retry import DEFAULT_POLICY, RetryPolicy
from tenure.rules.jobs import CheckedJob
from tenure.store.database import Dialect, Reads
from tenure.texts import TEXT_FIELDS

T = TypeVar("T")

MAX_SENT = 8 * 2**20
"""Characters of payloads in one statement: libpq takes quadratic time to send many megabytes."""

COLUMNS = (
    *("id", "type", "queue", "status", "priority", "attempts", "max_retries", "token"),
    *("run_at", "created_at", "started_at", "finished_at", "worker", "lease_id"),
    *("lease_expires_at", "timeout", "backoff", "event", "actor", "idempotency_key"),
    *("payload", "result", "last_error", "snoozes", "need", "spare", "start_by", "reason"),
    *("tags", "again_of", "partition", "workflow"),
)
"""Every column that a `Job` is made of, in the order in which the stores select them."""

ADDED = (
    *("id", "type", "queue", "priority", "max_retries", "timeout", "actor"),
    *("idempotency_key", "fingerprint", "payload", "tags", "again_of", "partition"),
)
"""The columns that are stored as a `CheckedJob` has them."""

UNIQUE = ("unique_key", "unique_until")
"""The same, sent only for jobs with a unique key."""

TIMED = {"run_at": "delay", "start_by": "start_within"}
"""Times of a job to add -> the field that says instead how many seconds after now."""

CHANGED = (
    *("status", "attempts", "max_retries", "token", "run_at", "started_at", "finished_at"),
    *("worker", "lease_id", "lease_expires_at", "event", "actor", "result", "last_error"),
    "reason",
)
"""The columns that any transition may change."""

CHANGED_BY = {
    rule.event: tuple(c for c in (*rule.sets, *["snoozes"] * rule.snoozes) if c not in CHANGED)
    for rule in TRANSITIONS
}
"""Event -> the other columns that it may change."""

TIMES = frozenset(
    {"run_at", "created_at", "started_at", "finished_at", "lease_expires_at", "start_by"}
)
IDS = frozenset(
    {
        "id",
        "job_id",
        "lease_id",
        "cursor",
        "again_of",
        "last_job_id",
        "parent",
        "child",
        "workflow",
        "paused_for",
    }
)


def field_of(column: str) -> str:
    """Return the field of a `Job` that holds what is stored in a column."""
    return TEXT_FIELDS.get(column, column)


_FIELDS = tuple(map(field_of, COLUMNS))
_STATUS = {str(status): status for status in Status}
_tags_decoder = msgspec.json.Decoder(tuple[str, ...])
_policy_decoder = msgspec.json.Decoder(RetryPolicy)


def selected(d: Dialect, columns: Sequence[str], table: str = "") -> str:
    """Return a select list: times as `to_time` reads them, ids as text."""
    prefix = table and f"{table}."
    spelled = {**dict.fromkeys(filter(_is_time, columns), d.time), **dict.fromkeys(IDS, d.id)}
    return ", ".join(spelled.get(name, str)(prefix + name) for name in columns)


def read_rows(
    db: Reads, columns: Sequence[str], source: str, values: Sequence[Any] = (), table: str = ""
) -> list[dict[str, Any]]:
    """Return the rows of side tables as `fields_of`; `source` is what follows FROM."""
    d = db.dialect
    rows = db.rows(f"SELECT {selected(d, columns, table)} FROM {source}", values)
    return [fields_of(d, columns, row) for row in rows]


def fields_of(d: Dialect, columns: Sequence[str], row: Sequence[Any]) -> dict[str, Any]:
    """Return the fields of a row of a side table, by column, with their times read."""
    return {
        name: d.time_or_none(value) if _is_time(name) else value
        for name, value in zip(columns, row, strict=True)
    }


@cache
def _is_time(column: str) -> bool:
    return column in ("at", "once", "until") or column.endswith("_at") or column in TIMES


def job_of(row: Sequence[Any], time: Callable[[Any], datetime]) -> Job:
    """Return the job of a row of COLUMNS; `time` reads a stored time."""
    values = dict(zip(_FIELDS, row, strict=False))
    for name in TIMES:
        if values[name] is not None:
            values[name] = time(values[name])
    values["status"] = _STATUS[values["status"]]
    values["backoff"] = read_policy(values["backoff"])
    values["snoozes"] = values["snoozes"] or 0
    values["tags"] = read_tags(values["tags"])
    return Job(**values)


def added_job(
    checked_job: CheckedJob,
    created_at: datetime,
    run_at: datetime,
    *,
    kept: Callable[[datetime], datetime] = lambda time: time,
) -> Job:
    """Return the job that was added, given the times that the store has set.

    `kept` rounds a time as the store does.
    """
    job = Job(
        id=checked_job.id,
        type=checked_job.type,
        queue=checked_job.queue,
        payload_json=checked_job.payload,
        priority=checked_job.priority,
        max_retries=checked_job.max_retries,
        timeout=checked_job.timeout,
        backoff=checked_job.backoff,
        idempotency_key=checked_job.idempotency_key,
        again_of=checked_job.again_of,
        created_at=created_at,
        run_at=run_at,
        actor=checked_job.actor,
    )
    start_by, within = checked_job.start_by, checked_job.start_within
    if within is not None:
        start_by = created_at + timedelta(seconds=within)
    partition = checked_job.partition
    if start_by is None and checked_job.tags is None and partition is None:  # as most
        return job
    start_by = None if start_by is None else kept(start_by)
    tags = read_tags(checked_job.tags)
    return replace(job, start_by=start_by, tags=tags, partition=partition)


def parts(added: Iterable[T], payload_of: Callable[[T], str]) -> Iterator[list[T]]:
    """Yield the jobs, or their rows, of one statement after the other."""
    part: list[T] = []
    size = 0
    for one in added:
        payload = payload_of(one)
        length = len(payload) if payload.isascii() else 3 * len(payload.encode())  # as escapes
        size += length
        if part and size > MAX_SENT:
            yield part
            part, size = [], length
        part.append(one)
    if part:
        yield part


def changed_values(job: Job, columns: Sequence[str]) -> tuple[Any, ...]:
    """Return what is stored in columns of `CHANGED_BY`."""
    return tuple(
        write_policy(job.backoff) if name == "backoff" else getattr(job, field_of(name))
        for name in columns
    )


def write_policy(policy: RetryPolicy) -> str | None:
    """Return a retry policy as stored; NULL is the default one."""
    return None if policy is DEFAULT_POLICY else _policy_text(policy)


@lru_cache(100)  # many jobs have the policy of their type
def _policy_text(policy: RetryPolicy) -> str | None:
    if policy == DEFAULT_POLICY:
        return None
    names = ("delays",) if policy.delays else ("base", "factor", "cap")
    return msgspec.json.encode({name: getattr(policy, name) for name in names}).decode()


def as_json(rows: Any) -> str:
    return msgspec.json.encode(rows).decode()


def read_policy(text: str | None) -> RetryPolicy:
    """Read what `write_policy` wrote; the default policy for what it did not write.

    Such a row is found by `tenure verify`. It must not stop the sweep, which reads many.
    """
    return DEFAULT_POLICY if text is None else _policy_of(text)


@lru_cache(100)
def _policy_of(text: str) -> RetryPolicy:
    try:
        return _policy_decoder.decode(text)
    except (msgspec.DecodeError, InvalidInput):
        return DEFAULT_POLICY


def read_tags(text: str | None) -> tuple[str, ...]:
    """Read the tags of a job; none if they are not in the form in which an enqueue writes them."""
    try:
        return () if text is None else _tags_decoder.decode(text)
    except msgspec.DecodeError:
        return ()


def write_names(names: Sequence[str] | None) -> str | None:
    """Return names as stored, for people to read; NULL means any."""
    return None if names is None else ",".join(names)


def read_names(text: str | None) -> tuple[str, ...] | None:
    """Read what `write_names` wrote."""
    return None if text is None else tuple(name for name in text.split(",") if name)
