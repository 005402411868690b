"""Run statements in the transaction that is open on a caller's connection.

`borrow(connection, url)` returns a `Borrowed`. What is to be done there is a function that yields
an `Ask` for each statement, so that synchronous and asynchronous connections share it:

    def count(engine: str) -> Steps[int]:
        ((jobs,),) = yield Ask("SELECT count(*) FROM {s}job")
        return jobs

    borrowed.call(count, verb="count")  # or: await borrowed.call_async(count, verb="count")

Errors of the driver reach the caller unchanged, because the caller's own code for retries knows
them. Only a schema that is missing or too old is a SchemaMismatch.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from msgspec import Struct

from tenure.errors import InvalidInput, SchemaMismatch
from tenure.store import migrate
from tenure.store.borrowed import drivers
from tenure.store.postgres.address import split_schema
from tenure.store.sqlite.connection import begin_writing, connect, path_of, resets_wal_unsafely
from tenure.values.redaction import without_password

log = logging.getLogger(__name__)

# --- SQLite files ---------------------------------------------------------------------------------

OTHER_FILE = (
    "the main file of this connection is {main}, and the jobs are in {jobs}. A commit to two files "
    "is not one commit: after a crash, one file can have it and the other not. Keep your tables in "
    "the file of the jobs, where all names of Tenure begin with tenure_. Or write a row that says "
    "what to do, commit, and then enqueue a job with an idempotency_key that names the row"
)
MAY_LOSE = (
    "a connection to %s on which jobs are added has synchronous below FULL: a power cut can lose "
    "the last jobs, together with your own rows. Set `PRAGMA synchronous = FULL` on it, or use "
    "tenure.sqlite.connect()"
)
CHECKPOINTS = (
    "a connection to %s on which jobs are added has automatic checkpoints. With these, SQLite %s "
    "can lose a commit of another process: set `PRAGMA wal_autocheckpoint = 0` on it, or use "
    "tenure.sqlite.connect(), or SQLite 3.51.3 or newer"
)
TEST_FOLDER = "tenure-test-"
"""The beginning of the names of folders in which `tenure.testing` makes databases."""
IN_A_TEST = (
    "these jobs are in a file that `tenure.testing` made. In your transaction they have to be in "
    "the database of your connection: give its URL to `testing.on`"
)
FULL = 2

MAIN = drivers.Ask("SELECT CAST(file AS BLOB) FROM pragma_database_list WHERE name = 'main'")
"""As bytes, since the caller's connection decides what becomes of a text."""

_warned: set[tuple[str, Path]] = set()
"""A warning about a file is logged once by each process."""


def is_of_a_test(path: Path | None) -> bool:
    """Whether `tenure.testing` made this file."""
    return path is not None and path.parent.name.startswith(TEST_FOLDER)


def check_file(path: Path) -> drivers.Steps[None]:
    """Raise InvalidInput unless the connection's main file is `path`; warn of its settings."""
    ((main,),) = yield MAIN
    if not (main and _is_same_file(path, main)):
        if is_of_a_test(path):
            raise InvalidInput(IN_A_TEST, path="connection")
        name = os.fsdecode(main) if main else "in memory"
        raise InvalidInput(OTHER_FILE.format(main=name, jobs=path), path="connection")
    if (MAY_LOSE, path) not in _warned:
        ((synchronous,),) = yield drivers.Ask("PRAGMA synchronous")
        if synchronous < FULL:
            _warned.add((MAY_LOSE, path))
            log.warning(MAY_LOSE, path)
    if (CHECKPOINTS, path) not in _warned and resets_wal_unsafely(sqlite3.sqlite_version_info):
        ((pages,),) = yield drivers.Ask("PRAGMA wal_autocheckpoint")
        if pages:
            _warned.add((CHECKPOINTS, path))
            log.warning(CHECKPOINTS, path, sqlite3.sqlite_version)


def _is_same_file(path: Path, other: bytes) -> bool:
    try:
        return path.samefile(os.fsdecode(other))
    except FileNotFoundError:
        return False


# --- connections for handlers ---------------------------------------------------------------------


class Lent(Struct):
    """A connection in a transaction of a test, which stands for the whole database."""

    connection: Any
    after_call: Callable[[], None] = lambda: None
    """Called after each use by `Borrowed.call`."""


LENT: dict[str, Lent] = {}
"""By the URL that stands for it."""


@contextmanager
def opened(url: str) -> Iterator[Any]:
    """Yield a connection in a transaction, which a clean end commits; an exception undoes it."""
    if url in LENT:
        with savepoint(LENT[url].connection):
            yield LENT[url].connection
        return
    if url.startswith("sqlite:"):
        with closing(connect(path_of(url))) as connection:
            begin_writing(connection)
            with connection:
                yield connection
        return
    import psycopg

    from tenure.store.postgres.connection import address_of

    with psycopg.connect(address_of(url).conninfo) as session:
        yield session


@contextmanager
def savepoint(connection: Any) -> Iterator[None]:
    """Keep what the block does if it ends cleanly, in the transaction of a lent connection."""
    connection.execute("SAVEPOINT tenure_opened")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK TO SAVEPOINT tenure_opened")
        connection.execute("RELEASE SAVEPOINT tenure_opened")
        raise
    connection.execute("RELEASE SAVEPOINT tenure_opened")


# --- connections of callers -----------------------------------------------------------------------

T = TypeVar("T")

Work: TypeAlias = Callable[[str], drivers.Steps[T]]
"""What is to be done, given the engine: `sqlite` or `postgres`."""

NO_TRANSACTION = (
    "this connection is in no transaction, so it would commit the job at once: begin one first, "
    "and commit it when your own rows are written"
)
IN_SAVEPOINT = (
    "this connection is inside a savepoint: complete the job at the level at which your rows are "
    "committed, or one could be kept without the other"
)
WORKFLOW = "workflow"
"""The verb of what is stored at the end of a block, so no call has its name with `_async`."""
IN_BLOCK = "write `with`, or call chain(...), group(...), batch(...)"
IN_ASYNC_BLOCK = "write `async with`, or await chain_async(...), group_async(...), batch_async(...)"
MISSING = {"3F000", "42P01", "42883"}
"""SQLSTATE: no such schema, table or function."""


def borrow(
    connection: Any, url: str, *, outermost: bool = False, together: bool = False
) -> Borrowed:
    """Return the connection for `call` or `call_async`; raises InvalidInput if it is of no kind
    that is known. `url` is that of the jobs. `outermost` refuses savepoints that can be seen.
    `together` lets a call be a transaction where there is none, if the driver can."""
    driver = drivers.driver_of(connection)
    if driver is None:
        known = ", ".join(sorted(drivers.DRIVERS))
        raise InvalidInput(
            f"no connection that can be used: {type(connection).__name__}; pass one of {known}",
            path="connection",
        )
    return Borrowed(driver, url, outermost, together)


class Borrowed:
    """A caller's connection. It is neither committed nor closed here."""

    def __init__(
        self, driver: drivers.Driver, url: str, outermost: bool = False, together: bool = False
    ) -> None:
        self._driver = driver
        self._url = url
        self._lent = LENT.get(url)
        self._outermost = outermost and self._lent is None
        self._together = together
        on_sqlite = url.startswith("sqlite:")
        in_file = on_sqlite and self._lent is None and not driver.is_checked
        self._engine = "sqlite" if on_sqlite else "postgres"
        self._path = path_of(url) if in_file else None
        self._prefix = "tenure_" if on_sqlite else f'"{split_schema(url)[0]}".'

    def call(self, work: Work[T], *, verb: str) -> T:
        """Do the work on the connection and return its result.

        `verb` is what the caller has called, for the error. Raises SchemaMismatch, and InvalidInput
        if the connection is asynchronous, in no transaction, or one of another database.
        """
        driver = self._driver
        if driver.is_async:
            right = IN_ASYNC_BLOCK if verb == WORKFLOW else f"await {verb}_async(...)"
            raise InvalidInput(f"asynchronous: {right}", path="connection")
        with driver.together() if self._together else nullcontext():
            driver.begin()
            try:
                self._run(work).send(None)  # to its end: this driver waits for nothing
            except StopIteration as end:
                result: T = end.value
        if self._lent is not None:
            self._lent.after_call()
        return result

    async def call_async(self, work: Work[T], *, verb: str) -> T:
        """Do the same on an asynchronous connection."""
        driver: Any = self._driver
        if not driver.is_async:
            right = IN_BLOCK if verb == WORKFLOW else f"call {verb}(...)"
            raise InvalidInput(f"not asynchronous: {right}", path="connection")
        if isinstance(driver, drivers.AlchemyAsync):
            connection = await driver.connected()
            answer: T = await connection.run_sync(partial(self._call_inside, work, verb))
            return answer
        return await self._run(work)

    async def _run(self, work: Work[T]) -> T:
        driver, asks, rows = self._driver, self._asks(work), None
        with self._errors():
            try:
                while True:
                    ask = asks.send(rows)  # type: ignore[arg-type]
                    try:
                        rows = driver.execute(self._spelled(ask), ask.value)
                        rows = await rows if driver.is_async else rows
                    except BaseException as error:
                        asks.throw(error)  # what is asked for ends with it
                        raise
            except StopIteration as end:
                result: T = end.value
                return result

    def _call_inside(self, work: Work[T], verb: str, connection: Any) -> T:
        return Borrowed(drivers.Alchemy(connection), self._url, self._outermost).call(
            work, verb=verb
        )

    def _asks(self, work: Work[T]) -> drivers.Steps[T]:
        """Check the connection, then do the work."""
        if self._driver.engine != self._engine:
            if is_of_a_test(self._path):
                raise InvalidInput(IN_A_TEST, path="connection")
            raise InvalidInput(
                f"a connection to {self._driver.engine}, and the jobs are in "
                f"{without_password(self._url)}",
                path="connection",
            )
        if self._driver.autocommits():
            raise InvalidInput(NO_TRANSACTION, path="connection")
        if self._outermost and self._driver.is_in_savepoint():
            raise InvalidInput(IN_SAVEPOINT, path="connection")
        if self._path is not None:
            yield from check_file(self._path)
        return (yield from work(self._engine))

    def _spelled(self, ask: drivers.Ask) -> str:
        return ask.statement.replace("{s}", self._prefix).replace("{p}", self._driver.mark)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if _is_missing(error):
                where = f"{without_password(self._url)}, on this connection"
                raise SchemaMismatch(
                    f"there is no schema of this version at {where}: run `tenure migrate`, which is"
                    " never done in your transaction"
                ) from error
            raise


def _is_missing(error: BaseException) -> bool:
    """Whether an error of a driver, perhaps inside another error, is about a missing schema."""
    found: BaseException | None = error
    while found is not None:
        state = getattr(found, "sqlstate", None) or getattr(found, "pgcode", None)
        if state is None and found.args and isinstance(found.args[0], dict):
            state = found.args[0].get("C")  # pg8000
        if state in MISSING or str(found).startswith("no such table: tenure_"):
            return True
        found = getattr(found, "orig", None) or found.__cause__
    return False


# --- the schema -----------------------------------------------------------------------------------

EXISTS = {
    "postgres": "SELECT 1 WHERE to_regclass('{s}schema_version') IS NOT NULL",
    "sqlite": "SELECT 1 FROM sqlite_schema WHERE name = 'tenure_schema'",
}
VERSION = {
    "postgres": "SELECT max(version) FROM {s}schema_version",
    "sqlite": "SELECT max(version) FROM tenure_schema",
}


def version(engine: str) -> drivers.Steps[int]:
    """Return the version of the schema; 0 where there is none."""
    if not (yield drivers.Ask(EXISTS[engine])):
        return 0
    ((found,),) = yield drivers.Ask(VERSION[engine])
    return int(found)


def upgrade(engine: str, url: str) -> drivers.Steps[tuple[int, int]]:
    """Create or upgrade the schema in the caller's transaction; return its versions before, after.

    Raises SchemaMismatch for a newer one.
    """
    if engine == "postgres":  # not imported before: it needs psycopg
        from tenure.store.postgres import schema as postgres_schema

        schema = split_schema(url)[0]
        yield drivers.Ask(postgres_schema.LOCK.replace("%s", f"'{schema}'"))
    before, newest = (yield from version(engine)), migrate.newest(engine)
    after = max(before, newest)
    migrate.check(after, newest, "the database")
    if engine == "postgres":
        yield drivers.Ask(postgres_schema.script(url, before, begin=False))
    else:
        from tenure.store.sqlite import schema as sqlite_schema

        for statement in sqlite_schema.statements(sqlite_schema.script(before, begin=False)):
            yield drivers.Ask(statement)
    return before, after
