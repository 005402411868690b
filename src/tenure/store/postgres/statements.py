"""The statements of the PostgreSQL store. `{s}` is the schema; other braces, a part put in later.

They are set-based: rows come in as one array per column. Each repeats its guard on the row that it
changes, which is the condition PostgreSQL tests again after a wait for somebody else's lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenure.errors import InvalidInput
from tenure.jobs.queries import Query
from tenure.lifecycle import Status
from tenure.store import constraints as guards
from tenure.store.postgres.connection import NOW, is_uuid
from tenure.store.rows import COLUMNS, MOVED, TIMES
from tenure.store.search import along_ids, between, folded

# Plans must not hang on statistics: right after a bulk load the planner would read and sort the
# whole table for one batch. Settings end with the transaction, as a transaction pooler demands.
# A process that is frozen between two statements holds its locks for less time than others wait for
# them; thawed, it finds its transaction undone, and begins again. The table's lock, which a write
# takes anyway, comes first: who waits for an index to be made must not stamp a lease before that.
BEGIN = """
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL jit = off;
SET LOCAL lock_timeout = '10s'; SET LOCAL idle_in_transaction_session_timeout = '5s';
LOCK TABLE {s}.job IN ROW EXCLUSIVE MODE
"""

TYPES = {
    **dict.fromkeys(TIMES, "timestamptz"),
    **dict.fromkeys(("id", "job_id", "lease_id"), "uuid"),
    **dict.fromkeys(("priority", "max_retries"), "bigint"),
    **dict.fromkeys(("attempts", "token"), "integer"),
    **dict.fromkeys(("timeout", "delay"), "float8"),
}
"""Column -> type, where it is not text."""


def type_of(column: str) -> str:
    """The SQL type of a column; `was_x` is typed like `x`."""
    return TYPES.get(column.removeprefix("was_"), "text")


def rows_of(name: str, *columns: str) -> str:
    """A FROM item that makes rows of one array parameter per column."""
    arrays = (f"%b::{type_of(column)}[]" for column in columns)
    return f"unnest({', '.join(arrays)}) AS {name} ({', '.join(columns)})"


def select(*columns: str, table: str = "job") -> str:
    """A select list; times come in UTC and ids as text, whatever the session is set to."""
    as_times = {c: f"{table}.{c} AT TIME ZONE 'UTC'" for c in TIMES}
    as_text = {c: f"{table}.{c}::text" for c in ("id", "lease_id")}
    return ", ".join({**as_times, **as_text}.get(c, f"{table}.{c}") for c in columns)


ADDED = (
    "id",
    "type",
    "queue",
    "priority",
    "max_retries",
    "timeout",
    "actor",
    "idempotency_key",
    "fingerprint",
    "payload",
)
NEW = (*ADDED, "run_at", "delay", "backoff")

# The hot path: functions of the schema, whose plans a session keeps; see 0002_hot_path.sql.
ENQUEUE = f"SELECT * FROM {{s}}.enqueue({', '.join(f'%b::{type_of(c)}[]' for c in NEW)}, %s, %s)"
ENQUEUE_ONE = (
    f"SELECT * FROM {{s}}.enqueue_one({', '.join(f'${n}' for n in range(1, len(NEW) + 1))})"
)
COMPLETE = "SELECT * FROM {s}.complete(%b::uuid[], %b::uuid[], %b::text[], %b::text[])"
CLAIM_ALONE = "SELECT * FROM {s}.claim_alone(%b::text[], %s, %s, %b::text[], %s::integer)"
CLAIM = "SELECT * FROM {s}.claim(%s, %s, %s, %s, %s, %s, %b::text[], %s::integer)"

KNOWN = f"""
SELECT DISTINCT ON (found.wanted) found.wanted::text, {select(*COLUMNS)}, job.fingerprint
FROM (
    SELECT new.id AS wanted, job.id FROM {rows_of("new", "id")} JOIN {{s}}.job USING (id)
    UNION ALL
    SELECT new.id, job.id FROM {rows_of("new", "id", "idempotency_key")}
        JOIN {{s}}.job USING (idempotency_key)
) AS found JOIN {{s}}.job USING (id)
ORDER BY found.wanted, job.id <> found.wanted
"""

LIMITED = "SELECT * FROM {s}.limited(%b::text[])"
PENDING = """
SELECT count(*) FROM (
    SELECT FROM {s}.job WHERE status = 'pending' AND queue = %s LIMIT %s) AS waiting
"""

JOB_COLUMNS = select(*COLUMNS)
SELECT_JOB = f"SELECT {JOB_COLUMNS} FROM {{s}}.job"
LOCK = f"SELECT {select(*COLUMNS)} FROM {{s}}.locked(%b::uuid[]) AS job"
# After a wait for somebody else's lock both conditions are tested again on the row as it is then.
LOCK_EXPIRED = f"""
{SELECT_JOB} WHERE status = 'processing' AND lease_expires_at <= {NOW}
ORDER BY job.lease_expires_at LIMIT %s FOR UPDATE SKIP LOCKED
"""

GUARD = ("status", "token", "lease_id", "lease_expires_at")
SAVED = ("id", *MOVED, *(f"was_{column}" for column in GUARD))
SAVE = f"SELECT {{s}}.save({', '.join(f'%b::{type_of(c)}[]' for c in SAVED)})"

SETTLED_AS = f"""
SELECT DISTINCT ON (t.job_id, t.lease_id) t.job_id::text, t.lease_id::text, t.event
FROM {rows_of("asked", "job_id", "lease_id")} JOIN {{s}}.transition AS t USING (job_id, lease_id)
WHERE t.event <> 'claimed' ORDER BY t.job_id, t.lease_id, t.seq DESC
"""

# A row that somebody else has locked is being reported or swept at this moment: it is not waited
# for (two batches could wait for each other), and until that ends its lease is held.
RENEW = f"""
WITH asked AS MATERIALIZED (
    SELECT * FROM {rows_of("lease", "id", "lease_id")}
), free AS MATERIALIZED (
    SELECT job.id FROM asked JOIN {{s}}.job USING (id, lease_id) FOR UPDATE OF job SKIP LOCKED
), renewed AS (
    UPDATE {{s}}.job SET
        lease_expires_at = greatest(lease_expires_at, {NOW} + %s * interval '1 second')
    FROM free WHERE job.id = free.id
)
SELECT job.lease_id::text FROM asked JOIN {{s}}.job USING (id, lease_id)
"""

KEEP_TRACES = """
INSERT INTO {s}.trace SELECT * FROM unnest(%b::uuid[], %b::text[]) ON CONFLICT DO NOTHING
"""
TRACES = "SELECT job_id::text, traceparent FROM {s}.trace WHERE job_id = ANY (%b::uuid[])"

SEE_WORKER = f"""
INSERT INTO {{s}}.worker (id, label, queues, types, seen_at) VALUES (%s, %s, %s, %s, {NOW})
ON CONFLICT (id) DO UPDATE SET
    seen_at = excluded.seen_at, queues = excluded.queues, types = excluded.types
"""

# What has been measured and told to webhooks ends at a place and at a time. The time bounds the
# search: what settled after it need not be looked at. Moves after the place are counted, since
# NOT EXISTS could become a join with the whole ledger.
UNTOLD = """
SELECT floor(date_part('epoch', at) * 1000)::bigint FROM {s}.transition
WHERE (xid, seq) > (%s::text::xid8, %s::bigint) ORDER BY xid, seq LIMIT 1
"""
PRUNE = """
WITH old AS MATERIALIZED (
    SELECT id FROM {s}.job WHERE status = {status} AND finished_at < %s
        AND finished_at < to_timestamp((%s + 1) / 1000.0::double precision) AND (
            SELECT count(*) FROM {s}.transition AS t
            WHERE t.job_id = job.id AND (t.xid, t.seq) > (%s::text::xid8, %s::bigint)) = 0
    ORDER BY finished_at LIMIT %s FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {s}.job USING old WHERE job.id = old.id RETURNING job.id, job.queue, job.type
), ledger AS (
    DELETE FROM {s}.transition USING gone WHERE job_id = gone.id
), traces AS (
    DELETE FROM {s}.trace USING gone WHERE job_id = gone.id
)
SELECT queue, type, count(*) FROM gone GROUP BY queue, type
"""


ENDED = (Status.FAILED, Status.CANCELLED)
"""What the index `job_ended` holds."""


def listing(what: str, query: Query) -> tuple[str, list[Any]]:
    """`SELECT what` of the jobs of a query, and the values; see `search.py` for its bounds.

    A subquery with a limit is a fence: what is inside decides on the index, whatever the planner
    thinks of the conditions outside. The status stands as a literal: partial indexes need it.
    """
    inside, outside, values = list[str](), list[str](), list[Any]()

    def add(part: str, value: Any, parts: list[str]) -> None:
        if value is not None:
            parts.append(part)
            values.append(value)

    if query.status is not None:
        decides = query.gather or query.status in ENDED
        (inside if decides else outside).append(f"status = {guards.quoted(Status(query.status))}")
    if query.gather and query.status == Status.PENDING:
        add("queue = %s", query.queue, inside)
    after, before = between(query)
    along = outside if query.gather else inside
    add("id > %s::uuid", _uuid(after), along)
    add("id < %s::uuid", _uuid(before), along)
    add(f"id {'<=' if query.oldest_first else '>='} %s::uuid", _uuid(query.through), along)
    order = f"ORDER BY job.id {'ASC' if query.oldest_first else 'DESC'}"
    if query.among:
        outside.append(f"status IN ({guards.quoted(*query.among)})")
    add("type = %s", query.type, outside)
    add("queue = %s", query.queue, outside)
    add("created_at >= %s", query.created_after, outside)
    add("created_at < %s", query.created_before, outside)
    add("created_at <= %s", query.created_by, outside)
    add("finished_at <= %s", query.settled_by, outside)
    # Lower case of the C locale is that of A to Z alone, as in SQLite.
    add(f"strpos({_folded('last_error')}, %s) > 0", _text(query.error), outside)
    add(f"strpos({_folded('payload')}, %s) > 0", _text(query.text), outside)
    if query.gather:
        table = f"(SELECT * FROM {{s}}.job{_where(inside)} OFFSET 0) AS job"
    elif query.most is not None:
        table = f"(SELECT * FROM {{s}}.job{_where(inside)} {order} LIMIT {int(query.most)}) AS job"
    else:
        table, outside = "{s}.job", [*inside, *outside]
    return f"SELECT {what} FROM {table}{_where(outside)} {order} LIMIT {int(query.limit)}", values


def _where(parts: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(parts)}" if parts else ""


def _folded(column: str) -> str:
    return f'lower(job.{column} COLLATE "C")'


def _text(wanted: str | None) -> str | None:
    return wanted and folded(wanted)


def _uuid(id: str | None) -> str | None:
    if id is not None and not is_uuid(id):
        raise InvalidInput("not the id of a job", path="$.before")
    return id


def counting(query: Query) -> tuple[str, list[Any]]:
    """How many a listing would be."""
    statement, values = listing("1", query)
    return f"SELECT count(*) FROM ({statement}) AS found", values


def edge(query: Query, rows: int) -> tuple[str, list[Any]]:
    """The id of the last of so many rows that a search goes along, if there are as many."""
    ended = query.status if query.status in ENDED else None
    statement, values = listing("job.id::text", along_ids(query, ended))
    return f"{statement} OFFSET {int(rows) - 1}", values


def waiting(query: Query, most: int) -> tuple[str, list[Any]]:
    """How many jobs stand in the status of a query (and in its queue, if they are pending)."""
    status = Status(query.status or "")
    where, values = f"status = {guards.quoted(status)}", list[Any]()
    if status is Status.PENDING and query.queue is not None:
        where, values = f"{where} AND queue = %s", [query.queue]
    some = f"SELECT FROM {{s}}.job WHERE {where} LIMIT {int(most)}"
    return f"SELECT count(*) FROM ({some}) AS waiting", values
