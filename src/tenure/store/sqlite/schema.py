"""The schema of the SQLite store: its version, and how it gets there."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tenure import failpoints
from tenure.errors import StoreUnavailable
from tenure.jobs.findings import Progress, no_progress
from tenure.store import migrate
from tenure.store.sqlite.connection import NOW, connect


def version_of(connection: sqlite3.Connection) -> int:
    """The schema's version; 0 for a database without Tenure's tables."""
    found = connection.execute(
        "SELECT 1 FROM sqlite_schema WHERE name = 'tenure_schema'"
    ).fetchone()
    if not found:
        return 0
    (version,) = connection.execute("SELECT max(version) FROM tenure_schema").fetchone()
    return int(version)


def found(path: Path) -> int:
    """The schema's version in a file, which is not made; 0 where there is none."""
    if not path.exists():
        return 0
    try:
        with closing(connect(path)) as connection:
            return version_of(connection)
    except sqlite3.Error as error:
        raise _unusable(path, error) from error


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

    Raises SchemaMismatch for a newer one, and StoreUnavailable.
    """
    try:
        return _upgrade(path, progress)
    except sqlite3.Error as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: sqlite3.Error) -> StoreUnavailable:
    return StoreUnavailable(f"the database {path} cannot be used: {error}")


def _upgrade(path: Path, progress: Progress) -> int:
    connection = connect(path)
    try:
        if version_of(connection) == migrate.newest("sqlite"):
            return migrate.newest("sqlite")
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = version_of(connection)
            generated = migrate.generated("IS NOT", NOW, "max", "OLD", "NEW")
            for number, script in migrate.pending("sqlite", version, str(path), progress):
                failpoints.hit("migrate.before_step")
                for statement in statements(script.format_map(generated)):
                    connection.execute(statement)
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS tenure_schema"
                    " (version INTEGER PRIMARY KEY, applied_at INTEGER NOT NULL) STRICT"
                )
                connection.execute(f"INSERT INTO tenure_schema VALUES (?, {NOW})", (number,))
                failpoints.hit("migrate.after_step")
            connection.execute("COMMIT")
            failpoints.hit("migrate.after_commit")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        return version_of(connection)
    finally:
        connection.close()
