"""The statements of the SQLite store.

Those over many rows bind them all at once, see `OverRows`: each statement that fires triggers costs
a journal of its own, which made row-by-row `executemany` four times slower, and rows as JSON took
twice as long to take apart as to write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import chain
from typing import Any

from tenure.jobs.ids import EPOCH
from tenure.jobs.queries import Query
from tenure.lifecycle import Status
from tenure.store import constraints as guards
from tenure.store.rows import COLUMNS, MOVED
from tenure.store.search import along_ids, between, folded

SHAPES = (1, 8, 32, 128, 512)
"""Rows in one statement. Few, for each is a statement of its own to prepare and to keep."""


class OverRows:
    """A statement over rows, which stand for its `{rows}`: a table `name` with these columns.

    There are as many rows as one of `SHAPES`; those that are not needed hold nothing but NULL.
    """

    def __init__(self, name: str, columns: Sequence[str], statement: str) -> None:
        row = f"({', '.join('?' * len(columns))})"
        self._width = len(columns)
        # The name of the columns is given inside, since Python counts changed rows only where a
        # statement begins with INSERT or UPDATE.
        table = f"(WITH {name} ({', '.join(columns)}) AS (VALUES {{}}) SELECT * FROM {name})"
        self._texts = {
            shape: statement.replace("{rows}", table.format(", ".join([row] * shape)))
            for shape in SHAPES
        }

    def calls(self, rows: Sequence[Sequence[Any]], *values: Any) -> Iterator[tuple[str, list[Any]]]:
        """The statements over all rows, with their parameters: `values`, then the rows."""
        start = 0
        while start < len(rows):
            shape = _shape(len(rows) - start)
            some = rows[start : start + shape]
            padding = [None] * (self._width * (shape - len(some)))
            yield self._texts[shape], [*values, *chain.from_iterable(some), *padding]
            start += shape


def _shape(rows: int) -> int:
    """The next shape for so many rows: the largest they fill, or one that takes few of them in."""
    if rows > SHAPES[-2]:
        return next(shape for shape in reversed(SHAPES) if shape <= rows)
    return next(shape for shape in SHAPES if shape >= rows)


INSERTED = (
    "id",
    "type",
    "queue",
    "priority",
    "max_retries",
    "run_at",
    "created_at",
    "timeout",
    "backoff",
    "actor",
    "idempotency_key",
    "fingerprint",
    "payload",
)
INSERT = OverRows(
    "new",
    INSERTED,
    f"""
INSERT INTO tenure_job ({", ".join(INSERTED)}) SELECT * FROM {{rows}} WHERE id IS NOT NULL
ON CONFLICT DO NOTHING
""",
)

# The lease alone would do (a CHECK makes it imply the status); the id makes it a key search.
COMPLETE = OverRows(
    "report",
    ("id", "lease_id", "result", "actor"),
    """
UPDATE tenure_job SET status = 'completed', result = report.result, finished_at = ?,
    lease_id = NULL, lease_expires_at = NULL, event = 'completed',
    actor = coalesce(report.actor, worker)
FROM {rows} AS report WHERE tenure_job.id = report.id AND tenure_job.lease_id = report.lease_id
""",
)

# Two searches in the index instead of one comparison of pairs, which would be a walk over every
# pending job of the queue.
NEXT_LANE = """
SELECT * FROM (
    SELECT queue, priority, run_at FROM tenure_job
    WHERE status = 'pending' AND queue = :queue AND priority > :priority
    ORDER BY queue, priority, run_at LIMIT 1)
UNION ALL
SELECT * FROM (
    SELECT queue, priority, run_at FROM tenure_job
    WHERE status = 'pending' AND queue > :queue
    ORDER BY queue, priority, run_at LIMIT 1)
LIMIT 1
"""

# One row with everything: each row that SQLite hands over lets go of the interpreter and has to
# win it back from the event loop, which doubled the cost of a claim in a busy worker.
PICK = """
SELECT json_group_array(json_array(
    row, id, type, queue, payload, attempts + 1, max_retries, token + 1, timeout))
FROM (
    SELECT rowid AS row, * FROM tenure_job
    WHERE status = 'pending' AND queue = :queue AND priority = :priority AND run_at <= :now
        {types}
    ORDER BY run_at, id LIMIT :limit)
"""
# The plus keeps the planner from driving this by the index of what is ready.
CLAIM = OverRows(
    "lease",
    ("row", "lease_id"),
    """
UPDATE tenure_job SET status = 'processing', attempts = attempts + 1, token = token + 1,
    lease_id = lease.lease_id, lease_expires_at = ?, started_at = ?,
    worker = ?, event = 'claimed', actor = ?
FROM {rows} AS lease WHERE tenure_job.rowid = lease.row AND +tenure_job.status = 'pending'
""",
)

GUARD = ("id", "was_status", "was_token", "was_lease_id", "was_lease_expires_at")
SAVE = OverRows(
    "moved",
    (*GUARD, *MOVED),
    f"""
UPDATE tenure_job SET {", ".join(f"{column} = moved.{column}" for column in MOVED)}
FROM {{rows}} AS moved WHERE tenure_job.id = moved.id AND tenure_job.status = was_status
    AND tenure_job.token = was_token AND tenure_job.lease_id IS was_lease_id
    AND tenure_job.lease_expires_at IS was_lease_expires_at
""",
)

RENEW = """
UPDATE tenure_job SET lease_expires_at = max(lease_expires_at, ?)
FROM json_each(?) WHERE tenure_job.id = value ->> 0 AND tenure_job.lease_id = value ->> 1
RETURNING lease_id
"""

JOB_COLUMNS = ", ".join(COLUMNS)
SELECT_JOB = f"SELECT {JOB_COLUMNS} FROM tenure_job"
EXPIRED = f"""
{SELECT_JOB} WHERE status = 'processing' AND lease_expires_at <= ?
ORDER BY lease_expires_at LIMIT ?
"""

# One row, as in PICK.
LOCK = f"""
SELECT json_group_array(json_array({", ".join(COLUMNS)})) FROM tenure_job
WHERE id IN (SELECT value FROM json_each(?))
"""
MAX_LOADED = 100
"""Jobs in one value: SQLite's are at most 1 GB, a job with its result may have some MB."""
SETTLED_AS = """
SELECT event FROM tenure_transition
WHERE job_id = ? AND lease_id = ? AND event <> 'claimed' ORDER BY seq DESC LIMIT 1
"""

# What has been measured and told to webhooks ends at a place and at a time. The time bounds the
# search: what settled after it need not be looked at.
UNTOLD = "SELECT at FROM tenure_transition WHERE seq > ? ORDER BY seq LIMIT 1"
PRUNE = """
DELETE FROM tenure_job WHERE rowid IN (
    SELECT rowid FROM tenure_job
    WHERE status = {status} AND finished_at < ? AND finished_at <= ? AND NOT EXISTS (
        SELECT 1 FROM tenure_transition AS t WHERE t.job_id = tenure_job.id AND t.seq > ?)
    ORDER BY finished_at LIMIT ?)
RETURNING id, queue, type
"""

ENDED = (Status.FAILED, Status.CANCELLED)
"""What the index `tenure_job_ended` holds, in the order of its condition."""

GATHERED_BY = {Status.PENDING: "tenure_job_ready", Status.PROCESSING: "tenure_job_lease"}
"""The index of all jobs in a status, where they may be few."""


def listing(what: str, query: Query) -> tuple[str, list[Any]]:
    """`SELECT what` of the jobs of a query, and the values; see `search.py` for its bounds.

    The status stands as a literal: partial indexes need it. A plus keeps the planner from using an
    index: that of the ids where the jobs of a status are gathered and sorted, those of the status
    elsewhere.
    """
    parts, values = ["1"], list[Any]()

    def add(part: str, value: Any) -> None:
        if value is not None:
            parts.append(part)
            values.append(value)

    if query.status is not None:
        by_index = query.gather or query.status in ENDED
        column = "status" if by_index else "+status"
        parts.append(f"{column} = {guards.quoted(Status(query.status))}")
        if query.status in ENDED:  # SQLite knows the partial index only by its own words
            parts.append(f"status IN ({guards.quoted(*ENDED)})")
    if query.among:
        parts.append(f"status IN ({guards.quoted(*query.among)})")
    add("type = ?", query.type)
    add("queue = ?", query.queue)
    add("created_at >= ?", _millis(query.created_after))
    add("created_at < ?", _millis(query.created_before))
    add("created_at <= ?", _millis(query.created_by))
    add("finished_at <= ?", _millis(query.settled_by))
    add("instr(lower(last_error), ?) > 0", query.error and folded(query.error))
    add("instr(lower(payload), ?) > 0", query.text and folded(query.text))
    key = "+id" if query.gather else "id"
    after, before = between(query)
    # One bound on each side: SQLite searches by the first and only tests the second.
    down = query.through is not None and not query.oldest_first
    up = query.through is not None and query.oldest_first
    add(f"{key} >= ?" if down else f"{key} > ?", query.through if down else after)
    add(f"{key} <= ?" if up else f"{key} < ?", query.through if up else before)
    table = f"tenure_job{_by_index(query.status) if query.gather else ''}"
    order = f"{key} {'ASC' if query.oldest_first else 'DESC'}"
    where = " AND ".join(parts)
    limit = int(query.limit)
    return f"SELECT {what} FROM {table} WHERE {where} ORDER BY {order} LIMIT {limit}", values


def _by_index(status: str | None) -> str:
    return f" INDEXED BY {GATHERED_BY[Status(status or '')]}"


def _millis(time: datetime | None) -> int | None:
    """A bound of times, which are stored in whole milliseconds: the next one, if between two."""
    return None if time is None else -((EPOCH - time) // timedelta(milliseconds=1))


def counting(query: Query) -> tuple[str, list[Any]]:
    """How many a listing would be."""
    statement, values = listing("1", query)
    return f"SELECT count(*) FROM ({statement})", values


def edge(query: Query, rows: int) -> tuple[str, list[Any]]:
    """The id of the last of so many rows that a search goes along, if there are as many."""
    ended = query.status if query.status in ENDED else None
    statement, values = listing("id", along_ids(query, ended))
    return f"{statement} OFFSET {int(rows) - 1}", values


def waiting(query: Query, most: int) -> tuple[str, list[Any]]:
    """How many jobs stand in the status of a query (and in its queue, if they are pending)."""
    status = Status(query.status or "")
    where, values = f"status = {guards.quoted(status)}", list[Any]()
    if status is Status.PENDING and query.queue is not None:
        where, values = f"{where} AND queue = ?", [query.queue]
    some = f"SELECT 1 FROM tenure_job{_by_index(query.status)} WHERE {where} LIMIT {int(most)}"
    return f"SELECT count(*) FROM ({some})", values
