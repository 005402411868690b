"""Connections of callers, of every kind that `Tenure.within` takes, behind one set of methods.

Asynchronous ones run on an event loop of their own, so that one test is for all kinds.
"""

from __future__ import annotations

import asyncio
import inspect
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import aiosqlite
import asyncpg
import pg8000.dbapi
import psycopg
import psycopg2
import psycopg2.extensions
import psycopg2.extras
import pytest
import sqlalchemy
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import tenure.sqlite
from tenure import JobContext, Tenure
from tenure.rules.jobs import Wake


class Lender:
    """A connection of one kind. `begin` comes before each transaction.

    Without a `runner`, every answer of an asynchronous kind is to be awaited.
    """

    def __init__(self, kind: Kind, runner: asyncio.Runner | None, connection: Any) -> None:
        self.kind = kind
        self._runner = runner
        self.connection = self._done(connection) if runner else connection

    def _done(self, answer: Any) -> Any:
        if self._runner is None:
            return _awaited(answer)
        return self._runner.run(_awaited(answer)) if inspect.isawaitable(answer) else answer

    def execute(self, statement: str) -> Any:
        named = sqlalchemy.text(statement) if "sqlalchemy" in self.kind.name else statement
        return self._done(self.connection.execute(named))

    def begin(self) -> Any:
        return self.execute(self.kind.begin) if self.kind.begin else self._done(None)

    def commit(self) -> Any:
        return self._end("commit")

    def rollback(self) -> Any:
        return self._end("rollback")

    def _end(self, verb: str) -> Any:
        if self.kind.begin:
            return self.execute(verb.upper())
        return self._done(getattr(self.connection, verb)())

    def call(
        self, app: Tenure, verb: str, *values: Any, wake: Wake = "later", **options: Any
    ) -> Any:
        """Call a verb of `app.within(...)`, in the form for this kind of connection."""
        within = app.within(self.connection, wake=wake)
        return self._done(getattr(within, verb + "_async" * self.kind.is_async)(*values, **options))

    def fenced(self, context: JobContext, verb: str, *values: Any) -> Any:
        """Call `complete` or `hold` of a context, in the form for this kind of connection."""
        act = getattr(context, verb + "_async" * self.kind.is_async)
        return self._done(act(self.connection, *values))

    def call_wrongly(self, app: Tenure, verb: str, *values: Any) -> Any:
        """Call the verb in the form for the other kind of connection."""
        within = app.within(self.connection)
        return self._done(getattr(within, verb + "_async" * (not self.kind.is_async))(*values))

    def close(self) -> Any:
        """Close the connection, and the pool that it is from."""
        if "pool" in self.kind.name:
            return self._done(self.connection._holder._pool.terminate())
        return self._done(self.connection.close())


class Kind:
    """How a kind of connection is made. With `begin`, it commits by itself if nobody begins."""

    def __init__(
        self,
        name: str,
        connect: Callable[[str], Any],
        *,
        begin: str = "",
        alone: Callable[[str], Any] | None = None,
    ) -> None:
        self.name = name
        self.connect = connect
        self.begin = begin
        self.alone = alone
        """Makes a connection that commits each statement by itself."""
        self.is_async = "async" in name or "aio" in name


async def _awaited(answer: Any) -> Any:
    return await answer if inspect.isawaitable(answer) else answer


def given(url: str) -> dict[str, Any]:
    """The parameters of a URL of PostgreSQL, for drivers that do not read URLs of libpq."""
    return dict(conninfo_to_dict(url))


def _pg8000(url: str, **_: Any) -> Any:
    at = given(url)
    where: dict[str, Any] = (
        {"unix_sock": f"{at['host']}/.s.PGSQL.{at.get('port', 5432)}"}
        if str(at["host"]).startswith("/")
        else {"host": at["host"], "port": int(at.get("port", 5432))}
    )
    return pg8000.dbapi.connect(
        at.get("user", ""), password=at.get("password"), database=at["dbname"], **where
    )


class _Executing(psycopg2.extensions.connection):
    """With `execute`, as connections of the other drivers have it."""

    def execute(self, statement: str) -> psycopg2.extensions.cursor:
        cursor = self.cursor()
        cursor.execute(statement)
        return cursor


def _psycopg2(url: str, *, autocommit: bool = False) -> Any:
    factory = psycopg2.extras.DictCursor  # rows that are no tuples
    made = psycopg2.connect(url, connection_factory=_Executing, cursor_factory=factory)
    made.autocommit = autocommit
    return made


async def _asyncpg(url: str) -> Any:
    at = given(url)
    at["database"] = at.pop("dbname")
    return await asyncpg.connect(**at)


async def _pooled_asyncpg(url: str) -> Any:
    at = given(url)
    at["database"] = at.pop("dbname")
    pool = await asyncpg.create_pool(min_size=1, max_size=1, **at)
    return await pool.acquire()


def _engine(driver: str, creator: Callable[[], Any], **more: Any) -> Any:
    return sqlalchemy.create_engine(driver, creator=creator, poolclass=sqlalchemy.NullPool, **more)


def _async_engine(driver: str, creator: Callable[[], Any], **more: Any) -> Any:
    return create_async_engine(driver, async_creator=creator, poolclass=sqlalchemy.NullPool, **more)


def _postgres_engine(driver: str, url: str, **more: Any) -> Any:
    connect = {"psycopg": psycopg.connect, "psycopg2": psycopg2.connect, "pg8000": _pg8000}
    return _engine(f"postgresql+{driver}://", partial(connect[driver], url), **more)


def _postgres_async_engine(driver: str, url: str, **more: Any) -> Any:
    connect = {"psycopg": psycopg.AsyncConnection.connect, "asyncpg": _asyncpg}
    return _async_engine(f"postgresql+{driver}://", partial(connect[driver], url), **more)


def path(url: str) -> str:
    return url.removeprefix("sqlite:///")


def _file_engine(url: str, **more: Any) -> Any:
    return sqlalchemy.create_engine(f"sqlite:///{path(url)}", poolclass=sqlalchemy.NullPool, **more)


def _async_file_engine(url: str, **more: Any) -> Any:
    return create_async_engine(
        f"sqlite+aiosqlite:///{path(url)}", poolclass=sqlalchemy.NullPool, **more
    )


AUTOCOMMIT = {"isolation_level": "AUTOCOMMIT"}

POSTGRES = [
    Kind("psycopg", psycopg.connect, alone=partial(psycopg.connect, autocommit=True)),
    Kind("psycopg autocommit", partial(psycopg.connect, autocommit=True), begin="BEGIN"),
    Kind(
        "psycopg async",
        psycopg.AsyncConnection.connect,
        alone=partial(psycopg.AsyncConnection.connect, autocommit=True),
    ),
    Kind("psycopg2", _psycopg2, alone=partial(_psycopg2, autocommit=True)),
    Kind("psycopg2 autocommit", partial(_psycopg2, autocommit=True), begin="BEGIN"),
    Kind("asyncpg", _asyncpg, begin="BEGIN", alone=_asyncpg),
    Kind("asyncpg from a pool", _pooled_asyncpg, begin="BEGIN", alone=_pooled_asyncpg),
    Kind(
        "sqlalchemy psycopg Session",
        lambda url: Session(_postgres_engine("psycopg", url)),
        alone=lambda url: Session(_postgres_engine("psycopg", url, **AUTOCOMMIT)),
    ),
    Kind(
        "sqlalchemy psycopg Connection",
        lambda url: _postgres_engine("psycopg", url).connect(),
        alone=lambda url: (
            _postgres_engine("psycopg", url).connect().execution_options(**AUTOCOMMIT)
        ),
    ),
    Kind(
        "sqlalchemy psycopg2 scoped_session",
        lambda url: scoped_session(sessionmaker(_postgres_engine("psycopg2", url))),
        alone=lambda url: Session(_postgres_engine("psycopg2", url, **AUTOCOMMIT)),
    ),
    Kind(
        "sqlalchemy pg8000 Session",
        lambda url: Session(_postgres_engine("pg8000", url)),
        alone=lambda url: Session(_postgres_engine("pg8000", url, **AUTOCOMMIT)),
    ),
    Kind(
        "sqlalchemy async psycopg Connection",
        lambda url: _started(_postgres_async_engine("psycopg", url)),
        alone=lambda url: _started(_postgres_async_engine("psycopg", url, **AUTOCOMMIT)),
    ),
    Kind(
        "sqlalchemy async asyncpg AsyncSession",
        lambda url: AsyncSession(_postgres_async_engine("asyncpg", url)),
        alone=lambda url: AsyncSession(_postgres_async_engine("asyncpg", url, **AUTOCOMMIT)),
    ),
    Kind(
        "sqlalchemy async asyncpg async_scoped_session",
        lambda url: async_scoped_session(
            async_sessionmaker(_postgres_async_engine("asyncpg", url)), lambda: None
        ),
    ),
]

SQLITE = [
    Kind(
        "sqlite3",
        lambda url: sqlite3.connect(path(url)),
        alone=lambda url: sqlite3.connect(path(url), isolation_level=None),
    ),
    Kind(
        "sqlite3 explicit",
        lambda url: sqlite3.connect(path(url), isolation_level=None),
        begin="BEGIN IMMEDIATE",
    ),
    Kind("tenure.sqlite", tenure.sqlite.connect),
    Kind(
        "aiosqlite",
        lambda url: aiosqlite.connect(path(url)),
        alone=lambda url: aiosqlite.connect(path(url), isolation_level=None),
    ),
    Kind(
        "sqlalchemy pysqlite Session",
        lambda url: Session(_file_engine(url)),
        alone=lambda url: Session(_file_engine(url, **AUTOCOMMIT)),
    ),
    Kind("sqlalchemy pysqlite Connection", lambda url: _file_engine(url).connect()),
    Kind(
        "sqlalchemy aiosqlite AsyncSession",
        lambda url: AsyncSession(_async_file_engine(url)),
        alone=lambda url: AsyncSession(_async_file_engine(url, **AUTOCOMMIT)),
    ),
]


async def _started(engine: Any) -> Any:
    return await engine.connect()


@contextmanager
def lent(kind: Kind, url: str, *, alone: bool = False) -> Iterator[Lender]:
    """A connection of a kind, closed at the end; if `alone`, one that commits by itself."""
    connect = kind.alone if alone else kind.connect
    assert connect is not None
    with asyncio.Runner() as runner:
        lender = Lender(kind, runner, connect(url))
        try:
            yield lender
        finally:
            lender.close()


@asynccontextmanager
async def lent_to_coroutine(kind: Kind, url: str) -> AsyncIterator[Lender]:
    """An asynchronous connection, on the event loop that runs, closed at the end."""
    lender = Lender(kind, None, await _awaited(kind.connect(url)))
    try:
        yield lender
    finally:
        await lender.close()


KINDS = [
    *(pytest.param(kind, id=kind.name) for kind in SQLITE),
    *(pytest.param(kind, id=kind.name, marks=pytest.mark.postgres) for kind in POSTGRES),
]
NAMES = {
    *("psycopg", "psycopg2", "asyncpg", "sqlite3", "aiosqlite"),
    *("sqlalchemy psycopg2 scoped_session", "sqlalchemy pg8000 Session"),
}
DRIVERS = [kind for kind in KINDS if kind.id in NAMES]
"""One kind for each library that sends what is asked."""
