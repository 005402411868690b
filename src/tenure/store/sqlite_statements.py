"""The statements of the SQLite store.

Those over many rows bind them all at once, see `OverRows`: each statement that fires triggers costs
a journal of its own, which made row-by-row `executemany` four times slower, and rows as JSON took
twice as long to take apart as to write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from tenure.lifecycle import Status
from tenure.records import Query
from tenure.store import guards
from tenure.store.rows import COLUMNS, MOVED

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
UPDATE tenure_job SET lease_expires_at = max(lease_expires_at, ?2)
FROM json_each(?1) WHERE tenure_job.id = value ->> 0 AND tenure_job.lease_id = value ->> 1
RETURNING lease_id
"""

SELECT_JOB = f"SELECT {', '.join(COLUMNS)} FROM tenure_job"
EXPIRED = f"""
{SELECT_JOB} WHERE status = 'processing' AND lease_expires_at <= ?
ORDER BY lease_expires_at LIMIT ?
"""

# One row, as in PICK.
LOCK = f"""
SELECT json_group_array(json_array({", ".join(COLUMNS)})) FROM tenure_job
WHERE id IN (SELECT value FROM json_each(?))
"""
MOST_LOADED = 100
"""Jobs in one value: SQLite's are at most 1 GB, a job with its result may have some MB."""
SETTLED_AS = """
SELECT event FROM tenure_transition
WHERE job_id = ? AND lease_id = ? AND event <> 'claimed' ORDER BY seq DESC LIMIT 1
"""

# What has been measured ends at a place and at a time. The time bounds the search: what settled
# after it need not be looked at.
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


def where(query: Query) -> tuple[str, list[Any]]:
    """The WHERE clause of a query. The status stands as a literal: partial indexes need it."""
    parts, values = ["1"], []
    if query.status is not None:
        parts.append(f"status = {guards.quoted(Status(query.status))}")
        if query.status in ENDED:  # SQLite knows the partial index only by its own words
            parts.append(f"status IN ({guards.quoted(*ENDED)})")
    for column, value in (("type", query.type), ("queue", query.queue)):
        if value is not None:
            parts.append(f"{column} = ?")
            values.append(value)
    # Few are processing: sorted, for by id the planner would walk past all the others.
    key = "+id" if query.status == Status.PROCESSING else "id"
    if query.before is not None:
        parts.append(f"{key} < ?")
        values.append(query.before)
    return f"WHERE {' AND '.join(parts)} ORDER BY {key} DESC LIMIT {int(query.limit)}", values
