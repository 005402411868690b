"""The reading side of the SQLite store, on separate connections."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tenure.errors import StoreUnavailable
from tenure.jobs.findings import Progress, no_note, no_progress
from tenure.jobs.queries import MAX_AHEAD, Query
from tenure.lifecycle import Job, Status
from tenure.store import audit, audit_query, dependency_audit
from tenure.store.constraints import quoted
from tenure.store.notify import Notify
from tenure.store.reader import Reader
from tenure.store.rows import job_of
from tenure.store.search import ENDED, Statement, between, filled, others
from tenure.store.sqlite import watch as sqlite_watch
from tenure.store.sqlite.connection import AWAY, connect, escaped, to_time
from tenure.store.sqlite.statements import DIALECT

T = TypeVar("T")

MAX_IDLE = 8
"""Connections that are kept for later reads: each may hold 64 MiB of the file in memory."""
TABLES = ("tenure_job", "tenure_transition")

# Lane by lane: in each the due jobs come first, so no other job is met.
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


GATHERED_BY = {Status.PENDING: "tenure_job_ready", Status.PROCESSING: "tenure_job_lease"}
"""The index of all jobs in a status, where they may be few."""


TAGGED = "tenure_tag AS tagged CROSS JOIN tenure_job AS job ON job.id = tagged.job_id"


class SqliteReader(Reader):
    """Read connections to one file."""

    dialect = DIALECT
    heads = sqlite_watch.HEADS
    ahead_sql = AHEAD
    sees_commits = True
    spares_writer = True  # there is one at a time
    questions = (*audit.QUERIES, *dependency_audit.ON_SQLITE)
    more_checks = ("tables and indexes",)

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False
        self._attention = sqlite_watch.Attention()

    @contextmanager
    def connected(self) -> Iterator[sqlite3.Connection]:
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

    def rows(self, statement: str, values: Any = ()) -> list[Any]:
        return self._ask(statement, values, list)

    def read_through(self, statement: str, read: Callable[[Iterable[Any]], T]) -> T:
        return self._ask(statement, (), read)

    def _ask(self, statement: str, values: Any, read: Callable[[Iterable[Any]], T]) -> T:
        try:
            with self.connected() as connection:
                try:
                    return read(connection.execute(statement, values))
                except sqlite3.OperationalError as error:
                    if not str(error).startswith("Could not decode"):
                        raise
                    connection.text_factory = escaped  # twice as slow: only where it is needed
                    return read(connection.execute(statement, values))
        except AWAY as error:
            why = str(error) or type(error).__name__
            raise StoreUnavailable(f"the database {self._path} did not answer: {why}") from error

    def some(self, query: Query) -> tuple[list[Job], bool]:
        if query.gather:  # the ids first: SQLite would sort the payloads with them
            ids = self.rows(*self.listing("id", query))
            found = (self.get(id) for (id,) in ids)
            return filled((job for job in found if job is not None), query.limit)
        statement, values = self.listing(self._job, query)
        return self._ask(
            statement,
            values,
            lambda rows: filled((job_of(row, to_time) for row in rows), query.limit),
        )

    @staticmethod
    def listing(what: str, query: Query) -> Statement:
        """Select `what` of the jobs of a query, in its order.

        The status is a literal: partial indexes need it. A plus keeps the planner from using an
        index: that of the ids where the jobs of a status are gathered and sorted, those of the
        status elsewhere.
        """
        parts, values = ["1"], list[Any]()

        def add(part: str, value: Any) -> None:
            if value is not None:
                parts.append(part)
                values.append(value)

        if query.status is not None:
            by_index = query.gather or (query.status in ENDED and not query.is_narrow)
            column = "status" if by_index else "+status"
            parts.append(f"{column} = {quoted(Status(query.status))}")
            if query.status in ENDED:  # SQLite knows a partial index only by its own condition
                parts.append(f"status IN ({quoted(*ENDED)})")
        if query.among:
            parts.append(f"status IN ({quoted(*query.among)})")
        for part, given in others(DIALECT, query):
            parts.append(part)
            values += given
        key = "+id" if query.gather else "id" if query.tag is None else "tagged.job_id"
        add("tagged.tag = ?", query.tag)
        add(f"{'+' if query.tag else ''}workflow = ?", query.workflow)
        after, before = between(query)
        # One bound on each side: SQLite searches by the first and only tests the second.
        down = query.through is not None and not query.oldest_first
        up = query.through is not None and query.oldest_first
        add(f"{key} >= ?" if down else f"{key} > ?", query.through if down else after)
        add(f"{key} <= ?" if up else f"{key} < ?", query.through if up else before)
        table = "tenure_job" if query.tag is None else TAGGED
        if query.gather:
            table = SqliteReader.gathered(Status(query.status or ""))
        order = f"{key} {'ASC' if query.oldest_first else 'DESC'}"
        where = " AND ".join(parts)
        limit = int(query.limit)
        return f"SELECT {what} FROM {table} WHERE {where} ORDER BY {order} LIMIT {limit}", values

    @staticmethod
    def gathered(status: Status) -> str:
        return f"tenure_job INDEXED BY {GATHERED_BY[status]}"

    def violations(
        self, limit: int, progress: Progress = no_progress, seen: Callable[[str], object] = no_note
    ) -> list[tuple[str, str, str]]:
        found = super().violations(limit, progress, seen)
        try:
            with closing(connect(self._path)) as connection:
                return found + _unsound(connection)[:limit]
        except AWAY as error:
            raise StoreUnavailable(f"the database {self._path} did not answer: {error}") from error

    def watch(self, notify: Notify, stop: threading.Event) -> None:
        wal = self._path.with_name(self._path.name + "-wal")
        self.hears = True
        sqlite_watch.watch(lambda: connect(self._path), wal, notify, stop, self._attention)
        self.hears = False

    def attend(self, needed: bool) -> None:
        self._attention.set(needed)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for connection in self._idle:
                connection.close()
            self._idle.clear()


def _unsound(connection: sqlite3.Connection) -> list[audit_query.Finding]:
    """What SQLite finds when it compares our tables with their indexes, page by page."""
    connection.execute("PRAGMA ignore_check_constraints = ON")  # the questions say more about rows
    return [
        (audit.SOUND, "", message)
        for table in TABLES
        for (message,) in connection.execute(f"PRAGMA integrity_check({table})")
        if message != "ok"
    ]
