"""The store on the connection of a test, in a transaction that is never committed.

What it writes is undone with that transaction. Everything happens on the thread of who asks.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from tenure.errors import InvalidInput, JobNotFound
from tenure.lifecycle import Job
from tenure.store import Store, migrate
from tenure.store.borrowed.connections import LENT, Lent
from tenure.store.borrowed.drivers import Psycopg, Sqlite3, driver_of
from tenure.store.commit import Committer
from tenure.store.database import Database
from tenure.store.postgres.address import DEFAULT_SCHEMA, split_schema
from tenure.store.reader import Reader
from tenure.store.waits import Doubt
from tenure.store.work import EnqueueWork, W

UNSETTLED = (
    "job {} is not settled, and no worker sees it while a test waits: call jobs.drain() or "
    "jobs.run()"
)

WHERE = "the database of this connection"
_numbers = itertools.count(1)


class LentStore(Store):
    """A store over one connection. Its `url` stands for the connection until it is closed."""

    def __init__(self, database: Database, reader: Reader, url: str, connection: Any) -> None:
        super().__init__([database], reader)
        self._committer = self._heart = CallingCommitter(database)
        self.url = url
        LENT[url] = self.lent = Lent(connection)

    def wait(self, job_id: str, doubt: Doubt | None = None) -> Future[Job]:
        future, job = Future[Job](), self.read.get(job_id)
        if job is None:
            raise JobNotFound(job_id)
        if job.finished_at is None:
            raise InvalidInput(UNSETTLED.format(job_id))
        future.set_result(job)
        return future

    def close(self) -> None:
        super().close()
        del LENT[self.url]


class CallingCommitter(Committer):
    """Commits on the threads of the callers, one at a time."""

    def __init__(self, database: Database) -> None:
        super().__init__([database], lambda: None)
        self._one_at_a_time = threading.RLock()

    def submit(self, work: W) -> W:
        with self._one_at_a_time:
            self.commit(self._databases[0], [work])
        return work

    def add(self, work: EnqueueWork) -> EnqueueWork:
        return self.submit(work)

    def wake(self) -> None:
        """Do nothing: no other process sees the jobs before the commit."""


def lent_store(connection: Any, url: Callable[[], str]) -> LentStore:
    """Return the store in the transaction that is open on a connection.

    `url` returns that of the jobs, whose schema counts on PostgreSQL. Raises InvalidInput for other
    connections, and SchemaMismatch.
    """
    driver = driver_of(connection)
    raw = None if driver is None or driver.is_async else driver_of(driver.raw())
    if not isinstance(raw, Psycopg | Sqlite3):
        raise InvalidInput(
            f"a value of type {type(connection).__name__} cannot be used: pass a Connection of "
            "psycopg or sqlite3, or one of SQLAlchemy or Django over these",
            path="connection",
        )
    connection = raw.connection
    stands_for = f"//lent/{next(_numbers)}"
    if isinstance(raw, Sqlite3):
        from tenure.store.sqlite import lent as sqlite

        file = sqlite.LentSqlite(connection)
        migrate.check(file.version(), migrate.newest("sqlite"), WHERE)
        writer, reads = sqlite.LentSqliteWriter(file), sqlite.LentSqliteReader(file)
        return LentStore(writer, reads, f"sqlite:{stands_for}", connection)
    from tenure.store.postgres import lent as postgres

    of_jobs = url()
    schema = DEFAULT_SCHEMA if of_jobs.startswith("sqlite:") else split_schema(of_jobs)[0]
    address = f"postgresql:{stands_for}?schema={schema}"
    session = postgres.LentPostgres(connection, address)
    migrate.check(session.version(), migrate.newest("postgres"), WHERE)
    return LentStore(
        postgres.LentPostgresWriter(session, address),
        postgres.LentPostgresReader(session),
        *(address, connection),
    )
