"""The schema of the SQLite store: its version, and how it gets there."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tenure import failpoints
from tenure.errors import SchemaMismatch, StoreUnavailable
from tenure.lifecycle import TRANSITIONS, Rule
from tenure.store import migrate
from tenure.store.constraints import enforced, ledger_values, sqlite_values
from tenure.store.sqlite.connection import AWAY, NOW, READ_ONLY, connect, is_log_alone, to_millis
from tenure.values.durations import YEARS
from tenure.values.findings import Progress, no_progress


def version_of(connection: sqlite3.Connection) -> int:
    """The schema's version; 0 for a database without Tenure's tables."""
    exists = "SELECT 1 FROM sqlite_schema WHERE name = 'tenure_schema'"
    if not connection.execute(exists).fetchone():
        return 0
    (version,) = connection.execute("SELECT max(version) FROM tenure_schema").fetchone()
    return int(version)


def found(path: Path, read: AbstractContextManager[sqlite3.Connection] | None = None) -> int:
    """The schema's version in a file, which is not made; 0 where there is none.

    `read` gives the connection that reads it; without it, one is opened for that alone.
    """
    if not path.exists() and not is_log_alone(os.path.realpath(path)):
        return 0
    with _connected(path, read) as connection:
        return version_of(connection)


def statements(script: str) -> Iterator[str]:
    """The single statements of a script (a trigger is one statement)."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def upgrade(path: Path, progress: Progress = no_progress) -> int:
    """Create or upgrade the schema, under the database's write lock; the version it now has.

    Raises SchemaMismatch for a newer one or an encoding but UTF-8, and StoreUnavailable.
    """
    with _connected(path) as connection:
        if version_of(connection) < migrate.newest("sqlite"):
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                for step in _steps(version_of(connection), progress):
                    for statement in statements(step):
                        connection.execute(statement)
            failpoints.hit("migrate.after_commit")
        version = version_of(connection)
    migrate.check(version, migrate.newest("sqlite"), str(path))
    return version


def script(version: int, *, begin: bool = True) -> str:
    """Return the SQL that `upgrade` would run on such a schema: for the program sqlite3, or
    without `begin` for a transaction that is open."""
    steps = "\n".join(_steps(version))
    return f"BEGIN IMMEDIATE;\n{steps}COMMIT;\n" if begin else steps


def _steps(version: int, progress: Progress = no_progress) -> Iterator[str]:
    """Yield the SQL of each step after `version`, which also notes its number."""
    generated = {
        **migrate.generated("IS NOT", NOW, "max", "OLD", "NEW", enforced(sqlite_values())),
        **sqlite_values(),
        **migrate.SPELLED["sqlite"],
        "moved_values": _entry(rule for rule in TRANSITIONS if rule.source is not rule.target),
        "amended_values": _entry(rule for rule in TRANSITIONS if rule.source is rule.target),
        "buckets": migrate.buckets("INTEGER"),
        "surrogates": ", ".join(f"(x'ed{byte:02x}')" for byte in range(0xA0, 0xC0)),
        "first_time": str(to_millis(datetime(YEARS.start, 1, 1, tzinfo=UTC))),
        "last_time": str(to_millis(datetime(YEARS.stop, 1, 1, tzinfo=UTC)) - 1),
    }
    for number, step in migrate.pending("sqlite", version, progress):
        yield step.format_map(generated)
        yield f"INSERT INTO tenure_schema (version, applied_at) VALUES ({number}, {NOW});\n"


def _entry(rules: Iterable[Rule]) -> str:
    """Return the values of the ledger entry of a transition that is one of `rules`."""
    return ",\n        ".join(ledger_values("OLD", "NEW", NOW, "max", rules=[*rules]).values())


def _check_encoding(connection: sqlite3.Connection, path: Path) -> None:
    """Raise SchemaMismatch for a file whose texts have other bytes, which limits of sizes count."""
    (encoding,) = connection.execute("PRAGMA encoding").fetchone()
    if encoding != "UTF-8":
        raise SchemaMismatch(
            f"the database {path} has the encoding {encoding}; use another file for the jobs, or"
            " make one with PRAGMA encoding = 'UTF-8'"
        )


@contextmanager
def _connected(
    path: Path, connected: AbstractContextManager[sqlite3.Connection] | None = None
) -> Iterator[sqlite3.Connection]:
    try:
        with connected or closing(connect(path)) as connection:
            _check_encoding(connection, path)
            yield connection
    except AWAY as error:
        said = f"the database {path} cannot be used: {error}"
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_READONLY:
            said += f": {READ_ONLY}"
        if code == sqlite3.SQLITE_CANTOPEN:
            said += (
                "; its folder must exist, this user must be able to write there and to the files"
                " -wal and -shm beside it, and the path must have less than 500 bytes"
            )
        raise StoreUnavailable(said) from error
