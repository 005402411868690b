"""The PostgreSQL store on the connection of a test, in a transaction that is never committed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from tenure.errors import InvalidInput
from tenure.lifecycle import Job
from tenure.rules.jobs import CheckedJob
from tenure.rules.reports import ClaimRequest, Lease, Report
from tenure.store.postgres.connection import ArrayDumper, BinaryArray, address_of
from tenure.store.postgres.reader import PostgresReader
from tenure.store.postgres.schema import version_of
from tenure.store.postgres.writer import Postgres
from tenure.store.reader import Reader

T = TypeVar("T")

IN_TRANSACTION = (TransactionStatus.INTRANS, TransactionStatus.INERROR)
ENDED = "the transaction of the test has ended: neither commit it nor roll it back in the block"


class LentPostgres:
    """A caller's connection without its cursor class and row factory."""

    def __init__(self, connection: psycopg.Connection[Any], url: str) -> None:
        self._connection = connection
        if connection.autocommit and not self.is_open:
            raise InvalidInput("this connection is in no transaction: begin one", path="connection")
        self.address = address_of(url)

    @property
    def is_open(self) -> bool:
        """Whether it is in a transaction."""
        return self._connection.info.transaction_status in IN_TRANSACTION

    def execute(
        self, statement: bytes, values: Any = None, *, binary: bool = False
    ) -> psycopg.Cursor[Any]:
        cursor = psycopg.Cursor(self._connection, row_factory=tuple_row)
        # The connection may be older than the import of what registers this for all.
        cursor.adapters.register_dumper(BinaryArray, ArrayDumper)
        return cursor.execute(statement, values, binary=binary, prepare=False)

    def version(self) -> int:
        """Return the version of the schema; 0 if there is none."""
        return version_of(self, self.address)  # type: ignore[arg-type]


class LentPostgresWriter(Postgres):
    """The writing side: its transactions are savepoints."""

    def __init__(self, connection: LentPostgres, url: str) -> None:
        super().__init__(url)
        self._lent = connection

    def begin(self, *, limits: bool = False) -> None:
        if not self._lent.is_open:
            raise psycopg.OperationalError(ENDED)
        self._run("SAVEPOINT tenure_write")
        self._now, self._marked = None, False

    def commit(self) -> None:
        self._run("RELEASE SAVEPOINT tenure_write")

    def rollback(self) -> None:
        if self._lent.is_open:
            self._run("ROLLBACK TO SAVEPOINT tenure_write; RELEASE SAVEPOINT tenure_write")

    def _run(
        self, statement: str, values: Any = None, *, binary: bool = False
    ) -> psycopg.Cursor[Any]:
        return self._lent.execute(self._address.sql(statement), values, binary=binary)

    def enqueue_alone(
        self, checked_jobs: Sequence[CheckedJob], *, whole: bool
    ) -> Mapping[str, Job]:
        return {}

    def exchange_alone(
        self, reports: Sequence[Report], claim: ClaimRequest | None
    ) -> tuple[set[str], list[Lease] | None, float | None] | None:
        self.begin()  # an error must leave the transaction as it was
        found = super().exchange_alone(reports, claim)
        self.commit()
        return found

    def read_alone(self, act: Callable[[Any], T]) -> T:
        self.begin()
        found = act(self)
        self.commit()
        return found

    def _commits_alone(self) -> bool:
        return True

    def announce(self) -> None:
        pass

    def close(self) -> None:
        pass


class LentPostgresReader(PostgresReader):
    """The reading side: it sees what is not committed."""

    def __init__(self, connection: LentPostgres) -> None:
        Reader.__init__(self)
        self._address = connection.address
        self._lent = connection

    def _ask(self, ask: Callable[[Any], T], seconds: float = 0.0) -> T:
        return ask(self._lent)

    def rows_by_index(self, statement: str, values: Any = ()) -> list[Any]:
        return self.rows(statement, values)

    def read_through(self, statement: str, read: Callable[[Iterable[Any]], T]) -> T:
        return read(self.rows(statement))

    def watch(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass
