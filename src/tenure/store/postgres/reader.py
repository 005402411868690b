"""The reading side of the PostgreSQL store, on separate connections."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from tenure.errors import StoreUnavailable
from tenure.jobs.findings import Progress, no_progress
from tenure.jobs.queries import MAX_AHEAD
from tenure.lifecycle import Job
from tenure.store import audit
from tenure.store.postgres import listen as postgres_watch
from tenure.store.postgres import search
from tenure.store.postgres.connection import CONNECTED, NOW, address_of
from tenure.store.postgres.statements import DIALECT
from tenure.store.postgres.watchdog import ANSWER_SECONDS, answering
from tenure.store.reader import Reader

T = TypeVar("T")

MAX_CONNECTIONS = 4
WAIT_SECONDS = 5.0
RETRY_SECONDS = 1.0
"""How long the pool tries to connect by itself. After that it waits for the next read: its
pauses between attempts grow to minutes, for which a database that is back would not be noticed."""
AUDIT_SECONDS = 3600.0
"""How long one query of `tenure verify` may take, which reads everything there is."""

# Lane by lane: in each the due jobs come first, so no other job is met.
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
# lane, however many jobs wait in it.
HEADS = """
WITH RECURSIVE head AS (
    (SELECT queue, priority, run_at FROM {s}.job WHERE status = 'pending'
        ORDER BY queue, priority, run_at LIMIT 1)
    UNION ALL
    SELECT next.* FROM head CROSS JOIN LATERAL (
        SELECT queue, priority, run_at FROM {s}.job
        WHERE status = 'pending' AND (queue, priority) > (head.queue, head.priority)
        ORDER BY queue, priority, run_at LIMIT 1) AS next
)
"""

BY_INDEX = """
SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off;
SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL jit = off
"""


class PostgresReader(Reader):
    """Read connections to one database."""

    dialect = DIALECT
    listing = staticmethod(search.listing)
    gathered = staticmethod(search.gathered)
    heads = HEADS

    def __init__(self, url: str) -> None:
        super().__init__()
        self._address = address_of(url)
        self._queries: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._pool: ConnectionPool | None = None
        self._closed = False

    def _opened(self) -> ConnectionPool:
        with self._lock:
            if self._closed:
                raise StoreUnavailable("the store is closed")
            if self._pool is None:
                self._pool = ConnectionPool(
                    self._address.conninfo,
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
        """Drop every session: an open one may lead to a former primary, which can still be read.

        Such a server refuses writers, who connect again. Readers would get old data from it.
        """
        with self._lock:
            if self._pool is not None:
                self._pool.drain()

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        query = self._queries.get(statement)
        if query is None:
            query = self._queries[statement] = self._address.sql(statement)
        return self._ask(lambda pool: _fetch(pool, query, values))

    def rows_by_index(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Execute what reads the end of the ledger, or jobs in the order of an index.

        The planner cannot know how little that is: it would read and sort the whole table.
        """
        query = self._address.sql(statement)

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

    def ahead(self, job: Job) -> int:
        queue, priority = job.queue, job.priority
        lanes = (queue, queue, priority, queue, priority)
        return int(self.rows_by_index(AHEAD, (*lanes, queue, priority, job.run_at, job.id))[0][0])

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
        query = self._address.sql(asked.statement(DIALECT))
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
        postgres_watch.watch(self._address, notify, stop)

    def close(self) -> None:
        with self._lock:
            pool, self._pool, self._closed = self._pool, None, True
        if pool is not None:
            pool.close()


def _fetch(pool: ConnectionPool, query: bytes, values: Sequence[Any]) -> list[Any]:
    with pool.connection() as connection, answering(connection, ANSWER_SECONDS):
        return connection.execute(query, values or None, binary=True).fetchall()
