"""The SQL of the PostgreSQL store: its dialect, and the statements of the writing side.

`{s}` is the schema; other braces, a part put in later. The statements are set-based: rows come in
as one array per column. Each repeats its guard on the row that it changes, which PostgreSQL tests
again after a wait for the lock of another transaction.

A row is locked FOR UPDATE only to be deleted. FOR NO KEY UPDATE does for a change, and leaves room
for a foreign key: a row of another table that refers to a job, not committed yet, holds up nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, reduce
from itertools import chain
from typing import Any

from tenure.lifecycle import Status
from tenure.store.constraints import broken, in_reach, postgres_values, quoted
from tenure.store.database import Dialect
from tenure.store.lanes import MAX_LANES, MAX_SEEN
from tenure.store.postgres.connection import NOW, array_of, is_uuid, to_time
from tenure.store.rows import ADDED, CHANGED, COLUMNS, TIMED, TIMES, selected

MAX_PARTITIONS = 250
"""Partitions of a lane that one look goes over."""
SEEN_IN_TURN = 200
"""Jobs of each partition that one look goes over."""


def _arrived(status: str, more: str = "") -> str:
    """A FROM item: the ids of the jobs that entered a status, each once."""
    return (
        "(SELECT DISTINCT one.id FROM {s}.arrival CROSS JOIN unnest(ids) AS one (id)"
        f" WHERE arrival.status = '{status}'{more}) AS arrived"
    )


LOOK_FOR_DUTIES = "SELECT * FROM {s}.look()"
DIALECT = Dialect(
    engine="postgres",
    prefix="{s}.",
    value="%s",
    id_value="%s::uuid",
    id_column="{column}::text",
    time_column="{column} AT TIME ZONE 'UTC'",
    now=NOW,
    duration="({seconds})::double precision * interval '1 second'",
    pending="{s}.ready",
    turns="(SELECT queue, priority, partition, run_at, id FROM {s}.ready"
    " WHERE partition IS NOT NULL) AS turn",
    processing=f"(SELECT job.* FROM {_arrived('processing')} JOIN {{s}}.job USING (id)"
    " WHERE job.status = 'processing') AS job",
    expiring="{s}.arrival WHERE status = 'processing' AND at",
    ruled="(SELECT 1 FROM {s}.retention UNION ALL SELECT 1 FROM {s}.kept) AS ruled",
    late=f"(SELECT start_by AS at FROM {{s}}.ready WHERE start_by <= {NOW}"
    f" UNION ALL SELECT at FROM {{s}}.arrival WHERE status = 'waiting' AND at <= {NOW}) AS late",
    skip_locked="FOR NO KEY UPDATE SKIP LOCKED",
    free_to_delete="FOR UPDATE SKIP LOCKED",
    # Lower case of the C locale is that of A to Z alone, as in SQLite.
    folded='strpos(lower(job.{column} COLLATE "C"), %s) > 0',
    is_id=is_uuid,
    to_time=to_time,
    to_bound=lambda time: time,
    place="xid::text, seq",
    order=("xid", "seq"),
    settled="t.xid < pg_snapshot_xmin(pg_current_snapshot())",
    after="(t.xid, t.seq) > (%s::text::xid8, %s::bigint)",
    up_to="(t.xid, t.seq) <= (%s::text::xid8, %s::bigint)",
    is_at="xid = %s::text::xid8 AND seq = %s",
    set_place="xid = %s::text::xid8, seq = %s",
    since="(t.xid, t.seq) > (SELECT xid, seq FROM {s}.measured)",
    lost="(SELECT xid FROM {s}.measured) >= pg_snapshot_xmax(pg_current_snapshot())",
    # The limit, which changes nothing, keeps the planner from walking the jobs.
    with_job="CROSS JOIN LATERAL (SELECT type, queue, tags, token, event, run_at, started_at"
    " FROM {s}.job WHERE id = t.job_id LIMIT 1) AS j",
    minute="floor(date_part('epoch', t.at) / 60)::bigint",
    millis="floor(date_part('epoch', {time}) * 1000)::bigint",
    span="date_part('epoch', {end} - {start})",
    first_line="split_part(t.detail, E'\\n', 1)",
    last_job="(array_agg(t.job_id::text ORDER BY t.at DESC, t.seq DESC))[1]",
    json_rows="json_array_elements(%s::json) AS new (value)",
    json_objects="json_populate_recordset(NULL::{table}, %s::json) AS new",
    tags='LATERAL (SELECT value COLLATE "C" FROM json_array_elements_text(CASE'
    " WHEN {s}.json_type(job.tags) = 'array' THEN job.tags::json END)) AS one (value)",
    hold=" FOR NO KEY UPDATE",
    hold_jobs="LOCK TABLE {s}.job IN SHARE ROW EXCLUSIVE MODE",
    hold_starts="SELECT pg_advisory_xact_lock({s}.limit_lock())",
    packs=False,
    look=LOOK_FOR_DUTIES,
    moved="(SELECT prosrc FROM pg_trigger JOIN pg_proc ON pg_proc.oid = tgfoid"
    " WHERE tgrelid = '{s}.job'::regclass AND tgname = 'elsewhere')",
    broken_value=broken(postgres_values("{{s}}.json_type({})", "{s}") | in_reach()),
)

# Plans must not hang on statistics: right after a bulk load the planner would read and sort the
# whole table for one batch. Settings end with the transaction, as a transaction pooler demands.
# A process that is frozen between two statements holds its locks for less time than others wait for
# them; thawed, it finds its transaction undone and starts again.
BEGIN = """
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL jit = off;
SET LOCAL lock_timeout = '10s'; SET LOCAL idle_in_transaction_session_timeout = '5s'
"""
# Next it locks the table, as a write does anyway: a wait for an index to be made must not count
# against a lease.
LOCK_JOBS = "LOCK TABLE {s}.job IN ROW EXCLUSIVE MODE"
# One that sets limits does not. It may have to wait for all who have that lock, and two of these
# would wait for each other.
LOCK_LIMITS = "SELECT pg_advisory_xact_lock({s}.limit_lock('', 'settings'))"

TYPES = {
    **dict.fromkeys(TIMES, "timestamptz"),
    **dict.fromkeys(("id", "job_id", "lease_id", "again_of", "workflow"), "uuid"),
    **dict.fromkeys(("priority", "max_retries"), "bigint"),
    **dict.fromkeys(("attempts", "token", "snoozes", "need", "spare"), "integer"),
    **dict.fromkeys(("timeout", "delay", "start_within"), "float8"),
}
"""Column -> type, where it is not text."""


def type_of(column: str) -> str:
    """The SQL type of a column; `was_x` is typed like `x`."""
    return TYPES.get(column.removeprefix("was_"), "text")


def rows_of(name: str, *columns: str) -> str:
    """A FROM item that makes rows of one array parameter per column."""
    arrays = (f"%b::{type_of(column)}[]" for column in columns)
    return f"unnest({', '.join(arrays)}) AS {name} ({', '.join(columns)})"


def arrays(columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Return the array parameters of rows, one for each column."""
    values = zip(*rows, strict=True)
    return [array_of(type_of(c), v) for c, v in zip(columns, values, strict=True)]


NEW = (*ADDED, *chain.from_iterable(TIMED.items()), "backoff")
"""What is said of a job to add, and of a new option: everything else of it is generated."""

ENTERING = (*ADDED, "backoff", *TIMED, "created_at")
"""The columns of a new row."""
_LATER = "coalesce({}, now + {} * interval '1 second')"
ENTERING_VALUES = (*ADDED, "backoff", *(_LATER.format(*each) for each in TIMED.items()), "now")
"""Their values, made of `NEW` at the time `now`."""


@cache
def insert_with(more: tuple[str, ...]) -> str:
    """Add the jobs whose id and key are new; `more` columns than those of every job."""
    return f"""
WITH entered AS (
    INSERT INTO {{s}}.job ({", ".join((*ENTERING, *more))})
    SELECT {", ".join((*ENTERING_VALUES, *more))}
    FROM {rows_of("new", *NEW, *more)} CROSS JOIN (SELECT %s::timestamptz) AS clock (now)
    ON CONFLICT DO NOTHING RETURNING job.id, job.run_at
)
SELECT id::text, run_at AT TIME ZONE 'UTC' FROM entered
"""


# The hot path: functions of the schema, whose plans a session keeps; see 0001_2_statements.sql.
ENQUEUE = (
    f"SELECT * FROM {{s}}.enqueue_many({', '.join(f'%b::{type_of(c)}[]' for c in NEW)}, %s, %s)"
)
ENQUEUE_ONE = f"SELECT {{s}}.enqueue_one({', '.join(f'${n}' for n in range(1, len(NEW) + 1))})"
COMPLETE = "SELECT * FROM {s}.complete(%b::uuid[], %b::uuid[], %b::text[], %b::text[])"
EXCHANGE = f"""
SELECT * FROM {{s}}.exchange(
    %b::uuid[], %b::uuid[], %b::text[], %b::text[],
    %b::text[], %s, %s, %b::text[], %s::integer, {MAX_LANES}, %s::integer)
"""
CLAIM = "SELECT * FROM {s}.claim(%s, %s, %s, %s, %s, %s, %s, %b::text[], %s::integer, %s::integer)"
PASSED = f"SELECT * FROM {{s}}.passed(%s, %s, %s, %s, %s, {MAX_SEEN})"
ROOM = "SELECT {s}.room(%s, %s)"
OPEN = f"SELECT * FROM {{s}}.open_partitions(%s, %s, %s, %s, %s, %s, {MAX_PARTITIONS})"
CLAIM_IN_TURN = f"""
SELECT * FROM {{s}}.claim_in_turn(%s, %s, %s, %s, %s, %b::text[],
    %b::text[], %b::integer[], %b::timestamptz[], %b::uuid[], %s, %s::integer, {SEEN_IN_TURN})
"""
PASSED_IN_TURN = f"""
SELECT * FROM {{s}}.passed_in_turn(%s, %s, %s,
    %b::text[], %b::timestamptz[], %b::uuid[], {SEEN_IN_TURN})
"""
LOOK_AGAIN = """
SELECT every, burst, tat, {s}.micros(resume_at), per_every FROM {s}.queue_limit WHERE queue = %s
"""
NEWEST = """
SELECT DISTINCT queue, priority
FROM (SELECT queue, priority, status FROM {s}.job ORDER BY id DESC LIMIT 50) AS newest
WHERE status = 'pending'
"""

JOB_COLUMNS = selected(DIALECT, COLUMNS, "job")
KNOWN = f"""
SELECT DISTINCT ON (found.wanted) found.wanted::text, {JOB_COLUMNS}, job.fingerprint
FROM (
    SELECT new.id AS wanted, job.id FROM {rows_of("new", "id")} JOIN {{s}}.job USING (id)
    UNION ALL
    SELECT new.id, job.id FROM {rows_of("new", "id", "idempotency_key")}
        JOIN {{s}}.job USING (idempotency_key)
) AS found JOIN {{s}}.job USING (id)
ORDER BY found.wanted, job.id <> found.wanted
"""

LIMITED = "SELECT * FROM {s}.limited(%b::text[])"

HOLD = """
SELECT count(*) FROM (
    SELECT FROM {s}.job WHERE id = ANY (%b::uuid[]) ORDER BY id FOR NO KEY UPDATE) AS held
"""
LOCK = f"SELECT {JOB_COLUMNS} FROM {{s}}.locked(%b::uuid[]) AS job"
BUSY = """
WITH asked AS MATERIALIZED (SELECT unnest(%b::uuid[]) AS id),
free AS MATERIALIZED (
    SELECT job.id FROM asked JOIN {s}.job USING (id)
    ORDER BY id FOR NO KEY UPDATE OF job SKIP LOCKED)
SELECT id::text FROM asked JOIN {s}.job USING (id) WHERE id NOT IN (SELECT id FROM free)
"""
# The sweep looks at the arrivals of claims once one is a second old, and then at all of them. What
# is still processing enters again at the end of its lease, by the trigger of `arrival`. So what is
# then left before now has run out.
MAX_ARRIVALS = 10_000
"""Jobs whose arrival one look of the sweep or of retention goes over, about."""
LOOK = f"""
WITH looked AS (
    DELETE FROM {{s}}.arrival WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM (
            SELECT ctid, sum(size) OVER (ROWS UNBOUNDED PRECEDING) - size AS before FROM (
                SELECT ctid, (pg_column_size(ids) - 20) / 16 AS size FROM {{s}}.arrival
                WHERE status = 'processing' AND at <= {NOW} + interval '1 second'
                ORDER BY status, at LIMIT {MAX_ARRIVALS} FOR UPDATE SKIP LOCKED) AS old
        ) AS old WHERE before < {MAX_ARRIVALS}))
    RETURNING (pg_column_size(ids) - 20) / 16 AS size
)
SELECT coalesce(sum(size), 0) FROM looked
"""
LOOK_AT_WAITING = LOOK.replace("'processing'", "'waiting'")
LOCK_LATE = f"""
SELECT {JOB_COLUMNS} FROM (
    (SELECT id FROM {{s}}.ready WHERE start_by <= {NOW} ORDER BY start_by LIMIT %s)
    UNION ALL SELECT id FROM {_arrived("waiting", f" AND at <= {NOW}")}
) AS late JOIN {{s}}.job USING (id)
WHERE job.status IN ('waiting', 'pending') AND job.start_by <= {NOW}
ORDER BY job.start_by LIMIT %s OFFSET %s FOR NO KEY UPDATE OF job SKIP LOCKED
"""
# `xmax` says that another transaction has locked the job since its last change. The end of a lease
# that was spared has these microseconds: once only, or locks could keep the sweep from it forever.
_BEHIND = f"""job.xmax NOT IN ('0', job.xmin) AND to_char(lease_expires_at, 'US') <> '999999'
    AND lease_expires_at < {NOW} - interval '2 seconds'"""
SPARE = f"""
UPDATE {{s}}.job SET lease_expires_at = date_trunc('second', {NOW}) + interval '3.999999 seconds'
WHERE id = ANY (ARRAY(SELECT job.id
    FROM {_arrived("processing", f" AND at <= {NOW}")} JOIN {{s}}.job USING (id)
    WHERE status = 'processing' AND {_BEHIND} FOR NO KEY UPDATE OF job SKIP LOCKED))
"""
LOCK_EXPIRED = f"""
SELECT {JOB_COLUMNS} FROM {_arrived("processing", f" AND at <= {NOW}")} JOIN {{s}}.job USING (id)
WHERE status = 'processing' AND lease_expires_at <= {NOW} AND NOT ({_BEHIND})
ORDER BY job.lease_expires_at LIMIT %s OFFSET %s FOR NO KEY UPDATE OF job SKIP LOCKED
"""
GUARD = ("status", "token", "lease_id", "lease_expires_at")
SAVED = ("id", *CHANGED, *(f"was_{column}" for column in GUARD))
SAVE = f"SELECT {{s}}.save({', '.join(f'%b::{type_of(c)}[]' for c in SAVED)})"


@cache
def save_with(more: tuple[str, ...]) -> str:
    """The same with more columns, for transitions that are rare."""
    columns = (*SAVED, *more)
    sets = ", ".join(f"{column} = new.{column}" for column in (*CHANGED, *more))
    return f"""
WITH saved AS (
    UPDATE {{s}}.job SET {sets} FROM {rows_of("new", *columns)}
    WHERE job.id = new.id AND job.status = was_status AND job.token = was_token
        AND job.lease_id IS NOT DISTINCT FROM was_lease_id
        AND job.lease_expires_at IS NOT DISTINCT FROM was_lease_expires_at
    RETURNING 1
)
SELECT count(*) FROM saved
"""


SETTLED_AS = f"""
SELECT DISTINCT ON (t.job_id, t.lease_id) t.job_id::text, t.lease_id::text, t.event
FROM {rows_of("asked", "job_id", "lease_id")} JOIN {{s}}.transition AS t USING (job_id, lease_id)
WHERE t.event <> 'claimed' ORDER BY t.job_id, t.lease_id, t.seq DESC
"""

# A row that is locked is being reported or swept. To wait could be a deadlock; its lease is held.
RENEW = f"""
WITH asked AS MATERIALIZED (SELECT * FROM {rows_of("lease", "id", "lease_id")}
), free AS MATERIALIZED (
    SELECT job.id FROM asked JOIN {{s}}.job USING (id, lease_id)
    FOR NO KEY UPDATE OF job SKIP LOCKED
), renewed AS (
    UPDATE {{s}}.job SET
        lease_expires_at = greatest(lease_expires_at, {NOW} + %s * interval '1 second')
    FROM free WHERE job.id = free.id
)
SELECT job.lease_id::text FROM asked JOIN {{s}}.job USING (id, lease_id)
"""

KEEP_TRACES = """
INSERT INTO {s}.trace (job_id, traceparent)
SELECT * FROM unnest(%b::uuid[], %b::text[]) ON CONFLICT DO NOTHING
"""
TRACES = "SELECT job_id::text, traceparent FROM {s}.trace WHERE job_id = ANY (%b::uuid[])"

# Transitions after the place are counted: NOT EXISTS could become a join with the whole ledger.
SEEN = """
WITH seen AS MATERIALIZED (
    SELECT ctid, ids FROM (
        SELECT *, sum(size) OVER (ROWS UNBOUNDED PRECEDING) - size AS before FROM (
            SELECT ctid, ids, (pg_column_size(ids) - 20) / 16 AS size FROM {s}.{table}
            WHERE status = {status} AND {these} AND at < least(
                %s, to_timestamp((%s + 1) / 1000.0::double precision))
            ORDER BY {order}, at LIMIT %s FOR UPDATE SKIP LOCKED) AS old
    ) AS old WHERE before < %s
)"""
OLD = """, old AS MATERIALIZED (
    SELECT job.id, job.queue, job.type FROM (SELECT DISTINCT unnest(ids) AS id FROM seen) AS arrived
        JOIN {s}.job USING (id)
    WHERE job.status = {status} AND workflow IS NULL
        AND (coalesce(followed, 0) = 0 OR NOT {s}.is_awaited(job.id))
        AND ({status} <> 'failed' OR (SELECT count(*) FROM {s}.line
            WHERE line.queue = job.queue AND line.partition = coalesce(job.partition, '')
                AND line.id = job.id) = 0)
        AND finished_at < %s
        AND finished_at < to_timestamp((%s + 1) / 1000.0::double precision) AND (
            SELECT count(*) FROM {s}.transition AS t
            WHERE t.job_id = job.id AND (t.xid, t.seq) > (%s::text::xid8, %s::bigint)) = 0
    LIMIT %s FOR UPDATE OF job SKIP LOCKED
)"""
LOOKED = ", looked AS (DELETE FROM {s}.{table} AS it USING seen WHERE it.ctid = seen.ctid)"
DELETE_THEM = f"""{SEEN}{OLD}{LOOKED}, gone AS (
    DELETE FROM {{s}}.job USING old WHERE job.id = old.id RETURNING job.id, job.queue, job.type
), ledger AS (DELETE FROM {{s}}.transition USING gone WHERE job_id = gone.id
), traces AS (DELETE FROM {{s}}.trace USING gone WHERE job_id = gone.id
), said AS (DELETE FROM {{s}}.progress USING gone WHERE job_id = gone.id)
SELECT queue, type, count(*) FROM gone GROUP BY queue, type
UNION ALL SELECT NULL, NULL, coalesce(sum(cardinality(ids)), 0) FROM seen
"""
# Where the database refuses that: which, to delete them one by one, and then that they were seen.
FIND_THEM = f"{SEEN}{OLD} SELECT id::text, {{status}}, queue, type FROM old"
LOOK_AT_THEM = f"{SEEN}{LOOKED} SELECT count(*) FROM seen"
NAME_REFUSED = "SELECT set_config('tenure.refused', %s, true)"
"""Names jobs that could not be deleted: their arrivals come back as if they had settled now."""


def of_status(statement: str, status: str) -> str:
    """Return a statement with a status put in for `{status}`."""
    return statement.replace("{status}", quoted(Status(status)))


def arrived(statement: str, status: str, *, kept: bool) -> str:
    """Return a statement about the arrivals with this status, or what is `kept` of a pair."""
    if kept:
        names = {"{table}": "kept", "{these}": "queue = %s AND type = %s"}
        names["{order}"] = "status, queue, type"
    else:
        names = {"{table}": "arrival", "{order}": "status"}
        names["{these}"] = "NOT EXISTS (SELECT FROM {s}.retention)"
    fitting = reduce(lambda text, name: text.replace(name, names[name]), names, statement)
    return of_status(fitting, status)


MAX_PASSED = 1_000
"""Settled jobs that one batch of retention puts aside, about."""
PUT_ASIDE = f"""
WITH old AS MATERIALIZED (
    SELECT ctid, size FROM (
        SELECT *, sum(size) OVER (ROWS UNBOUNDED PRECEDING) - size AS before FROM (
            SELECT ctid, (pg_column_size(ids) - 20) / 16 AS size FROM {{s}}.arrival
            WHERE status = {{status}} AND at < %s
            ORDER BY status, at LIMIT {MAX_PASSED} FOR UPDATE SKIP LOCKED) AS old
    ) AS old WHERE before < {MAX_PASSED}
), looked AS (DELETE FROM {{s}}.arrival USING old WHERE arrival.ctid = old.ctid)
SELECT coalesce(sum(size), 0)::bigint FROM old
"""
# From one pair of queue and type to the next, however many jobs each has.
KEPT = """
WITH RECURSIVE pair AS (
    (SELECT queue, type, at FROM {s}.kept WHERE status = {status} ORDER BY queue, type, at LIMIT 1)
    UNION ALL
    SELECT next.* FROM pair CROSS JOIN LATERAL (
        SELECT queue, type, at FROM {s}.kept
        WHERE status = {status} AND (queue, type) > (pair.queue, pair.type)
        ORDER BY queue, type, at LIMIT 1) AS next
)
SELECT queue, type, at AT TIME ZONE 'UTC' FROM pair
"""

HOT = frozenset(
    {LOOK_FOR_DUTIES, ENQUEUE, COMPLETE, EXCHANGE, CLAIM, LOCK, SAVE, ROOM, OPEN, CLAIM_IN_TURN}
)
"""Calls of functions that sessions prepare: to plan one takes as long as a tenth of a job."""
