"""The PostgreSQL store: the writing side, for any number of processes on any number of machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any

import psycopg
from psycopg import errors
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult

from tenure.jobs.checked_job import CheckedJob
from tenure.jobs.work import ClaimRequest, Lease, Report
from tenure.lifecycle import Job, Status
from tenure.store import constraints as guards
from tenure.store.postgres import statements as sql
from tenure.store.postgres.connection import (
    NOW,
    Uuids,
    array_of,
    connect,
    is_uuid,
    place_of,
    to_time,
)
from tenure.store.postgres.lanes import Lanes
from tenure.store.postgres.watchdog import ANSWER_SECONDS, Wire, answering
from tenure.store.protocol import Trouble
from tenure.store.rows import MOVED, added_job, job_of, write_names, write_policy
from tenure.store.tables import bulk as bulk_table
from tenure.store.tables import stats_sql as measure_words
from tenure.store.tables import webhooks
from tenure.store.tables.bulk import BulkTable
from tenure.store.tables.stats import Measures
from tenure.store.tables.tokens import POSTGRES, TokenTable
from tenure.store.tables.webhooks import WebhookTable

WAIT_FOR_STANDBY = "SyncRepWaitForLSN"
"""Where in PostgreSQL a commit waits for its standby: messages are translated, this is not."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
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
    errors.TransactionTimeout,
)


class Unconfirmed(psycopg.OperationalError):
    """A commit that may be undone yet: no standby has it."""


_new_values = attrgetter(*sql.ADDED, "run_at", "delay")
_moved_values = attrgetter(*MOVED)
_guard_values = attrgetter(*sql.GUARD)


class Postgres:
    """The writing connection to one database; see `Database`."""

    def __init__(
        self,
        url: str,
        lanes: Lanes | None = None,
        on_connect: Callable[[], None] = lambda: None,
    ) -> None:
        """`lanes` is what the writing connections of a store share.

        `on_connect` is called whenever the connection has been made, for the first time or anew.
        """
        self._place = place_of(url)
        self._on_connect = on_connect
        self._connection: psycopg.Connection[Any] | None = None
        self._wire: Wire | None = None
        self._patience = ANSWER_SECONDS
        self._queries: dict[str, bytes] = {}
        self._begin = sql.BEGIN
        self._begun = True  # whether the transaction that was asked for is there
        self._now: datetime | None = None
        self._lanes = lanes or Lanes()
        self._marked = False
        self.tokens = TokenTable(POSTGRES, self._run)
        self.measures = Measures(measure_words.POSTGRES, self._query)
        self.bulks = BulkTable(bulk_table.POSTGRES, self._run)
        self.webhooks = WebhookTable(webhooks.POSTGRES, self._run)
        self._warnings: list[str] = []
        self._cut_short: list[str] = []  # waits for a standby

    # --- transactions

    def begin(self) -> None:
        """Begin with the first statement, which saves a round trip where that needs no values."""
        if self._connection is None:
            self._connection = self._connect()
        self._begun = False
        self._now = None
        self._marked = False

    def _connect(self) -> psycopg.Connection[Any]:
        connection = connect(self._place)
        connection.add_notice_handler(self._hear)
        with answering(connection, self._patience):
            (waits,) = connection.execute(b"SHOW synchronous_commit").fetchone() or ("",)
        # Whatever the role is set to: a commit that is answered is on disk.
        self._begin = sql.BEGIN + ("; SET LOCAL synchronous_commit = on" if waits == "off" else "")
        self._wire = Wire(connection)
        self._on_connect()
        return connection

    def _hear(self, notice: errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self._warnings.append(notice.message_primary or "")
            if notice.source_function == WAIT_FOR_STANDBY:
                self._cut_short.append(notice.message_primary or "")

    def commit(self) -> None:
        if not self._begun:  # there was nothing to do
            self._begun = True
            return
        self._warnings.clear()
        done = self._run("COMMIT").statusmessage
        # It warns when there was no transaction, or when the wait for a standby was cut short.
        if done != "COMMIT" or self._warnings:
            raise Unconfirmed(f"COMMIT ended in {done}: {'; '.join(self._warnings)}")

    def rollback(self) -> None:
        self._begun = True
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
        if self._connection is None or self._wire is None:
            raise psycopg.OperationalError("not connected")
        self._wire.expect(self._patience)
        try:
            return self._execute(self._connection, statement, values, binary=binary)
        finally:
            self._wire.answered()

    def _query(self, statement: str, values: Sequence[Any]) -> psycopg.Cursor[Any]:
        return self._run(statement, values or None)

    def _execute(
        self,
        connection: psycopg.Connection[Any],
        statement: str,
        values: Any,
        *,
        binary: bool,
    ) -> psycopg.Cursor[Any]:
        if not self._begun:
            self._begun = True
            if values is None:
                together = self._bytes(f"{self._begin}; {statement}")
                cursor = connection.execute(together)
                while cursor.nextset():
                    pass
                return cursor
            connection.execute(self._bytes(self._begin))
            if self._wire is not None:  # each answer has its own time
                self._wire.expect(self._patience)
        return connection.execute(self._bytes(statement), values, binary=binary)

    def _bytes(self, statement: str) -> bytes:
        query = self._queries.get(statement)
        if query is None:
            query = self._queries[statement] = self._place.sql(statement)
        return query

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        return self._run(statement, values or None, binary=True).fetchall()

    def now(self) -> datetime:
        """The clock, read once per transaction."""
        if self._now is None:
            ((stored,),) = self._rows(f"SELECT {NOW} AT TIME ZONE 'UTC'")
            self._now = to_time(stored)
        return self._now

    # --- adding

    def insert(self, checked_jobs: Sequence[CheckedJob]) -> Mapping[str, Job]:
        return self._enqueue(checked_jobs) if checked_jobs else {}

    def insert_alone(self, checked_jobs: Sequence[CheckedJob], *, whole: bool) -> Mapping[str, Job]:
        if not checked_jobs or not self._commits_at_once():
            return {}
        if any(checked_job.traceparent for checked_job in checked_jobs):
            return {}  # that is another table, and so a transaction of several statements
        if len(checked_jobs) == 1:
            made = self._enqueue_one(checked_jobs[0])
        else:
            made = self._enqueue(checked_jobs, sparing=True, whole=whole)
        self._check_confirmed()
        return made

    def _commits_at_once(self) -> bool:
        """Whether a statement alone is a transaction that waits for the disk; connects."""
        if self._connection is None:
            self._connection = self._connect()
        self._cut_short.clear()
        return self._begin == sql.BEGIN

    def _check_confirmed(self) -> None:
        """Raise if the last statement alone was committed without the standby it waits for."""
        if self._cut_short:
            raise Unconfirmed(self._cut_short[0])

    def _enqueue_one(self, checked_job: CheckedJob) -> Mapping[str, Job]:
        """By libpq's own call: psycopg's way to prepare parameters takes as long as the server."""
        assert self._connection is not None
        assert self._wire is not None
        server = self._connection.pgconn
        values = [None if v is None else str(v).encode() for v in _added(checked_job)]
        self._wire.expect(self._patience)
        result = server.exec_params(self._bytes(sql.ENQUEUE_ONE), values)
        self._wire.answered()
        if result.status != ExecStatus.TUPLES_OK:
            raise error_of(result)
        created, runs = result.get_value(0, 0), result.get_value(0, 1)
        if created is None or runs is None:
            return {}
        return {checked_job.id: added_job(checked_job, _time(created), _time(runs))}

    def _enqueue(
        self, checked_jobs: Sequence[CheckedJob], *, sparing: bool = False, whole: bool = False
    ) -> Mapping[str, Job]:
        # Keys in one order for everybody, or two batches could wait for each other.
        rows = [_added(a) for a in sorted(checked_jobs, key=_by_key)]
        arrays = _arrays(sql.NEW, rows)
        ((at, made, later, later_at),) = self._rows(sql.ENQUEUE, *arrays, sparing, whole)
        now = to_time(at)
        run_at = dict(zip(later or (), later_at or (), strict=True))
        wanted = None if made is None else set(made)
        return {
            a.id: added_job(a, now, to_time(run_at[a.id]) if a.id in run_at else now)
            for a in checked_jobs
            if wanted is None or a.id in wanted
        }

    def known(self, checked_jobs: Sequence[CheckedJob]) -> Mapping[str, tuple[Job, str | None]]:
        ids = Uuids([a.id for a in checked_jobs])
        rows = self._rows(sql.KNOWN, ids, ids, [a.idempotency_key for a in checked_jobs])
        return {wanted: (job_of(row, to_time), row[-1]) for wanted, *row in rows}

    def full_queues(self, wanted: Mapping[str, int]) -> Mapping[str, int]:
        full = {}
        # Locked, so that the count below still holds when the jobs are in; read after the lock.
        for name, limit in self._rows(sql.LIMITED, list(wanted)):
            ((pending,),) = self._rows(sql.PENDING, name, limit)
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
            sql.COMPLETE,
            Uuids([r.job_id for r in held]),
            Uuids([r.lease_id for r in held]),
            [r.result for r in held],
            [r.actor for r in held],
        )
        return {lease_id for (lease_id,) in rows}

    def claim(self, request: ClaimRequest) -> list[Lease]:
        leases: list[Lease] = []
        types = None if request.types is None else list(request.types)
        for lane in self._lanes.due(request, self._rows):
            until = lane.now + timedelta(seconds=request.lease_seconds)
            most = request.limit - len(leases)
            times = (lane.since, lane.now, until)
            rows = self._rows(
                sql.CLAIM, lane.queue, lane.priority, *times, request.worker, types, most
            )
            leases += [_lease(row, until) for row in rows]
            if rows:
                self._lanes.claimed(request, lane, to_time(rows[-1][-1]))
            if len(leases) >= request.limit:
                break
        return leases

    def claim_alone(self, request: ClaimRequest) -> list[Lease] | None:
        if not self._lanes.are_plain(request) or not self._commits_at_once():
            return None
        queues = None if request.queues is None else list(set(request.queues))
        types = None if request.types is None else list(request.types)
        asked = (queues, request.lease_seconds, request.worker, types, request.limit)
        rows = self._rows(sql.CLAIM_ALONE, *asked)
        self._check_confirmed()
        if not rows:
            return None
        *_, at, walked = rows[0]
        self._lanes.noticed(request, walked)
        until = to_time(at) + timedelta(seconds=request.lease_seconds)
        return [_lease(row[:-2], until) for row in rows if row[0] is not None]

    def keep_traces(self, traces: Sequence[tuple[str, str]]) -> None:
        ids, parents = zip(*traces, strict=True)
        self._run(sql.KEEP_TRACES, (Uuids(ids), list(parents)), binary=True)

    def traces(self, job_ids: Sequence[str]) -> Mapping[str, str]:
        return dict(self._rows(sql.TRACES, Uuids(job_ids)))

    # --- load and save

    def lock(self, job_ids: Sequence[str]) -> Mapping[str, Job]:
        jobs = self._jobs(sql.LOCK, Uuids([id for id in job_ids if is_uuid(id)]))
        return {job.id: job for job in jobs}

    def lock_expired(self, limit: int) -> list[Job]:
        return self._jobs(sql.LOCK_EXPIRED, limit)

    def _jobs(self, statement: str, *values: Any) -> list[Job]:
        return [job_of(row, to_time) for row in self._rows(statement, *values)]

    def save(self, changes: Sequence[tuple[Job, Job]]) -> int:
        if not changes:
            return 0
        rows = [_saved(*pair) for pair in changes]
        ((written,),) = self._rows(sql.SAVE, *_arrays(sql.SAVED, rows))
        return int(written)

    def settled_as(self, leases: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], str]:
        asked = [lease for lease in leases if is_uuid(lease[0]) and is_uuid(lease[1])]
        ids = Uuids([job_id for job_id, _ in asked])
        rows = self._rows(sql.SETTLED_AS, ids, Uuids([lease_id for _, lease_id in asked]))
        return {(job_id, lease_id): event for job_id, lease_id, event in rows}

    def renew(self, leases: Sequence[tuple[str, str]], lease_seconds: float) -> set[str]:
        asked = [lease for lease in leases if is_uuid(lease[0]) and is_uuid(lease[1])]
        ids = Uuids([job_id for job_id, _ in asked])
        # In time for another attempt, over another connection, before the leases have run out.
        self._patience = max(lease_seconds / 2, 1.0)
        rows = self._rows(sql.RENEW, ids, Uuids([lease_id for _, lease_id in asked]), lease_seconds)
        return {lease_id for (lease_id,) in rows}

    # --- around jobs

    def see_worker(self, request: ClaimRequest) -> None:
        names = (write_names(request.queues), write_names(request.types))
        self._run(sql.SEE_WORKER, (request.worker, request.label, *names))

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
        *measured, until = self.measures.catch_up(self.now())
        places = [measured, *(position.split(".") for position in self.webhooks.positions())]
        numbers = [(int(xid), int(seq)) for xid, seq in places]
        xid, seq = min(numbers)
        if (xid, seq) < numbers[0]:
            until = min([until, *(at for (at,) in self._rows(sql.UNTOLD, str(xid), seq))])
        removed: Counter[tuple[str, str, str]] = Counter()
        for status, time in settled_before.items():
            statement = sql.PRUNE.replace("{status}", guards.quoted(Status(status)))
            values = (time, until, str(xid), seq, limit - removed.total())
            for queue, type, jobs in self._rows(statement, *values):
                removed[status, queue, type] += jobs
        if removed:
            self.measures.take_out(removed)
        else:
            self._run(f"DELETE FROM {{s}}.worker WHERE seen_at < {NOW} - interval '1 day'")
        return removed.total()

    # --- housekeeping

    def trouble(self, error: Exception) -> Trouble:
        if isinstance(error, NOTHING_COMMITTED):
            return Trouble.RETRY
        if isinstance(error, Unconfirmed):
            return Trouble.UNCONFIRMED
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
        if self._wire is not None:
            self._wire.close()
            self._wire = None


def _arrays(columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The parameters of `rows_of`."""
    values = zip(*rows, strict=True)
    return [array_of(sql.type_of(c), v) for c, v in zip(columns, values, strict=True)]


def error_of(result: PGresult) -> psycopg.Error:
    """The error in a result; without a code of the server's, a connection that is gone.

    libpq can say so in a result before it calls the connection bad.
    """
    error = errors.error_from_result(result)
    return error if error.sqlstate else psycopg.OperationalError(str(error))


def _names_lease(report: Report) -> bool:
    return is_uuid(report.job_id) and is_uuid(report.lease_id)


def _by_key(checked_job: CheckedJob) -> str:
    return checked_job.idempotency_key or ""


def _added(checked_job: CheckedJob) -> tuple[Any, ...]:
    return (*_new_values(checked_job), write_policy(checked_job.backoff))


def _time(micros: bytes) -> datetime:
    return EPOCH + timedelta(microseconds=int(micros))


def _lease(row: Sequence[Any], until: datetime) -> Lease:
    id, type, queue, payload, attempts, max_retries, token, timeout, lease_id, _ = row
    return Lease(id, type, queue, payload, attempts, max_retries, token, timeout, lease_id, until)


def _saved(before: Job, after: Job) -> tuple[Any, ...]:
    return (after.id, *_moved_values(after), *_guard_values(before))
