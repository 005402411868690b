"""The SQLite store on the connection of a test, in a transaction that is never committed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from tenure.errors import InvalidInput
from tenure.lifecycle import Job
from tenure.rules.jobs import CheckedJob
from tenure.store.reader import Reader
from tenure.store.sqlite.connection import MEMORY
from tenure.store.sqlite.reader import SqliteReader
from tenure.store.sqlite.schema import version_of
from tenure.store.sqlite.writer import Sqlite
from tenure.values.findings import Progress, no_note, no_progress

ENDED = "the transaction of the test has ended: neither commit it nor roll it back in the block"


class LentSqlite:
    """A caller's connection without its row factory."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Begin a transaction if the connection would with the first change."""
        if not connection.in_transaction and connection.isolation_level is not None:
            connection.execute("BEGIN IMMEDIATE")
        if not connection.in_transaction:
            raise InvalidInput("this connection is in no transaction: begin one", path="connection")
        self._connection = connection

    def execute(self, statement: str, values: Any = ()) -> sqlite3.Cursor:
        cursor = sqlite3.Cursor(self._connection)
        cursor.row_factory = None
        return cursor.execute(statement, values)

    def executemany(self, statement: str, values: Any) -> sqlite3.Cursor:
        return sqlite3.Cursor(self._connection).executemany(statement, values)

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def version(self) -> int:
        """Return the version of the schema; 0 if there is none."""
        return version_of(cast(Any, self))


class LentSqliteWriter(Sqlite):
    """The writing side: its transactions are savepoints."""

    def __init__(self, connection: LentSqlite) -> None:
        super().__init__(MEMORY)
        self._connection = cast(Any, connection)

    def begin(self, *, limits: bool = False) -> None:
        if not self._db.in_transaction:
            raise sqlite3.OperationalError(ENDED)
        self._db.execute("SAVEPOINT tenure_write")
        self._now = None

    def commit(self) -> None:
        self._db.execute("RELEASE tenure_write")

    def rollback(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK TO tenure_write")
            self._db.execute("RELEASE tenure_write")

    def enqueue_alone(
        self, checked_jobs: Sequence[CheckedJob], *, whole: bool
    ) -> Mapping[str, Job]:
        return {}

    def tidy(self, others: int = 0) -> None:
        pass

    def close(self) -> None:
        pass


class LentSqliteReader(SqliteReader):
    """The reading side: it sees what is not committed."""

    sees_commits = False

    def __init__(self, connection: LentSqlite) -> None:
        super().__init__(MEMORY)
        self._lent = connection

    @contextmanager
    def connected(self) -> Iterator[sqlite3.Connection]:
        yield cast(Any, self._lent)

    def violations(
        self, limit: int, progress: Progress = no_progress, seen: Callable[[str], object] = no_note
    ) -> list[tuple[str, str, str]]:
        return Reader.violations(self, limit, progress, seen)  # without a look at the file

    def watch(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass
