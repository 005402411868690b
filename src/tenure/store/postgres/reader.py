"""The reading side of the PostgreSQL store, on separate connections.

For people it also reads which transactions use the tables of jobs, and which has a job locked.
"""

from __future__ import annotations

import atexit
import logging
import os
import selectors
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar
from weakref import WeakSet

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from tenure.errors import InvalidInput, StoreUnavailable
from tenure.lifecycle import Job, Status
from tenure.rules.explain import LockHolder
from tenure.rules.reports import MAX_BYTES
from tenure.rules.search import MAX_AHEAD, Query
from tenure.store import audit
from tenure.store.constraints import quoted
from tenure.store.database import check_moved
from tenure.store.notify import WORK, Notify
from tenure.store.postgres import connection as pg
from tenure.store.postgres.session import ANSWER_SECONDS, AWAY, answering
from tenure.store.postgres.statements import DIALECT
from tenure.store.reader import Reader
from tenure.store.rows import job_of
from tenure.store.search import ENDED, Statement, between, others

log = logging.getLogger(__name__)

# --- locks ----------------------------------------------------------------------------------------

BESIDE = ("slot", "line", "unique_key", "queue_limit")
"""Tables whose rows a report or a claim locks with those of jobs."""
# Who locks or changes a row has one of these locks of its table until the end. A prepared
# transaction belongs to no session, but to whom its number is locked for.
USERS = """
WITH used AS (
    SELECT DISTINCT pid, virtualtransaction FROM pg_locks
    WHERE relation IN ({tables}) AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND mode IN ('RowShareLock', 'RowExclusiveLock')
), party AS (
    SELECT virtualtransaction, pid, usename::text AS owner,
        coalesce(nullif(application_name, ''), backend_type, 'unknown') AS name,
        CASE WHEN wait_event_type = 'Lock' THEN 'waiting for a lock' ELSE state END AS state,
        xact_start AS since
    FROM used JOIN pg_stat_activity USING (pid)
    WHERE pid <> pg_backend_pid()
    UNION ALL
    SELECT virtualtransaction, NULL, two_phase.owner::text, gid, NULL, prepared
    FROM used JOIN pg_locks AS own USING (virtualtransaction)
        JOIN pg_prepared_xacts AS two_phase ON transaction = own.transactionid
    WHERE used.pid IS NULL AND own.pid IS NULL AND own.granted
)
"""
TABLE = "to_regclass('{{s}}.{}')".format
FOR_LONG = f"""
{USERS.replace("{tables}", ", ".join(map(TABLE, ("job", *BESIDE))))}
SELECT virtualtransaction, pid, owner, name, state, since AT TIME ZONE 'UTC', true
FROM party WHERE since IS NULL OR clock_timestamp() - since > %s * interval '1 second'
ORDER BY since, pid
"""
# A row has the number of the transaction that locks it, or that of a list if there are several. As
# the number does not say which, those lists are looked up that exist for this table. A savepoint
# has its own number, and who released it no longer has that locked: what shows is that it is in
# progress. The row has 32 bits of a number, which is no larger than the newest one.
OF_JOB = f"""
{USERS.replace("{tables}", TABLE("job"))}, taken AS (
    SELECT xmax FROM {{s}}.job WHERE id = %s::uuid AND xmax <> '0'
), locking (xid) AS (
    SELECT xmax FROM taken
    UNION ALL
    SELECT xid FROM taken JOIN pg_class ON oid = to_regclass('{{s}}.job')
        CROSS JOIN pg_get_multixact_members(
            CASE WHEN mxid_age(xmax) BETWEEN 1 AND mxid_age(relminmxid) THEN xmax END)
    WHERE mode <> 'keysh'
), newest (number) AS (
    SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint
), found AS (
    SELECT *, EXISTS (
        SELECT FROM pg_locks AS own JOIN locking ON transactionid = xid
        WHERE own.virtualtransaction = party.virtualtransaction AND mode = 'ExclusiveLock'
    ) AS is_sure
    FROM party WHERE since IS NULL OR clock_timestamp() - since > %s * interval '1 second'
)
SELECT virtualtransaction, pid, owner, name, state, since AT TIME ZONE 'UTC', is_sure
FROM found
WHERE is_sure OR NOT EXISTS (SELECT FROM found WHERE is_sure) AND EXISTS (
    SELECT FROM locking CROSS JOIN newest
    WHERE pg_xact_status(greatest(number - (number - xid::text::bigint & 4294967295), 1)
        ::text::xid8) = 'in progress')
ORDER BY since, pid
"""
# A row of another table that refers to the job, not committed yet, has it locked, too, in the mode
# of KEY SHARE: that keeps no worker from it. Only a list says so of a number, and else the try.
FREE = "SELECT FROM {s}.job WHERE id = %s::uuid FOR NO KEY UPDATE SKIP LOCKED"

SHORT_SECONDS = 1.0
"""A transaction that is younger may be one of Tenure's, which take the job or change it."""


def lock_holder(row: Sequence[Any]) -> LockHolder:
    """Return what a row of these statements says."""
    _, pid, user, name, state, since, is_sure = row
    return LockHolder(
        pid=pid,
        user=user or "unknown",
        name=name,
        state=state,
        since=since and pg.to_time(since),
        is_sure=is_sure,
    )


# --- the reader -----------------------------------------------------------------------------------

T = TypeVar("T")
Connection = psycopg.Connection[Any]

MAX_CONNECTIONS = 4
IDLE_SECONDS = 30.0
"""How long a connection stays open without use."""
WAIT_SECONDS = 5.0
SOON_SECONDS = 10.0
"""How long a statement may take that reads a few rows."""
RETRY_SECONDS = 1.0
"""How long the pool tries to connect in the background. After that it waits for the next read. Its
pauses between attempts grow to minutes; it would notice a database that is back only after one."""
WATCH_SECONDS = 0.1
"""How often it looks whether it should stop. Notifications arrive at once."""
RECONNECT_SECONDS = (0.5, 10.0)
PROBE_SECONDS = 30.0
"""How often it makes sure that the server still answers."""
AUDIT_SECONDS = 3600.0
"""How long one query of `tenure verify` may take, which reads everything there is."""
AT_LENGTH = """
SET LOCAL statement_timeout = 0; SET LOCAL work_mem = '64MB';
SELECT set_config(name, '0', true) FROM pg_settings WHERE name = 'transaction_timeout'
"""
"""It may take minutes where there are many millions of jobs, whatever the role allows."""

# Lane by lane: in each the due jobs come first, so no other job is met.
AHEAD = f"""
WITH RECURSIVE lane AS (
    (SELECT priority FROM {{s}}.ready WHERE queue = %(queue)s
        ORDER BY priority LIMIT 1)
    UNION ALL
    SELECT next.priority FROM lane CROSS JOIN LATERAL (
        SELECT priority FROM {{s}}.ready
        WHERE queue = %(queue)s AND priority > lane.priority
        ORDER BY priority LIMIT 1) AS next
    WHERE lane.priority < %(priority)s
)
SELECT count(*) FROM (
    SELECT FROM lane CROSS JOIN LATERAL (
        SELECT FROM {{s}}.ready
        WHERE queue = %(queue)s AND priority = lane.priority
            AND run_at <= {pg.NOW}
        ORDER BY run_at LIMIT {MAX_AHEAD + 1}) AS due
    WHERE lane.priority < %(priority)s
    UNION ALL
    (SELECT FROM {{s}}.ready
        WHERE queue = %(queue)s AND priority = %(priority)s
            AND (run_at, id) < (%(run_at)s, %(id)s::uuid)
        ORDER BY run_at LIMIT {MAX_AHEAD + 1})
    LIMIT {MAX_AHEAD + 1}) AS ahead
"""

# The head of each lane, a queue at a priority, is its oldest job: one search in the index for each
# lane, however many jobs wait in it.
HEADS = """
WITH RECURSIVE head AS (
    (SELECT queue, priority, run_at FROM {s}.ready WHERE true {only}
        ORDER BY queue, priority, run_at LIMIT 1)
    UNION ALL
    SELECT next.* FROM head CROSS JOIN LATERAL (
        SELECT queue, priority, run_at FROM {s}.ready
        WHERE (queue, priority) > (head.queue, head.priority) {only}
        ORDER BY queue, priority, run_at LIMIT 1) AS next
)
"""

BY_INDEX = """
SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off;
SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off;
SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL jit = off
"""


class PostgresReader(Reader):
    """Read connections to one database."""

    dialect = DIALECT
    heads = HEADS
    ahead_sql = AHEAD
    questions = (*audit.QUERIES, audit.PLACES, *audit.ON_POSTGRES)

    def __init__(self, url: str) -> None:
        super().__init__()
        self._address = pg.address_of(url)
        self._pool = ConnectionPool(
            self._address.conninfo,
            kwargs=pg.CONNECTED,
            configure=pg.forget_notifications,
            min_size=0,
            max_size=MAX_CONNECTIONS,
            timeout=WAIT_SECONDS,
            max_idle=IDLE_SECONDS,
            reconnect_timeout=RETRY_SECONDS,
            num_workers=1,
            name="tenure-read",
            open=False,
        )
        self._named_safely: WeakSet[Connection] = WeakSet()
        self._closed = False
        atexit.register(self._end, os.getpid())

    def reconnect(self) -> None:
        """Drop every session: an open one may lead to a former primary, which can still be read.

        Such a server refuses writers, who connect again. Readers would get old data from it.
        """
        self._pool.drain()

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._ask(lambda connection: self._fetch(connection, statement, values))

    def rows_soon(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._ask(lambda open: self._fetch(open, statement, values), SOON_SECONDS)

    def rows_by_index(self, statement: str, values: Any = ()) -> list[Any]:
        """Execute what reads the end of the ledger, or jobs in the order of an index.

        The planner cannot know how little that is: it would read and sort the whole table.
        """

        def ask(connection: Connection) -> list[Any]:
            with connection.transaction():
                connection.execute(BY_INDEX)
                return self._fetch(connection, statement, values)

        return self._ask(ask)

    def read_through(self, statement: str, read: Callable[[Iterable[Any]], T]) -> T:
        def ask(connection: Connection) -> T:
            with connection.transaction(), connection.cursor() as cursor:
                cursor.execute(AT_LENGTH)
                return read(cursor.stream(self._address.sql(statement)))

        return self._ask(ask, AUDIT_SECONDS)

    def _fetch(self, connection: Connection, statement: str, values: Any) -> list[Any]:
        query = self._address.sql(statement)
        return connection.execute(query, values or None, binary=True).fetchall()

    def _ask(self, ask: Callable[[Connection], T], seconds: float = ANSWER_SECONDS) -> T:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        try:
            self._pool.open()  # at the first read
            try:
                return self._ask_once(ask, seconds)
            except PoolTimeout:
                raise
            except psycopg.OperationalError:
                # A server that was restarted leaves dead connections behind, and a network that
                # forgot them such as do not answer at all: to try them would take as long again.
                self._pool.drain()
                return self._ask_once(ask, seconds)
        except AWAY as error:
            raise StoreUnavailable(f"the database did not answer: {error}") from error
        except psycopg.ProgrammingError as error:
            if error.sqlstate not in pg.NOT_IN_PLACE:
                raise
            raise StoreUnavailable(f"the database failed: {error}") from error

    def _ask_once(self, ask: Callable[[Connection], T], seconds: float) -> T:
        with self._pool.connection() as connection, answering(connection, seconds, self._address):
            if connection not in self._named_safely:  # here, not in the pool's thread: it may hang
                pg.name_safely(connection)
                self._named_safely.add(connection)
            return ask(connection)

    def check(self) -> None:
        moved = self.dialect.moved
        statement = f"SELECT {pg.HANGING}, current_setting('transaction_read_only'), {moved}"
        ((hanging, reads_only, moved),) = self.rows(statement, (pg.MAX_HANG_SECONDS,))
        check_moved(moved)
        if reads_only == "on":
            error = StoreUnavailable("the database can only be read, as that of a standby")
            error._known = str(error)
            raise error
        if hanging:
            raise StoreUnavailable("commits wait for a synchronous standby")

    def lock_holders(self, job_id: str) -> Sequence[LockHolder]:
        values = (job_id, SHORT_SECONDS)
        found = self.rows(OF_JOB, values)
        if found and self._is_free(job_id):
            return []
        return [lock_holder(row) for row in found]

    def _is_free(self, job_id: str) -> bool:
        try:
            return bool(self.rows(FREE, (job_id,)))
        except StoreUnavailable:  # a role that only reads, or a standby: it cannot be known
            return False

    def some(self, query: Query) -> tuple[list[Job], bool]:
        # The length of a text that is stored apart is known without reading it.
        size = "octet_length(payload) + coalesce(octet_length(result), 0)"
        listing, values = self.listing("job.*", query)
        statement = f"""
SELECT {self._job}, found FROM (
    SELECT *, sum({size}) OVER (ROWS UNBOUNDED PRECEDING) - ({size}) AS before,
        count(*) OVER () AS found
    FROM ({listing}) AS listed
) AS job WHERE before < {MAX_BYTES}
"""
        rows = self.rows_by_index(statement, values)
        jobs = [job_of(row, pg.to_time) for row in rows]
        return jobs, len(jobs) == query.limit or (bool(rows) and len(rows) < rows[0][-1])

    @staticmethod
    def listing(what: str, query: Query) -> Statement:
        """Select `what` of the jobs of a query, in its order.

        A subquery with a limit is a fence: what is inside decides on the index, whatever the
        planner thinks of the conditions outside. The status is a literal: partial indexes need it.
        """
        inside, outside, values = list[str](), list[str](), list[Any]()
        status = None if query.status is None else Status(query.status)
        table, id = "{s}.job", "job.id"

        def add(part: str, value: Any, parts: list[str]) -> None:
            if value is not None:
                parts.append(part)
                values.append(value)

        if query.gather:
            assert status is not None
            table = PostgresReader.gathered(status)
            if status is Status.PENDING:
                add("queue = %s", query.queue, inside)
        elif not query.is_narrow and status in ENDED:
            table, id = "{s}.ended AS place (ended_as, id) JOIN {s}.job USING (id)", "place.id"
            inside.append(f"place.ended_as = {quoted(status)}")
        elif status is not None:
            outside.append(f"status = {quoted(status)}")
        if query.tag is not None:
            table = "{s}.tag AS tagged JOIN {s}.job ON job.id = tagged.job_id"
            id = "tagged.job_id"
            add("tagged.tag = %s", query.tag, inside)
        else:
            add("job.workflow = %s::uuid", query.workflow, inside)
        after, before = between(query)
        along = outside if query.gather else inside
        add(f"{id} > %s::uuid", _uuid(after), along)
        add(f"{id} < %s::uuid", _uuid(before), along)
        add(f"{id} {'<=' if query.oldest_first else '>='} %s::uuid", _uuid(query.through), along)
        if query.tag is not None:  # the values are in the order of the statement: `outside` is last
            add("job.workflow = %s::uuid", query.workflow, outside)
        way = "ASC" if query.oldest_first else "DESC"
        if query.among:
            outside.append(f"job.status IN ({quoted(*query.among)})")
        for part, given in others(DIALECT, query):
            outside.append(part)
            values += given
        if query.gather:
            table = f"(SELECT * FROM {table}{_where(inside)} OFFSET 0) AS job"
        elif query.most is not None:
            some = f"SELECT job.* FROM {table}{_where(inside)} ORDER BY {id} {way}"
            table, id = f"({some} LIMIT {int(query.most)}) AS job", "job.id"
        else:
            outside = [*inside, *outside]
        where, limit = _where(outside), int(query.limit)
        return f"SELECT {what} FROM {table}{where} ORDER BY {id} {way} LIMIT {limit}", values

    @staticmethod
    def gathered(status: Status) -> str:
        if status is Status.PENDING:
            place = "USING (queue, priority, run_at, id)"
            return f"(SELECT job.* FROM {{s}}.ready JOIN {{s}}.job {place}) AS job"
        return DIALECT.processing

    def watch(self, notify: Notify, stop: threading.Event) -> None:
        """LISTEN to what other processes notify of. A hint: polling continues.

        A session that a pooler lends by transaction does not listen. It would still listen for its
        next clients, who would get the notifications. Database errors are logged and end nothing.
        """
        shortest, longest = RECONNECT_SECONDS
        pause = shortest
        while not stop.is_set():
            try:
                with pg.connect(self._address) as connection:
                    with answering(connection, ANSWER_SECONDS, self._address):
                        pooled = pg.pools_transactions(connection)
                    if pooled:
                        log.info("not listening for new work through a pooler, polling continues")
                        return
                    self._listen(connection)
                    pause = shortest
                    self.hears = True
                    notify(None)  # of what was missed before
                    self._listen_until(stop, connection, notify)
            except (psycopg.Error, OSError) as error:
                if self.hears:
                    self.hears = False
                    notify(WORK)  # a claim now shows whether the server has gone
                log.info("not listening for new work, polling continues: %s", error)
                stop.wait(pause)
                pause = min(2 * pause, longest)

    def _listen_until(self, stop: threading.Event, connection: Connection, notify: Notify) -> None:
        # Not `notifies` with a time limit, each round of which takes a millisecond.
        with selectors.DefaultSelector() as selector:
            selector.register(connection.fileno(), selectors.EVENT_READ)
            listened = time.monotonic()
            while not stop.is_set():
                if time.monotonic() - listened > PROBE_SECONDS:
                    self._listen(connection)  # harmless, and it must be answered
                    listened = time.monotonic()
                if selector.select(WATCH_SECONDS):
                    for heard in connection.notifies(timeout=0):
                        notify(heard.payload)  # a worker, whose job was cancelled, or nothing

    def _listen(self, connection: Connection) -> None:
        with answering(connection, ANSWER_SECONDS, self._address):
            connection.execute(self._address.sql("LISTEN {s}"))

    def close(self) -> None:
        self._closed = True
        atexit.unregister(self._end)
        self._pool.close()

    def _end(self, pid: int) -> None:
        """Close the pool of a program that ends without `close`, unless it is a fork's copy.

        Later, threads cannot be joined: from Python 3.13 on, the pool would wait 10 s for its own.
        """
        if os.getpid() == pid:
            self._pool.close()


def _where(parts: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(parts)}" if parts else ""


def _uuid(id: str | None) -> str | None:
    if id is not None and not pg.is_uuid(id):
        raise InvalidInput("not the id of a job", path="$.before")
    return id
