"""The SQL of the SQLite store: its dialect, and the statements of the writing side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import cache, lru_cache
from itertools import chain
from typing import Any

from tenure.rules.reports import ALONE_AFTER
from tenure.store.constraints import broken, sqlite_values
from tenure.store.database import Dialect
from tenure.store.lanes import MAX_SEEN
from tenure.store.rows import ADDED, CHANGED, COLUMNS, TIMED
from tenure.store.sqlite.connection import NOW, to_time
from tenure.values.ids import EPOCH


def to_bound(time: datetime | None) -> int | None:
    """Return a bound for times, which are stored in whole milliseconds: rounded up to the next."""
    return None if time is None else -((EPOCH - time) // timedelta(milliseconds=1))


LATE_JOBS = """tenure_job
WHERE start_by IS NOT NULL AND status IN ('waiting', 'pending') AND start_by"""

DIALECT = Dialect(
    engine="sqlite",
    prefix="tenure_",
    value="?",
    id_value="?",
    id_column="{column}",
    time_column="{column}",
    now=NOW,
    duration="CAST({seconds} * 1000 AS INTEGER)",
    pending="(SELECT * FROM tenure_job WHERE status = 'pending') AS job",
    turns="tenure_turn",
    processing="(SELECT * FROM tenure_job WHERE status = 'processing') AS job",
    expiring="tenure_job WHERE status = 'processing' AND lease_expires_at",
    ruled="tenure_retention",
    late=f"{LATE_JOBS} <= {NOW}",
    skip_locked="",
    free_to_delete="",
    folded="instr(lower({column}), ?) > 0",
    is_id=lambda text: True,
    to_time=to_time,
    to_bound=to_bound,
    place="seq",
    order=("seq",),
    settled="true",
    after="t.seq > ?",
    up_to="t.seq <= ?",
    is_at="seq = ?",
    set_place="seq = ?",
    since="t.seq > (SELECT seq FROM tenure_measured)",
    lost="false",
    # The order is given: the planner must not walk the jobs.
    with_job="CROSS JOIN tenure_job AS j ON j.id = t.job_id",
    minute="t.at / 60000",
    millis="{time}",
    span="({end} - {start}) / 1000.0",
    first_line="substr(t.detail, 1, instr(t.detail || char(10), char(10)) - 1)",
    last_job="substr(max(printf('%020d', t.at) || t.job_id), 21)",
    json_rows="json_each(?) AS new",
    json_objects="(SELECT {cells} FROM json_each(?)) AS new",
    tags="json_each(CASE WHEN json_valid(job.tags) THEN job.tags END) AS one",
    hold="",
    packs=True,
    moved="(SELECT sql FROM sqlite_schema"
    " WHERE type = 'trigger' AND name = 'tenure_elsewhere_insert_job')",
    broken_value=broken(sqlite_values()),
)


SHAPES = (1, 8, 32, 128, 512)
"""Rows in one statement. Few shapes: each is a separate statement to prepare and to keep."""


PADDING = 0
"""Fills a shape up: no job has this id, and no row this number."""


class OverRows:
    """A statement over many rows, which are bound all at once.

    The rows stand for its `{rows}`: a table `name` with these columns, the first of which is the
    key. There are as many as one of `SHAPES`; unneeded ones are all `PADDING`. Each statement that
    fires triggers costs a separate journal: row-by-row `executemany` was four times slower. Rows as
    JSON took twice as long to read as to write.
    """

    def __init__(self, name: str, columns: Sequence[str], statement: str) -> None:
        self.name, self.columns, self.statement = name, tuple(columns), statement

    def text(self, shape: int, bound: tuple[str, ...]) -> str:
        """Return the SQL over `shape` rows with these columns; the others are NULL in each row."""
        return _over_rows(self.statement, self.name, self.columns, shape, bound)


KEPT_STATEMENTS = 256
"""Of each connection, as prepared statements."""


@lru_cache(KEPT_STATEMENTS)
def _over_rows(
    statement: str, name: str, columns: tuple[str, ...], shape: int, bound: tuple[str, ...]
) -> str:
    row = f"({', '.join('?' * len(bound))})"
    rows = ", ".join([row] * shape)
    selected = ", ".join(column if column in bound else f"NULL AS {column}" for column in columns)
    # The name of the columns is given inside, since Python counts changed rows only where a
    # statement begins with INSERT or UPDATE.
    table = f"(WITH {name} ({', '.join(bound)}) AS (VALUES {rows}) SELECT {selected} FROM {name})"
    return statement.replace("{rows}", table)


def calls(
    statement: OverRows, rows: Sequence[Sequence[Any]], *values: Any
) -> Iterator[tuple[str, list[Any]]]:
    """Return the texts over all rows, with their parameters: `values`, then the rows.

    Columns that all rows leave NULL are not bound: Python looks for an adapter of each None, which
    takes five times as long as to bind a number.
    """
    start = 0
    while start < len(rows):
        shape = _shape(len(rows) - start)
        some = rows[start : start + shape]
        bound = {
            name: column
            for name, column in zip(statement.columns, zip(*some, strict=True), strict=True)
            if column[0] is not None or column.count(None) < len(column)
        }
        parameters = [*values, *chain.from_iterable(zip(*bound.values(), strict=True))]
        parameters += [PADDING] * (len(bound) * (shape - len(some)))
        yield statement.text(shape, tuple(bound)), parameters
        start += shape


def _shape(rows: int) -> int:
    """The next shape for so many rows: the largest they fill, or one that takes few of them in."""
    if rows > SHAPES[-2]:
        return next(shape for shape in reversed(SHAPES) if shape <= rows)
    return next(shape for shape in SHAPES if shape >= rows)


INSERTED = (*ADDED, "backoff", "created_at", *TIMED)


@cache
def insert_with(more: tuple[str, ...]) -> OverRows:
    """Add jobs; `more` columns than those of every job."""
    columns = (*INSERTED, *more)
    return OverRows(
        "new",
        columns,
        f"""
INSERT INTO tenure_job ({", ".join(columns)}) SELECT * FROM {{rows}} WHERE id <> {PADDING}
ON CONFLICT DO NOTHING
""",
    )


ONE = (*ADDED, "backoff", *chain.from_iterable(TIMED.items()))
"""What may be said of one job to add; `delay` and `start_within` are milliseconds."""


@lru_cache(KEPT_STATEMENTS)
def insert_one(given: tuple[str, ...]) -> str:
    """Return a statement that is a transaction, with a parameter for each of `ONE` that is given.

    The last parameter is the queue. It adds nothing to a queue with a limit, and no job whose id or
    key is there: those need a closer look.
    """
    column_of = {delay: time for time, delay in TIMED.items()}
    columns = ", ".join(column_of.get(name, name) for name in given)
    values = ", ".join("at + ?" if name in column_of else "?" for name in given)
    return f"""
INSERT INTO tenure_job ({columns}, created_at) SELECT {values}, at FROM tenure_now
WHERE NOT EXISTS (SELECT 1 FROM tenure_queue WHERE name = ? AND max_pending IS NOT NULL)
ON CONFLICT DO NOTHING RETURNING created_at, run_at
"""


KNOWN = f"""
SELECT {", ".join(COLUMNS)}, fingerprint FROM tenure_job
WHERE idempotency_key = ? OR id = ? ORDER BY id <> ? LIMIT 1
"""
LIMITED = "SELECT name, max_pending FROM tenure_queue WHERE max_pending IS NOT NULL"

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
NEXT_PRIORITY = """
SELECT queue, priority, run_at, id FROM tenure_job
WHERE status = 'pending' AND queue = :queue AND priority > :priority
ORDER BY queue, priority, run_at, id LIMIT 1
"""
NEXT_LANE = f"""
SELECT * FROM ({NEXT_PRIORITY})
UNION ALL
SELECT * FROM (
    SELECT queue, priority, run_at, id FROM tenure_job
    WHERE status = 'pending' AND queue > :queue
    ORDER BY queue, priority, run_at, id LIMIT 1)
LIMIT 1
"""
LOWEST = -(2**63)
"""Before every priority."""
# And NULL, if any queue has limits.
PAUSED = """
SELECT name FROM tenure_queue WHERE paused_at IS NOT NULL
UNION ALL SELECT * FROM (SELECT NULL FROM tenure_queue_limit LIMIT 1)
"""
NEWEST = """
SELECT DISTINCT queue, priority FROM (
    SELECT queue, priority, status FROM tenure_job ORDER BY rowid DESC LIMIT 50)
WHERE status = 'pending'
"""
# What one look into a lane goes over, whatever the types, from its start or after a mark.
SEEN = """
    FROM tenure_job
    WHERE status = 'pending' AND queue = :queue AND priority = :priority
        AND run_at <= :now {after}
    ORDER BY run_at, id"""
AFTER = {False: "", True: "AND (run_at, id) > (:after_time, :after_id)"}
OPEN_TYPES = "AND seen.type NOT IN (SELECT name FROM tenure_type WHERE paused_at IS NOT NULL)"
OF_TYPES = {
    False: OPEN_TYPES,
    True: f"{OPEN_TYPES} AND seen.type IN (SELECT value FROM json_each(:types))",
}
_ALONE = " OR ".join(f"last_error GLOB '{start}*'" for start in ALONE_AFTER)
PICKED = f"""
    job.rowid, job.id, job.type, job.queue,
    CASE WHEN length(CAST(job.payload AS BLOB)) <= 8192 THEN job.payload END,
    attempts + 1, max_retries, token + 1, timeout, coalesce({_ALONE}, 0)"""
# One row with everything: each row that SQLite hands over lets go of the interpreter and has to
# win it back from the event loop, which doubled the cost of a claim in a busy worker. The rows
# keep the order of the inner SELECT. Large payloads are left out: as many as may be picked could be
# a gigabyte.
PICK = {
    (of_types, after): f"""
SELECT json_group_array(json_array({PICKED}))
FROM (
    SELECT job.rowid AS rowid, job.* FROM (
        SELECT rowid AS row, type {SEEN.format(after=AFTER[after])} LIMIT {MAX_SEEN}) AS seen
    CROSS JOIN tenure_job AS job ON job.rowid = seen.row
    WHERE (job.start_by IS NULL OR job.start_by > :now) {OF_TYPES[of_types]} LIMIT :limit) AS job
"""
    for of_types in (False, True)
    for after in (False, True)
}
PAYLOAD = "SELECT CAST(payload AS BLOB) FROM tenure_job WHERE rowid = ?"
PLACES = """
SELECT rowid, coalesce(partition, ''), run_at, id FROM tenure_job
WHERE rowid IN (SELECT value FROM json_each(?))
"""
LAST_SEEN = {
    after: f"SELECT run_at, id {SEEN.format(after=AFTER[after])} LIMIT 1 OFFSET {MAX_SEEN - 1}"
    for after in (False, True)
}
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

GUARD = ("status", "token", "lease_id", "lease_expires_at")


@cache
def save_with(more: tuple[str, ...]) -> OverRows:
    """Write jobs after a transition: the columns that each transition changes, and `more`."""
    columns = (*CHANGED, *more)
    return OverRows(
        "changed",
        ("id", *(f"was_{column}" for column in GUARD), *columns),
        f"""
UPDATE tenure_job SET {", ".join(f"{column} = changed.{column}" for column in columns)}
FROM {{rows}} AS changed WHERE tenure_job.id = changed.id AND tenure_job.status = was_status
    AND tenure_job.token = was_token AND tenure_job.lease_id IS was_lease_id
    AND tenure_job.lease_expires_at IS was_lease_expires_at
""",
    )


RENEW = """
UPDATE tenure_job SET lease_expires_at = max(lease_expires_at, ?)
FROM json_each(?) WHERE tenure_job.id = value ->> 0 AND tenure_job.lease_id = value ->> 1
RETURNING lease_id
"""

TRACES = """
SELECT job_id, traceparent FROM tenure_trace WHERE job_id IN (SELECT value FROM json_each(?))
"""

EXPIRED = f"""
SELECT {", ".join(COLUMNS)} FROM tenure_job WHERE status = 'processing' AND lease_expires_at <= ?
ORDER BY lease_expires_at LIMIT ? OFFSET ?
"""

LATE = f"""
SELECT {", ".join(COLUMNS)} FROM {LATE_JOBS} <= ? ORDER BY start_by LIMIT ? OFFSET ?
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

UNNEEDED = """
        AND NOT EXISTS (
            SELECT 1 FROM tenure_transition AS t WHERE t.job_id = tenure_job.id AND t.seq > ?)
        AND NOT (coalesce(followed, 0) > 0 AND EXISTS (
            SELECT 1 FROM tenure_dependency JOIN tenure_job AS one ON one.id = child
            WHERE parent = tenure_job.id AND one.finished_at IS NULL))
        AND NOT (status = 'failed' AND EXISTS (SELECT 1 FROM tenure_line AS line
            WHERE line.queue = tenure_job.queue AND line.id = tenure_job.id
                AND line.partition = coalesce(tenure_job.partition, '')))
"""
DELETABLE = f"""
SELECT id, status, queue, type FROM tenure_job
WHERE status = {{status}} AND workflow IS NULL AND finished_at < ? AND finished_at <= ?
    {UNNEEDED}
ORDER BY finished_at LIMIT ?
"""
MAX_PASSED = 500
"""Settled jobs that one batch of retention goes over, where types or queues have rules."""
SETTLED = f"""
SELECT finished_at, rowid, queue, type FROM tenure_job
WHERE status = {{status}} AND workflow IS NULL AND finished_at < ? AND finished_at <= ?
    AND (finished_at, rowid) > (?, ?)
ORDER BY finished_at, rowid LIMIT {MAX_PASSED}
"""
DELETABLE_OF = f"""
SELECT id, status, queue, type FROM tenure_job
WHERE rowid IN (SELECT value FROM json_each(?)) {UNNEEDED}
"""
