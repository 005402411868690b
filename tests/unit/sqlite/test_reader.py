"""The connections that reading a SQLite file leaves behind."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tenure.errors import SchemaMismatch
from tenure.store import migrate_store, open_store
from tenure.store.sqlite.connection import _open as connections
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
        opened = [crowd.enter_context(reader.connected()) for _ in range(3 * MAX_IDLE)]
    assert sum(map(is_open, opened)) == MAX_IDLE
    with reader.connected() as late:
        reader.close()
    assert not any(map(is_open, [*opened, late]))


def test_a_reader_holds_two_megabytes_of_the_file(tmp_path: Path) -> None:
    """Eight held 64 MB each: a server of 100,000 jobs grew to 420 MB once pages were looked at."""
    path = tmp_path / "jobs.db"
    migrate_store(f"sqlite:///{path}")
    with closing(open_store(f"sqlite:///{path}")), closing(SqliteReader(path)) as reader:
        assert reader.rows("PRAGMA cache_size") == [(-2_000,)]
        reading = [one for one in connections if one.path == path]
        caches = {one.execute("PRAGMA cache_size").fetchone() for one in reading}
    assert caches == {(-2_000,)}


def test_the_connection_that_opens_a_store_reads_on(tmp_path: Path) -> None:
    """Each start made one more, which parses the whole schema."""
    url = f"sqlite:///{tmp_path}/jobs.db"
    migrate_store(url)
    before = len(connections)
    with closing(open_store(url)) as store:
        (opened,) = (one for one in connections if one.path == tmp_path / "jobs.db")
        assert store.read.queues() == []
        assert [one for one in connections if one.path == opened.path] == [opened]
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as database, database:
        database.execute("INSERT INTO tenure_schema (version, applied_at) VALUES (99, 0)")
    with pytest.raises(SchemaMismatch):
        open_store(url)
    assert len(connections) == before, "it was closed"
