"""The connections that reading a SQLite file leaves behind."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack
from pathlib import Path

from tenure.store import migrate_store
from tenure.store.sqlite.reader import MAX_IDLE, SqliteReader


def is_open(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("SELECT 1")
    except sqlite3.ProgrammingError:
        return False
    return True


def test_a_crowd_of_readers_leaves_few_connections_behind(tmp_path: Path) -> None:
    """Each holds part of the file in memory."""
    migrate_store(f"sqlite:///{tmp_path}/jobs.db")
    reader = SqliteReader(tmp_path / "jobs.db")
    with ExitStack() as crowd:
        opened = [crowd.enter_context(reader._connection()) for _ in range(3 * MAX_IDLE)]
    assert sum(map(is_open, opened)) == MAX_IDLE
    with reader._connection() as late:
        reader.close()
    assert not any(map(is_open, [*opened, late]))
