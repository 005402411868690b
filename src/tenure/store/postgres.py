"""The PostgreSQL store: set-based statements over arrays, for any number of processes.

Every statement runs at READ COMMITTED and repeats its guard on the row it changes: that is the
condition which PostgreSQL tests again after waiting for somebody else's lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus

from tenure.errors import InvalidInput
from tenure.lifecycle import Job, Status
from tenure.records import Addition, ClaimRequest, Lease, Query, Report
from tenure.store import guards
from tenure.store.database import Trouble
from tenure.store.postgres_connection import NOW, connect, is_uuid, place_of, to_time, uuids
from tenure.store.rows import COLUMNS, MOVED, TIMES, added_job, job_of, write_names, write_policy

# Plans must not hang on statistics: right after a bulk load the planner would read and sort the
# whole table for one batch. Settings end with the transaction, as a transaction pooler demands.
BEGIN = """
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL jit = off;
SET LOCAL lock_timeout = '10s'
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
    # Binary arrays are twice as fast, but UUIDs would have to become objects first: see `uuids`.
    formats = ("%s" if type_of(column) == "uuid" else "%b" for column in columns)
    arrays = (f"{f}::{type_of(c)}[]" for f, c in zip(formats, columns, strict=True))
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
    "backoff",
    "actor",
    "idempotency_key",
    "fingerprint",
    "payload",
)
NEW = (*ADDED, "run_at", "delay")

INSERT = f"""
WITH clock AS MATERIALIZED (SELECT {NOW} AS now)
INSERT INTO {{s}}.job ({", ".join(ADDED)}, created_at, run_at)
SELECT {", ".join(ADDED)}, now, coalesce(run_at, now + delay * interval '1 second')
FROM clock CROSS JOIN {rows_of("new", *NEW)}
ON CONFLICT DO NOTHING
RETURNING {select("id", "created_at", "run_at")}
"""

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

LIMITED = """
SELECT name, max_pending FROM {s}.queue WHERE name = ANY (%b::text[]) AND max_pending IS NOT NULL
ORDER BY name FOR UPDATE
"""
PENDING = """
SELECT count(*) FROM (
    SELECT FROM {s}.job WHERE status = 'pending' AND queue = %s LIMIT %s) AS waiting
"""

# The lease alone would do (a CHECK makes it imply the status). With the status in the condition,
# the planner would walk the index of leases and all its dead entries instead of the primary key.
COMPLETE = f"""
UPDATE {{s}}.job SET status = 'completed', result = report.result, finished_at = {NOW},
    lease_id = NULL, lease_expires_at = NULL, event = 'completed',
    actor = coalesce(report.actor, job.worker)
FROM {rows_of("report", "id", "lease_id", "result", "actor")}
WHERE job.id = report.id AND job.lease_id = report.lease_id
RETURNING report.lease_id::text
"""

HEAD = "SELECT queue, priority, run_at FROM {s}.job WHERE status = 'pending'"
HEAD_ORDER = "ORDER BY queue, priority, run_at LIMIT 1"
OPEN = f"""
SELECT queue, priority, {NOW} AT TIME ZONE 'UTC' FROM lane
WHERE run_at <= {NOW} AND NOT EXISTS (
    SELECT FROM {{s}}.queue WHERE name = lane.queue AND paused_at IS NOT NULL)
"""
# Both step from lane to lane in the index of what is ready, one search each, whatever waits there.
LANES = f"""
WITH RECURSIVE lane AS (
    ({HEAD} {HEAD_ORDER})
    UNION ALL
    SELECT next.* FROM lane CROSS JOIN LATERAL (
        {HEAD} AND (queue, priority) > (lane.queue, lane.priority) {HEAD_ORDER}) AS next
) {OPEN}
"""
LANES_OF = f"""
WITH RECURSIVE lane AS (
    SELECT first.* FROM unnest(%b::text[]) AS wanted CROSS JOIN LATERAL (
        {HEAD} AND queue = wanted {HEAD_ORDER}) AS first
    UNION ALL
    SELECT next.* FROM lane CROSS JOIN LATERAL (
        {HEAD} AND queue = lane.queue AND priority > lane.priority {HEAD_ORDER}) AS next
) {OPEN}
"""

LEASED = (
    "id",
    "type",
    "queue",
    "payload",
    "attempts",
    "max_retries",
    "token",
    "timeout",
    "lease_id",
)
CLAIM = f"""
WITH picked AS MATERIALIZED (
    SELECT id, status FROM {{s}}.job
    WHERE status = 'pending' AND queue = %(queue)s AND priority = %(priority)s
        AND run_at <= %(now)s {{types}}
    ORDER BY run_at, id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE {{s}}.job SET status = 'processing', attempts = attempts + 1, token = token + 1,
        lease_id = gen_random_uuid(), lease_expires_at = %(until)s, started_at = %(now)s,
        worker = %(worker)s, event = 'claimed', actor = %(worker)s
    FROM picked WHERE job.id = picked.id AND job.status = picked.status
    RETURNING job.*
)
SELECT {select(*LEASED, table="claimed")} FROM claimed ORDER BY claimed.run_at, claimed.id
"""
OF_TYPES = "AND type = ANY (%(types)b::text[])"

SELECT_JOB = f"SELECT {select(*COLUMNS)} FROM {{s}}.job"
LOCK = f"{SELECT_JOB} WHERE id = ANY (%s::uuid[]) ORDER BY job.id FOR UPDATE"
# After a wait for somebody else's lock both conditions are tested again on the row as it is then.
LOCK_EXPIRED = f"""
{SELECT_JOB} WHERE status = 'processing' AND lease_expires_at <= {NOW}
ORDER BY job.lease_expires_at LIMIT %s FOR UPDATE SKIP LOCKED
"""
LOCK_MATCHING = f"""
WITH wanted AS MATERIALIZED (SELECT id FROM {{s}}.job {{where}})
{SELECT_JOB} WHERE id IN (SELECT id FROM wanted) AND {{condition}} ORDER BY job.id FOR UPDATE
"""

WAS = ("was_status", "was_token", "was_lease_id", "was_lease_expires_at")
SAVED = ("id", *MOVED, *WAS)
SAVE = f"""
UPDATE {{s}}.job SET {", ".join(f"{column} = new.{column}" for column in MOVED)}
FROM {rows_of("new", *SAVED)}
WHERE job.id = new.id AND job.status = was_status AND job.token = was_token
    AND job.lease_id IS NOT DISTINCT FROM was_lease_id
    AND job.lease_expires_at IS NOT DISTINCT FROM was_lease_expires_at
RETURNING {select("id")}
"""

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

SEE_WORKER = f"""
INSERT INTO {{s}}.worker (id, label, queues, types, seen_at) VALUES (%s, %s, %s, %s, {NOW})
ON CONFLICT (id) DO UPDATE SET
    seen_at = excluded.seen_at, queues = excluded.queues, types = excluded.types
"""

PRUNE = """
WITH old AS MATERIALIZED (
    SELECT id FROM {s}.job WHERE status = {status} AND finished_at < %s
    ORDER BY finished_at LIMIT %s FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {s}.job USING old WHERE job.id = old.id RETURNING job.id
), ledger AS (
    DELETE FROM {s}.transition USING gone WHERE job_id = gone.id
)
SELECT count(*) FROM gone
"""

NOTHING_COMMITTED = (
    errors.SerializationFailure,
    errors.DeadlockDetected,
    errors.LockNotAvailable,
)
AWAY = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    errors.ReadOnlySqlTransaction,  # a former primary, still answering at the same address
    errors.IdleInTransactionSessionTimeout,
)


def where(query: Query) -> tuple[str, str, list[Any]]:
    """(WHERE clause with order and limit, its condition alone, values) of a query.

    The status stands as a literal: partial indexes need it.
    """
    parts, values = ["true"], []
    if query.status is not None:
        parts.append(f"status = {guards.quoted(Status(query.status))}")
    for column, value in (("type", query.type), ("queue", query.queue)):
        if value is not None:
            parts.append(f"{column} = %s")
            values.append(value)
    if query.before is not None:
        if not is_uuid(query.before):
            raise InvalidInput("not the id of a job", path="$.before")
        parts.append("id < %s::uuid")
        values.append(query.before)
    condition = " AND ".join(parts)
    return f"WHERE {condition} ORDER BY job.id DESC LIMIT {int(query.limit)}", condition, values


class Postgres:
    """The writing connection to one database; see `Database`."""

    def __init__(self, url: str) -> None:
        self._place = place_of(url)
        self._connection: psycopg.Connection[Any] | None = None
        self._queries: dict[str, bytes] = {}
        self._begin = BEGIN
        self._now: datetime | None = None
        self._last_queue = ""
        self._marked = False
        self._warnings: list[str] = []

    # --- transactions

    def begin(self) -> None:
        if self._connection is None:
            self._connection = self._connect()
        self._run(self._begin)
        self._now = None
        self._marked = False

    def _connect(self) -> psycopg.Connection[Any]:
        connection = connect(self._place)
        connection.add_notice_handler(self._hear)
        (waits,) = connection.execute(b"SHOW synchronous_commit").fetchone() or ("",)
        # Whatever the role is set to: a commit that is answered is on disk.
        self._begin = BEGIN + ("; SET LOCAL synchronous_commit = on" if waits == "off" else "")
        return connection

    def _hear(self, notice: errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self._warnings.append(notice.message_primary or "")

    def commit(self) -> None:
        self._warnings.clear()
        done = self._run("COMMIT").statusmessage
        # It warns when there was no transaction, or when the wait for a standby was cut short.
        if done != "COMMIT" or self._warnings:
            raise psycopg.OperationalError(f"COMMIT ended in {done}: {'; '.join(self._warnings)}")

    def rollback(self) -> None:
        if self._connection is None:
            return
        try:
            if self._connection.info.transaction_status is not TransactionStatus.IDLE:
                self._run("ROLLBACK")
        except psycopg.Error:
            self.close()

    def savepoint(self) -> None:
        self._run(
            "RELEASE SAVEPOINT tenure; SAVEPOINT tenure" if self._marked else "SAVEPOINT tenure"
        )
        self._marked = True

    def undo_to_savepoint(self) -> None:
        self._run("ROLLBACK TO SAVEPOINT tenure")

    def _run(
        self, statement: str, values: Any = None, *, binary: bool = False
    ) -> psycopg.Cursor[Any]:
        if self._connection is None:
            raise psycopg.OperationalError("not connected")
        query = self._queries.get(statement)
        if query is None:
            query = self._queries[statement] = self._place.sql(statement)
        return self._connection.execute(query, values, binary=binary)

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        return self._run(statement, values, binary=True).fetchall()

    def now(self) -> datetime:
        """The clock, read once per transaction."""
        if self._now is None:
            ((stored,),) = self._rows(f"SELECT {NOW} AT TIME ZONE 'UTC'")
            self._now = to_time(stored)
        return self._now

    # --- adding

    def insert(self, additions: Sequence[Addition]) -> Mapping[str, Job]:
        if not additions:
            return {}
        # Keys in one order for everybody, or two batches could wait for each other.
        rows = [_added(a) for a in sorted(additions, key=lambda a: a.idempotency_key or "")]
        made = {id: times for id, *times in self._rows(INSERT, *_arrays(NEW, rows))}
        return {
            a.id: added_job(a, to_time(made[a.id][0]), to_time(made[a.id][1]))
            for a in additions
            if a.id in made
        }

    def known(self, additions: Sequence[Addition]) -> Mapping[str, tuple[Job, str | None]]:
        ids = uuids([a.id for a in additions])
        rows = self._rows(KNOWN, ids, ids, [a.idempotency_key for a in additions])
        return {wanted: (job_of(row, to_time), row[-1]) for wanted, *row in rows}

    def full_queues(self, wanted: Mapping[str, int]) -> Mapping[str, int]:
        full = {}
        # Locked, so that the count below still holds when the jobs are in; read after the lock.
        for name, limit in self._rows(LIMITED, list(wanted)):
            ((pending,),) = self._rows(PENDING, name, limit)
            if pending + wanted[name] > limit:
                full[name] = limit
        return full

    # --- the hot path

    def complete(self, reports: Sequence[Report]) -> set[str]:
        # In the order of `lock`, so that two batches with jobs in common do not block each other.
        held = sorted((r for r in reports if _names_lease(r)), key=lambda r: r.job_id)
        if not held:
            return set()
        rows = self._rows(
            COMPLETE,
            uuids([r.job_id for r in held]),
            uuids([r.lease_id for r in held]),
            [r.result for r in held],
            [r.actor for r in held],
        )
        return {lease_id for (lease_id,) in rows}

    def claim(self, request: ClaimRequest) -> list[Lease]:
        if request.queues is None:
            lanes = self._rows(LANES)
        else:
            lanes = self._rows(LANES_OF, list(set(request.queues)))
        statement = CLAIM.replace("{types}", "" if request.types is None else OF_TYPES)
        leases: list[Lease] = []
        for queue, priority, stored in self._in_turn(lanes):
            now = to_time(stored)
            until = now + timedelta(seconds=request.lease_seconds)
            values = {
                "queue": queue,
                "priority": priority,
                "now": now,
                "until": until,
                "worker": request.worker,
                "limit": request.limit - len(leases),
                "types": list(request.types or ()),
            }
            rows = self._run(statement, values, binary=True).fetchall()
            leases += [_lease(row, until) for row in rows]
            if rows:
                self._last_queue = queue
            if len(leases) >= request.limit:
                break
        return leases

    def _in_turn(
        self, lanes: Iterable[tuple[str, int, datetime]]
    ) -> list[tuple[str, int, datetime]]:
        """Lanes as they are to be claimed from: urgent first, queues of one urgency in turn."""
        return sorted(lanes, key=lambda lane: (lane[1], lane[0] <= self._last_queue, lane[0]))

    # --- load and save

    def lock(self, job_ids: Sequence[str]) -> Mapping[str, Job]:
        jobs = self._jobs(LOCK, uuids([id for id in job_ids if is_uuid(id)]))
        return {job.id: job for job in jobs}

    def lock_expired(self, limit: int) -> list[Job]:
        return self._jobs(LOCK_EXPIRED, limit)

    def lock_matching(self, query: Query) -> list[Job]:
        clause, condition, values = where(query)
        statement = LOCK_MATCHING.replace("{where}", clause).replace("{condition}", condition)
        return self._jobs(statement, *values, *values)[::-1]

    def _jobs(self, statement: str, *values: Any) -> list[Job]:
        return [job_of(row, to_time) for row in self._rows(statement, *values)]

    def save(self, changes: Sequence[tuple[Job, Job]]) -> set[str]:
        if not changes:
            return set()
        rows = [_saved(*pair) for pair in changes]
        return {id for (id,) in self._rows(SAVE, *_arrays(SAVED, rows))}

    def settled_as(self, leases: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], str]:
        asked = [lease for lease in leases if is_uuid(lease[0]) and is_uuid(lease[1])]
        ids = uuids([job_id for job_id, _ in asked])
        rows = self._rows(SETTLED_AS, ids, uuids([lease_id for _, lease_id in asked]))
        return {(job_id, lease_id): event for job_id, lease_id, event in rows}

    def renew(self, leases: Sequence[tuple[str, str]], lease_seconds: float) -> set[str]:
        asked = [lease for lease in leases if is_uuid(lease[0]) and is_uuid(lease[1])]
        ids = uuids([job_id for job_id, _ in asked])
        rows = self._rows(RENEW, ids, uuids([lease_id for _, lease_id in asked]), lease_seconds)
        return {lease_id for (lease_id,) in rows}

    # --- around jobs

    def see_worker(self, request: ClaimRequest) -> None:
        names = (write_names(request.queues), write_names(request.types))
        self._run(SEE_WORKER, (request.worker, request.label, *names))

    def set_queue(
        self, name: str, *, paused: bool | None, max_pending: int | None, actor: str
    ) -> None:
        self._run("INSERT INTO {s}.queue (name) VALUES (%s) ON CONFLICT DO NOTHING", (name,))
        if paused is not None:
            self._run(
                f"UPDATE {{s}}.queue SET paused_at = CASE WHEN %s THEN {NOW} END, paused_by = %s"
                " WHERE name = %s",
                (paused, actor, name),
            )
        if max_pending is not None:
            self._run(
                "UPDATE {s}.queue SET max_pending = %s WHERE name = %s",
                (None if max_pending < 0 else max_pending, name),
            )

    def prune(self, settled_before: Mapping[str, datetime], limit: int) -> int:
        removed = 0
        for status, time in settled_before.items():
            statement = PRUNE.replace("{status}", guards.quoted(Status(status)))
            ((count,),) = self._rows(statement, time, limit - removed)
            removed += count
        if removed == 0:
            self._run(f"DELETE FROM {{s}}.worker WHERE seen_at < {NOW} - interval '1 day'")
        return removed

    # --- housekeeping

    def trouble(self, error: Exception) -> Trouble:
        if isinstance(error, NOTHING_COMMITTED):
            return Trouble.RETRY
        if isinstance(error, AWAY):
            if isinstance(error, errors.ReadOnlySqlTransaction):
                self.close()  # a new connection may find the new primary
            return Trouble.UNAVAILABLE
        return Trouble.BUG

    def announce(self) -> None:
        """Notify the listeners of this schema; nothing is lost if that is lost, so no disk wait."""
        if self._connection is None:
            self._connection = self._connect()
        self._run("BEGIN; SET LOCAL synchronous_commit = off; NOTIFY {s}; COMMIT")

    def tidy(self) -> None:
        """Nothing to do: autovacuum is set up with the tables."""

    def close(self) -> None:
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
            self._connection = None


def _arrays(columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The parameters of `rows_of`."""
    values = zip(*rows, strict=True)
    return [
        uuids(list(v)) if type_of(c) == "uuid" else list(v)
        for c, v in zip(columns, values, strict=True)
    ]


def _names_lease(report: Report) -> bool:
    return is_uuid(report.job_id) and is_uuid(report.lease_id)


def _added(addition: Addition) -> tuple[Any, ...]:
    policy = write_policy(addition.backoff)
    stored = (policy if c == "backoff" else getattr(addition, c) for c in ADDED)
    return (*stored, addition.run_at, addition.delay)


def _lease(row: Sequence[Any], until: datetime) -> Lease:
    id, type, queue, payload, attempts, max_retries, token, timeout, lease_id = row
    return Lease(id, type, queue, payload, attempts, max_retries, token, timeout, lease_id, until)


def _saved(before: Job, after: Job) -> tuple[Any, ...]:
    guard = (before.status, before.token, before.lease_id, before.lease_expires_at)
    return (after.id, *(getattr(after, column) for column in MOVED), *guard)
