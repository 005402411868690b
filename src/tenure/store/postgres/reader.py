"""What is read from the PostgreSQL store, from any thread, on connections of its own."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from tenure.errors import InvalidInput, StoreUnavailable
from tenure.jobs.bulk_actions import Bulk
from tenure.jobs.ledger import EventFilter, LedgerEvent, LedgerPage, Transition
from tenure.jobs.progress import Progress, no_progress
from tenure.jobs.queries import MAX_AHEAD, Query
from tenure.jobs.states import QueueState, WorkerState
from tenure.jobs.webhook import Webhook
from tenure.lifecycle import Job
from tenure.store import audit
from tenure.store.postgres import listen as postgres_watch
from tenure.store.postgres.connection import CONNECTED, NOW, is_uuid, place_of, to_time
from tenure.store.postgres.statements import (
    JOB_COLUMNS,
    SELECT_JOB,
    counting,
    edge,
    listing,
    waiting,
)
from tenure.store.postgres.watchdog import ANSWER_SECONDS, answering
from tenure.store.rows import job_of, read_names
from tenure.store.tables import bulk as bulk_table
from tenure.store.tables import webhooks
from tenure.store.tables.bulk import bulk_of
from tenure.store.tables.stats import Measured
from tenure.store.tables.stats_sql import POSTGRES as POSTGRES_WORDS
from tenure.store.tables.tokens import POSTGRES, token_of
from tenure.store.tables.webhooks import webhook_of
from tenure.tokens.scopes import AccessToken

T = TypeVar("T")

MAX_CONNECTIONS = 4
WAIT_SECONDS = 5.0
RETRY_SECONDS = 1.0
"""How long the pool tries to connect by itself. Then it waits for somebody who wants to read: its
pauses between attempts grow to minutes, for which a database that is back would not be noticed."""
AUDIT_SECONDS = 3600.0
"""How long one pass of `tenure verify` may take, which reads everything there is."""

COLUMNS = """
t.xid || '.' || t.seq, t.job_id::text, t.at AT TIME ZONE 'UTC', t.source, t.target, t.event,
t.attempt, t.token, t.actor, t.detail, t.lease_id::text
"""
ENTRY = f"SELECT {COLUMNS} FROM {{s}}.transition AS t"
# Transactions commit in another order than they take their numbers. Below the oldest one that
# still runs everything has been decided, so the order (xid, seq) gains no more entries there.
SETTLED_XID = "t.xid < pg_snapshot_xmin(pg_current_snapshot())"
HISTORY = f"{ENTRY} WHERE t.job_id = %s::uuid ORDER BY t.seq"
LEDGER = f"""
{ENTRY} WHERE (t.xid, t.seq) > (%s::text::xid8, %s) AND {SETTLED_XID}
ORDER BY t.xid, t.seq LIMIT %s
"""
LEDGER_END = f"""
SELECT t.xid || '.' || t.seq FROM {{s}}.transition AS t WHERE {SETTLED_XID}
ORDER BY t.xid DESC, t.seq DESC LIMIT 1 OFFSET %s
"""
# The end of a stretch first, then what lies in it: nothing is ever added behind a position that was
# read, so both see the same entries. The limit tells the planner how few jobs it is to look up.
STRETCH = f"""
SELECT t.* FROM {{s}}.transition AS t
WHERE (t.xid, t.seq) > (%s::text::xid8, %s) AND {SETTLED_XID} ORDER BY t.xid, t.seq LIMIT %s
"""
STRETCH_END = f"""
SELECT xid::text, seq, count(*) OVER () FROM ({STRETCH}) AS t ORDER BY t.xid DESC, seq DESC LIMIT 1
"""
TRANSITIONS = f"""
SELECT {COLUMNS}, job.type, job.queue
FROM ({STRETCH}) AS t JOIN {{s}}.job ON job.id = t.job_id
WHERE (t.xid, t.seq) <= (%s::text::xid8, %s)
    AND (%s::text[] IS NULL OR t.event = ANY (%s::text[]))
    AND (%s::uuid IS NULL OR t.job_id = %s::uuid)
    AND (%s::text[] IS NULL OR job.type = ANY (%s::text[]))
    AND (%s::text[] IS NULL OR job.queue = ANY (%s::text[]))
ORDER BY t.xid, t.seq
"""
START = "0.0"
_is_position = re.compile(r"([0-9]{1,19})\.([0-9]{1,18})").fullmatch

LATE = f"""
SELECT count(*) FROM {{s}}.job WHERE status = 'processing' AND lease_expires_at <= {NOW}
"""

# Lane by lane, for in each the jobs that are due come first: none is met that is not.
AHEAD = f"""
WITH RECURSIVE lane AS (
    (SELECT priority FROM {{s}}.job WHERE status = 'pending' AND queue = %s
        ORDER BY priority LIMIT 1)
    UNION ALL
    SELECT next.priority FROM lane CROSS JOIN LATERAL (
        SELECT priority FROM {{s}}.job
        WHERE status = 'pending' AND queue = %s AND priority > lane.priority
        ORDER BY priority LIMIT 1) AS next
    WHERE lane.priority < %s
)
SELECT count(*) FROM (
    SELECT FROM lane CROSS JOIN LATERAL (
        SELECT FROM {{s}}.job
        WHERE status = 'pending' AND queue = %s AND priority = lane.priority AND run_at <= {NOW}
        ORDER BY run_at LIMIT {MAX_AHEAD + 1}) AS due
    WHERE lane.priority < %s
    UNION ALL
    (SELECT FROM {{s}}.job
        WHERE status = 'pending' AND queue = %s AND priority = %s
            AND (run_at, id) < (%s, %s::uuid)
        ORDER BY run_at LIMIT {MAX_AHEAD + 1})
    LIMIT {MAX_AHEAD + 1}) AS ahead
"""

# The head of each lane, a queue at a priority, is its oldest job: one search in the index for each
# each lane, however many jobs wait in it.
QUEUES = f"""
WITH RECURSIVE lane AS (
    (SELECT queue, priority, run_at FROM {{s}}.job WHERE status = 'pending'
        ORDER BY queue, priority, run_at LIMIT 1)
    UNION ALL
    SELECT next.* FROM lane CROSS JOIN LATERAL (
        SELECT queue, priority, run_at FROM {{s}}.job
        WHERE status = 'pending' AND (queue, priority) > (lane.queue, lane.priority)
        ORDER BY queue, priority, run_at LIMIT 1) AS next
)
SELECT name, max(paused_at) AT TIME ZONE 'UTC', max(max_pending), sum(pending)::bigint,
    sum(processing)::bigint, min(due_at) AT TIME ZONE 'UTC'
FROM (
    SELECT queue AS name, run_at AS due_at, NULL::timestamptz AS paused_at,
        NULL::bigint AS max_pending, 0 AS pending, 0 AS processing
    FROM lane WHERE run_at <= {NOW}
    UNION ALL SELECT name, NULL, paused_at, max_pending, 0, 0 FROM {{s}}.queue
    UNION ALL SELECT queue, NULL, NULL, NULL, CASE status WHEN 'pending' THEN jobs ELSE 0 END,
        CASE status WHEN 'processing' THEN jobs ELSE 0 END
    FROM ({{counts}}) AS counted WHERE status IN ('pending', 'processing')
) AS part GROUP BY name ORDER BY name
"""

WORKERS = f"""
SELECT w.id, w.label, w.queues, w.types, w.seen_at AT TIME ZONE 'UTC', coalesce(held.leases, 0)
FROM {{s}}.worker AS w LEFT JOIN (
    SELECT worker, count(*) AS leases FROM {{s}}.job WHERE status = 'processing' GROUP BY worker
) AS held ON held.worker = w.id
WHERE w.seen_at > {NOW} - interval '10 minutes' ORDER BY w.seen_at DESC
"""


BY_INDEX = """
SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off;
SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL jit = off
"""


class PostgresReader:
    """Read connections to one database; see `Reader`. Every method may raise StoreUnavailable."""

    def __init__(self, url: str) -> None:
        self._place = place_of(url)
        self._queries: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._pool: ConnectionPool | None = None
        self._closed = False
        self.measured = Measured(POSTGRES_WORDS, self._by_index, self._query)

    def _opened(self) -> ConnectionPool:
        with self._lock:
            if self._closed:
                raise StoreUnavailable("the store is closed")
            if self._pool is None:
                self._pool = ConnectionPool(
                    self._place.conninfo,
                    kwargs=CONNECTED,
                    min_size=0,
                    max_size=MAX_CONNECTIONS,
                    timeout=WAIT_SECONDS,
                    reconnect_timeout=RETRY_SECONDS,
                    num_workers=1,
                    name="tenure-read",
                    open=True,
                )
            return self._pool

    def reconnect(self) -> None:
        """Keep no session: those that are open may lead to a primary of before, which still reads.

        Such a server refuses writers, who connect anew then; readers it would tell old news.
        """
        with self._lock:
            if self._pool is not None:
                self._pool.drain()

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        query = self._queries.get(statement)
        if query is None:
            query = self._queries[statement] = self._place.sql(statement)
        return self._ask(lambda pool: _fetch(pool, query, values))

    def _query(self, statement: str, values: Sequence[Any]) -> list[Any]:
        return self._rows(statement, *values)

    def _by_index(self, statement: str, values: Sequence[Any]) -> list[Any]:
        """The same for what reads the end of the ledger, or jobs in the order of an index.

        How much that is the planner cannot know: it would read and sort the whole table.
        """
        query = self._place.sql(statement)

        def ask(pool: ConnectionPool) -> list[Any]:
            with (
                pool.connection() as connection,
                answering(connection, ANSWER_SECONDS),
                connection.transaction(),
            ):
                connection.execute(BY_INDEX)
                return connection.execute(query, values or None, binary=True).fetchall()

        return self._ask(ask)

    def _ask(self, ask: Callable[[ConnectionPool], T]) -> T:
        pool = self._opened()
        try:
            try:
                return ask(pool)
            except PoolTimeout:
                raise
            except psycopg.OperationalError:
                # A server that was restarted leaves dead connections behind, and a network that
                # forgot them such as do not answer at all: to try them would take as long again.
                pool.drain()
                return ask(pool)
        except psycopg.OperationalError as error:
            raise StoreUnavailable(f"the database did not answer: {error}") from error

    def clock(self) -> datetime:
        return to_time(self._rows(f"SELECT {NOW} AT TIME ZONE 'UTC'")[0][0])

    def get(self, job_id: str) -> Job | None:
        if not is_uuid(job_id):
            return None
        rows = self._rows(f"{SELECT_JOB} WHERE id = %s::uuid", job_id)
        return job_of(rows[0], to_time) if rows else None

    def find(self, query: Query) -> list[Job]:
        return [job_of(row, to_time) for row in self._by_index(*listing(JOB_COLUMNS, query))]

    def find_ids(self, query: Query) -> list[str]:
        return [id for (id,) in self._by_index(*listing("job.id::text", query))]

    def count(self, query: Query) -> int:
        return int(self._by_index(*counting(query))[0][0])

    def waiting(self, query: Query, most: int) -> int:
        return int(self._by_index(*waiting(query, most))[0][0])

    def edge(self, query: Query, rows: int) -> str | None:
        found = self._by_index(*edge(query, rows))
        return found[0][0] if found else None

    def history(self, job_id: str) -> list[Transition]:
        if not is_uuid(job_id):
            return []
        return [_transition(row) for row in self._rows(HISTORY, job_id)]

    def ledger(self, after: str, limit: int) -> list[Transition]:
        return [_transition(row) for row in self._rows(LEDGER, *_numbers(after), limit)]

    def transitions(self, after: str, limit: int, wanted: EventFilter) -> LedgerPage:
        start = _numbers(after)
        end = self._rows(STRETCH_END, *start, limit)
        if not end:
            return LedgerPage((), after or START, more=False)
        ((xid, seq, count),) = end
        lists = (wanted.types, wanted.queues, wanted.events)
        types, queues, events = (None if names is None else list(names) for names in lists)
        job = wanted.job_id
        pairs = (events, events, job, job, types, types, queues, queues)
        rows = self._rows(TRANSITIONS, *start, limit, xid, seq, *pairs)
        told = [LedgerEvent(_transition(row[:-2]), *row[-2:]) for row in rows]
        return LedgerPage(told, f"{xid}.{seq}", more=count == limit)

    def ledger_end(self, back: int = 0) -> str:
        rows = self._rows(LEDGER_END, back)
        return str(rows[0][0]) if rows else START

    def queues(self) -> list[QueueState]:
        found = self.measured.counted(QUEUES)
        return [
            QueueState(name, _time(paused), limit, pending, processing, _time(oldest))
            for name, paused, limit, pending, processing, oldest in found
        ]

    def late_leases(self) -> int:
        return int(self._rows(LATE)[0][0])

    def workers(self) -> list[WorkerState]:
        return [
            WorkerState(id, label, read_names(queues), read_names(types), to_time(seen), leases)
            for id, label, queues, types, seen, leases in self._rows(WORKERS)
        ]

    def tokens(self) -> list[AccessToken]:
        return [token_of(row, to_time) for row in self._rows(POSTGRES.read())]

    def webhooks(self) -> list[Webhook]:
        return [webhook_of(row, to_time) for row in self._rows(webhooks.POSTGRES.read())]

    def webhook_target(self, name: str, id: str) -> tuple[str, str] | None:
        rows = self._rows(webhooks.POSTGRES.target(), name, id)
        return (rows[0][0], rows[0][1]) if rows else None

    def bulk(self, bulk_id: str) -> Bulk | None:
        if not is_uuid(bulk_id):
            return None
        statement = bulk_table.POSTGRES.read("WHERE id = %s::uuid") + "1"
        rows = self._rows(statement, bulk_id)
        return bulk_of(rows[0], to_time) if rows else None

    def bulks(self, limit: int, *, unfinished: bool = False) -> list[Bulk]:
        where = "WHERE finished_at IS NULL" if unfinished else ""
        statement = bulk_table.POSTGRES.read(where) + "%s"
        return [bulk_of(row, to_time) for row in self._rows(statement, limit)]

    def ahead(self, job: Job) -> int:
        queue, priority = job.queue, job.priority
        lanes = (queue, queue, priority, queue, priority)
        return int(self._by_index(AHEAD, (*lanes, queue, priority, job.run_at, job.id))[0][0])

    def violations(
        self, limit: int, progress: Progress = no_progress
    ) -> list[tuple[str, str, str]]:
        found: list[audit.Finding] = []
        for asked in audit.queries(progress):
            found += self._ask(partial(self._audit, asked, tuple(found), limit))
        return found

    def _audit(
        self,
        asked: audit.AuditQuery,
        before: Sequence[audit.Finding],
        limit: int,
        pool: ConnectionPool,
    ) -> list[audit.Finding]:
        query = self._place.sql(asked.statement(POSTGRES_WORDS))
        with (
            pool.connection() as connection,
            answering(connection, AUDIT_SECONDS),
            connection.transaction(),
        ):
            # It may take minutes where there are many millions of jobs, whatever the role allows.
            connection.execute("SET LOCAL statement_timeout = 0; SET LOCAL work_mem = '64MB'")
            with connection.cursor() as cursor:
                return audit.findings(asked, cursor.stream(query), before, limit)

    def watch(self, notify: Callable[[], None], stop: threading.Event) -> None:
        postgres_watch.watch(self._place, notify, stop)

    def close(self) -> None:
        with self._lock:
            pool, self._pool, self._closed = self._pool, None, True
        if pool is not None:
            pool.close()


def _fetch(pool: ConnectionPool, query: bytes, values: tuple[Any, ...]) -> list[Any]:
    with pool.connection() as connection, answering(connection, ANSWER_SECONDS):
        return connection.execute(query, values or None, binary=True).fetchall()


def _numbers(position: str) -> tuple[str, int]:
    found = _is_position(position or START)
    if found is None:
        raise InvalidInput(f"{position!r} is no position in this ledger", path="$.after")
    xid, seq = found.groups()
    return xid, int(seq)


def _time(stored: datetime | None) -> datetime | None:
    return None if stored is None else to_time(stored)


def _transition(row: Any) -> Transition:
    position, job_id, at, *rest = row
    return Transition(position, job_id, to_time(at), *rest)
