"""How each kind of a caller's connection executes a statement, and the JSON of its values.

This imports no driver, because a caller with a connection has imported it. The driver is found by
the names of the classes of the connection, so subclasses work, too. A driver also says when its
connection is in a transaction.

Jobs and times are in JSON, as SQL reads and answers it on each engine. It has ASCII characters
only, so the encoding of a caller's connection does not matter.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from functools import cache
from itertools import chain
from typing import Any, NamedTuple, TypeAlias, TypeVar

from tenure.lifecycle import Job
from tenure.rules.jobs import CheckedJob
from tenure.store.rows import ADDED, COLUMNS, TIMED, UNIQUE, job_of, parts, write_policy
from tenure.store.sqlite.connection import to_millis
from tenure.store.sqlite.connection import to_time as of_millis

T = TypeVar("T")

Rows: TypeAlias = list[tuple[Any, ...]]


class Ask(NamedTuple):
    """One statement with at most one parameter, a text.

    `{s}` in it is what the names of all tables and functions begin with, `{p}` the parameter. It
    has no colon and no percent sign, which drivers would take for parameters.
    """

    statement: str
    value: str | None = None


Steps: TypeAlias = Generator[Ask, Rows, T]
"""Yields what is asked of a connection, and is sent the rows."""


class Driver:
    """One connection. A statement has at most one parameter, a text, and writes `mark` for it."""

    engine = "postgres"
    is_async = False
    is_checked = False
    """Whether others see to it that it is a connection to the jobs, and careful."""
    mark = "%s"

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def begin(self) -> None:
        """Get ready for `execute`: a session of SQLAlchemy begins its transaction here."""

    def autocommits(self) -> bool:
        """Whether each statement would be a separate transaction."""
        raise NotImplementedError

    def is_in_savepoint(self) -> bool:
        """Whether it is known that a savepoint is open."""
        return False

    def together(self) -> AbstractContextManager[object]:
        """Make one transaction of the statements of a call, where the driver's users expect it."""
        return nullcontext()

    def execute(self, statement: str, value: str | None) -> Any:
        """Return the rows; an awaitable of them if `is_async`."""
        raise NotImplementedError

    def raw(self) -> Any:
        """Return the connection below, of psycopg or sqlite3 for all that is known."""
        return self.connection


class Psycopg(Driver):
    """`psycopg.Connection`. Its own cursor class and row factory are not used."""

    def autocommits(self) -> bool:
        psycopg = sys.modules["psycopg"]
        idle = self.connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        return bool(self.connection.autocommit and idle)

    def execute(self, statement: str, value: str | None) -> Rows:
        psycopg = sys.modules["psycopg"]
        with psycopg.Cursor(self.connection, row_factory=psycopg.rows.tuple_row) as cursor:
            cursor.execute(statement, _values(value))
            return _rows(cursor.fetchall() if cursor.description else ())


class PsycopgAsync(Psycopg):
    """The same for `psycopg.AsyncConnection`."""

    is_async = True

    async def execute(self, statement: str, value: str | None) -> Rows:  # type: ignore[override]
        psycopg = sys.modules["psycopg"]
        kind = psycopg.AsyncCursor
        async with kind(self.connection, row_factory=psycopg.rows.tuple_row) as cursor:
            await cursor.execute(statement, _values(value))
            return _rows(await cursor.fetchall() if cursor.description else ())


class Psycopg2(Driver):
    """`psycopg2.extensions.connection`. Its own cursor factory is not used."""

    def autocommits(self) -> bool:
        idle = self.connection.get_transaction_status() == 0  # TRANSACTION_STATUS_IDLE
        return bool(self.connection.autocommit and idle)

    def execute(self, statement: str, value: str | None) -> Rows:
        factory = sys.modules["psycopg2"].extensions.cursor
        with self.connection.cursor(cursor_factory=factory) as cursor:
            cursor.execute(statement, _values(value) or None)
            return _rows(cursor.fetchall() if cursor.description else ())


class Asyncpg(Driver):
    """`asyncpg.Connection`, also as a pool lends it."""

    is_async = True
    mark = "$1"

    def autocommits(self) -> bool:
        return not self.connection.is_in_transaction()

    async def execute(self, statement: str, value: str | None) -> Rows:
        return _rows(await self.connection.fetch(statement, *_values(value)))


class Sqlite3(Driver):
    """`sqlite3.Connection`. Its row factory is not used."""

    engine = "sqlite"
    mark = "?"

    def autocommits(self) -> bool:
        return _autocommits(self.connection)

    def execute(self, statement: str, value: str | None) -> Rows:
        cursor = sqlite3.Cursor(self.connection)
        cursor.row_factory = None
        return _rows(cursor.execute(statement, _values(value)).fetchall())


class Aiosqlite(Sqlite3):
    """The same for `aiosqlite.Connection`."""

    is_async = True

    async def execute(self, statement: str, value: str | None) -> Rows:  # type: ignore[override]
        async with self.connection.execute(statement, _values(value)) as cursor:
            cursor.row_factory = None
            return _rows(await cursor.fetchall())


class Alchemy(Driver):
    """`Connection`, `Session` and `scoped_session` of SQLAlchemy.

    All goes through SQLAlchemy: it begins late, so the connection of the driver below it may be in
    no transaction yet.
    """

    mark = ":request"

    def begin(self) -> None:
        if hasattr(self.connection, "get_bind"):
            self.connection = self.connection.connection()
        name = self.connection.dialect.name
        self.engine = "postgres" if name == "postgresql" else name

    def autocommits(self) -> bool:
        pooled = self.connection.connection
        if self.engine == "sqlite":
            return _autocommits(pooled.driver_connection)
        return bool(pooled.dbapi_connection.autocommit)

    def is_in_savepoint(self) -> bool:
        return bool(self.connection.in_nested_transaction())

    def execute(self, statement: str, value: str | None) -> Rows:
        text = sys.modules["sqlalchemy"].text(statement)
        result = self.connection.execute(text, {} if value is None else {"request": value})
        return _rows(result if result.returns_rows else ())

    def raw(self) -> Any:
        self.begin()
        return self.connection.connection.driver_connection


class AlchemyAsync(Alchemy):
    """`AsyncConnection`, `AsyncSession` and `async_scoped_session` of SQLAlchemy.

    They execute synchronous code: `run_sync` calls it with the connection inside.
    """

    is_async = True

    async def connected(self) -> Any:
        """Return the `AsyncConnection`, in a transaction."""
        of_session = hasattr(self.connection, "get_bind")
        return await self.connection.connection() if of_session else self.connection


class Django(Driver):
    """`connections[alias]` of Django, which opens, logs and converts as for its own queries.

    Where it is in no transaction a call is one, as `save()` is. The database may be in memory.
    """

    is_checked = True

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        vendor = connection.vendor
        self.engine = "postgres" if vendor == "postgresql" else vendor

    def autocommits(self) -> bool:
        return bool(self.connection.get_autocommit())

    def is_in_savepoint(self) -> bool:
        """Whether it is in an `atomic()` that can be undone alone; those of a TestCase are not."""
        blocks = [block for block in self.connection.atomic_blocks if not block._from_testcase]
        return any(block.savepoint for block in blocks[1:])

    def together(self) -> AbstractContextManager[object]:
        if not self.autocommits():
            return nullcontext()
        atomic = sys.modules["django.db.transaction"].atomic
        transaction: AbstractContextManager[object] = atomic(using=self.connection.alias)
        return transaction

    def execute(self, statement: str, value: str | None) -> Rows:
        with self.connection.cursor() as cursor:
            cursor.execute(statement, _values(value) or None)
            return _rows(cursor.fetchall() if cursor.description else ())

    def raw(self) -> Any:
        self.connection.ensure_connection()
        return self.connection.connection


DRIVERS: Mapping[str, Callable[[Any], Driver]] = {
    "psycopg.Connection": Psycopg,
    "psycopg.AsyncConnection": PsycopgAsync,
    "psycopg2.connection": Psycopg2,
    "asyncpg.Connection": Asyncpg,
    "asyncpg.PoolConnectionProxy": Asyncpg,
    "sqlite3.Connection": Sqlite3,
    "aiosqlite.Connection": Aiosqlite,
    "sqlalchemy.Connection": Alchemy,
    "sqlalchemy.Session": Alchemy,
    "sqlalchemy.scoped_session": Alchemy,
    "sqlalchemy.AsyncConnection": AlchemyAsync,
    "sqlalchemy.AsyncSession": AlchemyAsync,
    "sqlalchemy.async_scoped_session": AlchemyAsync,
    "django.BaseDatabaseWrapper": Django,
    "django.ConnectionProxy": Django,
}
"""Library and class -> how its connections are used."""


def driver_of(connection: Any) -> Driver | None:
    """Return how a connection is used; None if its class is not known."""
    for cls in type(connection).__mro__:
        name = f"{cls.__module__.split('.')[0]}.{cls.__name__}"
        if name in DRIVERS:
            return DRIVERS[name](connection)
    return None


def _autocommits(connection: Any) -> bool:
    """Whether a connection of sqlite3 or aiosqlite is in no transaction and will begin none."""
    if connection.in_transaction:
        return False
    return connection.isolation_level is None or getattr(connection, "autocommit", None) is True


def _values(value: str | None) -> tuple[str, ...]:
    return () if value is None else (value,)


def _rows(rows: Any) -> Rows:
    return [tuple(row) for row in rows]


# --- JSON -----------------------------------------------------------------------------------------

_PAIRS = ", ".join(f"'{column}', {column}" for column in (*COLUMNS, "fingerprint"))
SQLITE_JOB = f"json_object({_PAIRS})"
"""A row of `tenure_job` as JSON."""
SQLITE_OBJECTS = "(SELECT value FROM json_each({p}) LIMIT -1) WHERE true"
"""The objects of a JSON list, of which many values are read: without LIMIT and WHERE, SQLite would
write an object as text again for each of them."""

SHARE = "FOR SHARE OF job"
SPELLING = {
    "postgres": {
        "{json}": "CAST(CAST({p} AS text) AS json)",
        "{id}": "CAST(CAST({p} AS text) AS uuid)",
        "{now}": "{s}clock()",
        "{utc}": "AT TIME ZONE 'UTC'",
        "{row}": "row_to_json(job)",
        "{object}": "json_build_object",
        "{array}": "json_build_array",
        "{list}": "json_agg",
        "{nested}": "",
        "{uuid}": "uuid",
        "{time}": "timestamptz",
        "{text}": "text",
        "{lock}": "FOR NO KEY UPDATE",
        "{share}": SHARE,
    },
    "sqlite": {
        "{json}": "{p}",
        "{id}": "{p}",
        "{now}": "(SELECT at FROM tenure_now)",
        "{utc}": "",
        "{row}": SQLITE_JOB,
        "{object}": "json_object",
        "{array}": "json_array",
        "{list}": "json_group_array",
        "{nested}": "json",
        "{uuid}": "text",
        "{time}": "integer",
        "{text}": "BLOB",
        "{lock}": "",
        "{share}": "",
    },
}
"""How each engine spells what is in braces in a statement for both.

`{json}` and `{id}` are the parameter, `{row}` is the row `job` as JSON, `{nested}` is around the
JSON of a subquery, and `{text}` is the type in which JSON is answered.
"""


@cache
def spelled(statement: str, engine: str) -> str:
    """Return a statement for both engines as one of them spells it."""
    for name, text in SPELLING[engine].items():
        statement = statement.replace(name, text)
    return statement


def ask(engine: str, statement: str, value: str | None = None) -> Ask:
    """Return the question that a statement for both engines is."""
    return Ask(spelled(statement, engine), value)


def job_in(engine: str, values: dict[str, Any]) -> Job:
    """Return the job of a row, given by column."""
    return job_of([values[name] for name in COLUMNS], of_millis if engine == "sqlite" else of_iso)


def time_in(engine: str, value: Any) -> datetime:
    return of_millis(value) if engine == "sqlite" else of_iso(value)


def of_iso(text: str) -> datetime:
    """Read a time of PostgreSQL."""
    return datetime.fromisoformat(text).astimezone(UTC)


def millis(value: Any) -> Any:
    """Return a value as SQLite stores it."""
    return to_millis(value) if isinstance(value, datetime) else value


def written(value: object) -> str:
    """Return JSON in ASCII."""
    return json.dumps(value, default=datetime.isoformat)


def sent(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of one statement after the other."""
    return parts(rows, lambda row: row.get("payload", ""))


SENT = (*ADDED, *chain.from_iterable(TIMED.items()), "traceparent")


def document(checked_job: CheckedJob) -> dict[str, Any]:
    """Return what is said of a job to add."""
    more = UNIQUE if checked_job.unique_key else ()
    return {
        **{name: getattr(checked_job, name) for name in (*SENT, *more)},
        "backoff": write_policy(checked_job.backoff),
    }
