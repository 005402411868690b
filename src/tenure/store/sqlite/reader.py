"""What is read from the SQLite store, from any thread, on connections of its own."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from tenure.errors import InvalidInput, StoreUnavailable
from tenure.jobs.bulk_actions import Bulk
from tenure.jobs.ledger import EventFilter, LedgerEvent, LedgerPage, Transition
from tenure.jobs.progress import Progress, no_progress
from tenure.jobs.queries import MAX_AHEAD, Query
from tenure.jobs.states import QueueState, WorkerState
from tenure.jobs.webhook import Webhook
from tenure.lifecycle import Job
from tenure.store import audit
from tenure.store.rows import job_of, read_names
from tenure.store.sqlite import watch as sqlite_watch
from tenure.store.sqlite.connection import NOW, connect, to_millis, to_time
from tenure.store.sqlite.statements import JOB_COLUMNS, SELECT_JOB, counting, edge, listing, waiting
from tenure.store.tables import bulk as bulk_table
from tenure.store.tables import webhooks
from tenure.store.tables.bulk import bulk_of
from tenure.store.tables.stats import Measured
from tenure.store.tables.stats_sql import SQLITE as SQLITE_WORDS
from tenure.store.tables.tokens import SQLITE, token_of
from tenure.store.tables.webhooks import webhook_of
from tenure.tokens.scopes import AccessToken

MAX_IDLE = 8
"""Connections that are kept for later reads: each may hold 64 MiB of the file in memory."""
START = "0"
_is_position = re.compile(r"[0-9]{1,18}").fullmatch
TABLES = ("tenure_job", "tenure_transition")
LEDGER = "seq, job_id, at, source, target, event, attempt, token, actor, detail, lease_id"

# The end of a stretch first, then what lies in it: nothing is ever added behind a number that was
# read, so both see the same entries.
STRETCH = """
SELECT max(seq), count(*) FROM (
    SELECT seq FROM tenure_transition WHERE seq > ? ORDER BY seq LIMIT ?)
"""
TRANSITIONS = f"""
SELECT {", ".join(f"t.{column}" for column in LEDGER.split(", "))}, job.type, job.queue
FROM tenure_transition AS t CROSS JOIN tenure_job AS job ON job.id = t.job_id
WHERE t.seq > :after AND t.seq <= :until
    AND (:events IS NULL OR t.event IN (SELECT value FROM json_each(:events)))
    AND (:job IS NULL OR t.job_id = :job)
    AND (:types IS NULL OR job.type IN (SELECT value FROM json_each(:types)))
    AND (:queues IS NULL OR job.queue IN (SELECT value FROM json_each(:queues)))
ORDER BY t.seq
"""

LATE = """
SELECT count(*) FROM tenure_job
WHERE status = 'processing' AND lease_expires_at <= (SELECT at FROM tenure_now)
"""

LEDGER_END = "SELECT seq FROM tenure_transition ORDER BY seq DESC LIMIT 1 OFFSET ?"

# Lane by lane, for in each the jobs that are due come first: none is met that is not.
AHEAD = f"""
WITH RECURSIVE lane (priority) AS (
    SELECT min(priority) FROM tenure_job WHERE status = 'pending' AND queue = :queue
    UNION ALL
    SELECT (SELECT min(priority) FROM tenure_job
        WHERE status = 'pending' AND queue = :queue AND priority > lane.priority)
    FROM lane WHERE lane.priority < :priority
)
SELECT count(*) FROM (
    SELECT 1 FROM lane CROSS JOIN tenure_job AS job
    WHERE lane.priority < :priority AND job.status = 'pending' AND job.queue = :queue
        AND job.priority = lane.priority AND job.run_at <= (SELECT at FROM tenure_now)
    UNION ALL
    SELECT 1 FROM tenure_job AS job
    WHERE job.status = 'pending' AND job.queue = :queue AND job.priority = :priority
        AND (job.run_at, job.id) < (:run_at, :id)
    LIMIT {MAX_AHEAD + 1})
"""

# The head of each lane, a queue at a priority, is its oldest job: two searches in the index for
# each lane, however many jobs wait in it.
QUEUES = """
WITH RECURSIVE lane (row) AS (
    SELECT (SELECT rowid FROM tenure_job WHERE status = 'pending'
        ORDER BY queue, priority, run_at LIMIT 1)
    UNION ALL
    SELECT coalesce(
        (SELECT rowid FROM tenure_job
            WHERE status = 'pending' AND queue = last.queue AND priority > last.priority
            ORDER BY queue, priority, run_at LIMIT 1),
        (SELECT rowid FROM tenure_job WHERE status = 'pending' AND queue > last.queue
            ORDER BY queue, priority, run_at LIMIT 1))
    FROM lane CROSS JOIN tenure_job AS last ON last.rowid = lane.row
)
SELECT name, max(paused_at), max(max_pending), sum(pending), sum(processing), min(due_at) FROM (
    SELECT queue AS name, run_at AS due_at, NULL AS paused_at, NULL AS max_pending,
        0 AS pending, 0 AS processing
    FROM lane CROSS JOIN tenure_job AS head ON head.rowid = lane.row
    WHERE run_at <= (SELECT at FROM tenure_now)
    UNION ALL SELECT name, NULL, paused_at, max_pending, 0, 0 FROM tenure_queue
    UNION ALL SELECT queue, NULL, NULL, NULL, iif(status = 'pending', jobs, 0),
        iif(status = 'processing', jobs, 0)
    FROM ({counts}) WHERE status IN ('pending', 'processing')
) GROUP BY name ORDER BY name
"""

WORKERS = """
SELECT w.id, w.label, w.queues, w.types, w.seen_at, coalesce(held.leases, 0)
FROM tenure_worker AS w LEFT JOIN (
    SELECT worker, count(*) AS leases FROM tenure_job WHERE status = 'processing' GROUP BY worker
) AS held ON held.worker = w.id
WHERE w.seen_at > (SELECT at FROM tenure_now) - 600000 ORDER BY w.seen_at DESC
"""


class SqliteReader:
    """Read connections to one file; see `Reader`. Every method may raise StoreUnavailable."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False
        self.measured = Measured(SQLITE_WORDS, self._rows, self._rows)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = connect(self._path)
        try:
            yield connection
        finally:
            with self._lock:
                kept = not self._closed and len(self._idle) < MAX_IDLE
                if kept:
                    self._idle.append(connection)
            if not kept:
                connection.close()

    def _rows(self, statement: str, values: Any = ()) -> list[Any]:
        try:
            with self._connection() as connection:
                return connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise StoreUnavailable(f"the database {self._path} did not answer: {error}") from error

    def clock(self) -> datetime:
        return to_time(self._rows(f"SELECT {NOW}")[0][0])

    def get(self, job_id: str) -> Job | None:
        rows = self._rows(f"{SELECT_JOB} WHERE id = ?", (job_id,))
        return job_of(rows[0], to_time) if rows else None

    def find(self, query: Query) -> list[Job]:
        rows = self._rows(*listing(JOB_COLUMNS, query))
        return [job_of(row, to_time) for row in rows]

    def find_ids(self, query: Query) -> list[str]:
        return [id for (id,) in self._rows(*listing("id", query))]

    def count(self, query: Query) -> int:
        return int(self._rows(*counting(query))[0][0])

    def waiting(self, query: Query, most: int) -> int:
        return int(self._rows(*waiting(query, most))[0][0])

    def edge(self, query: Query, rows: int) -> str | None:
        found = self._rows(*edge(query, rows))
        return found[0][0] if found else None

    def history(self, job_id: str) -> list[Transition]:
        statement = f"SELECT {LEDGER} FROM tenure_transition WHERE job_id = ? ORDER BY seq"
        return [_transition(row) for row in self._rows(statement, (job_id,))]

    def ledger(self, after: str, limit: int) -> list[Transition]:
        statement = f"SELECT {LEDGER} FROM tenure_transition WHERE seq > ? ORDER BY seq LIMIT ?"
        return [_transition(row) for row in self._rows(statement, (_number(after), limit))]

    def transitions(self, after: str, limit: int, wanted: EventFilter) -> LedgerPage:
        start = _number(after)
        ((until, count),) = self._rows(STRETCH, (start, limit))
        if not count:
            return LedgerPage((), str(start), more=False)
        lists = {"types": wanted.types, "queues": wanted.queues, "events": wanted.events}
        values: dict[str, Any] = {"after": start, "until": until, "job": wanted.job_id}
        values |= {name: None if v is None else json.dumps(v) for name, v in lists.items()}
        told = [
            LedgerEvent(_transition(row[:-2]), *row[-2:]) for row in self._rows(TRANSITIONS, values)
        ]
        return LedgerPage(told, str(until), more=count == limit)

    def ledger_end(self, back: int = 0) -> str:
        rows = self._rows(LEDGER_END, (back,))
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
        return [token_of(row, to_time) for row in self._rows(SQLITE.read())]

    def webhooks(self) -> list[Webhook]:
        return [webhook_of(row, to_time) for row in self._rows(webhooks.SQLITE.read())]

    def webhook_target(self, name: str, id: str) -> tuple[str, str] | None:
        rows = self._rows(webhooks.SQLITE.target(), (name, id))
        return (rows[0][0], rows[0][1]) if rows else None

    def bulk(self, bulk_id: str) -> Bulk | None:
        statement = bulk_table.SQLITE.read("WHERE id = ?") + "1"
        rows = self._rows(statement, (bulk_id,))
        return bulk_of(rows[0], to_time) if rows else None

    def bulks(self, limit: int, *, unfinished: bool = False) -> list[Bulk]:
        where = "WHERE finished_at IS NULL" if unfinished else ""
        statement = bulk_table.SQLITE.read(where) + "?"
        return [bulk_of(row, to_time) for row in self._rows(statement, (limit,))]

    def ahead(self, job: Job) -> int:
        values = {
            "queue": job.queue,
            "priority": job.priority,
            "run_at": to_millis(job.run_at),
            "id": job.id,
        }
        return int(self._rows(AHEAD, values)[0][0])

    def violations(
        self, limit: int, progress: Progress = no_progress
    ) -> list[tuple[str, str, str]]:
        found: list[audit.Finding] = []
        try:
            with closing(connect(self._path)) as connection:
                for asked in audit.queries(progress, ["tables and indexes"]):
                    rows = connection.execute(asked.statement(SQLITE_WORDS))
                    found += audit.findings(asked, rows, found, limit)
                found += _unsound(connection)[:limit]
        except sqlite3.Error as error:
            raise StoreUnavailable(f"the database {self._path} did not answer: {error}") from error
        return found

    def watch(self, notify: Callable[[], None], stop: threading.Event) -> None:
        wal = self._path.with_name(self._path.name + "-wal")
        sqlite_watch.watch(lambda: connect(self._path), wal, notify, stop)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for connection in self._idle:
                connection.close()
            self._idle.clear()


def _unsound(connection: sqlite3.Connection) -> list[audit.Finding]:
    """What SQLite finds when it compares our tables with their indexes, page by page."""
    connection.execute("PRAGMA ignore_check_constraints = ON")  # the questions say more about rows
    return [
        (audit.SOUND, "", message)
        for table in TABLES
        for (message,) in connection.execute(f"PRAGMA integrity_check({table})")
        if message != "ok"
    ]


def _number(position: str) -> int:
    if not _is_position(position or START):
        raise InvalidInput(f"{position!r} is no position in this ledger", path="$.after")
    return int(position or START)


def _time(millis: int | None) -> datetime | None:
    return None if millis is None else to_time(millis)


def _transition(row: Any) -> Transition:
    position, job_id, at, *rest = row
    return Transition(str(position), job_id, to_time(at), *rest)
