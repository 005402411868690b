"""Checkpoints on SQLite libraries that can lose a commit made while another connection does one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenure import Tenure
from tenure.store import commit
from tenure.store.sqlite import connection as sqlite_connection
from tenure.store.sqlite.connection import Checkpoints, begin_writing, connect, connect_writer

WRITE = "INSERT INTO tenure_queue (name) VALUES (hex(randomblob(8)))"
BUSY = sqlite3.SQLITE_BUSY


@pytest.fixture
def writer(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlite3.Connection]:
    """A writing connection, on a library that needs the guard."""
    monkeypatch.setattr(sqlite_connection, "resets_wal_unsafely", lambda _: True)
    connection = connect_writer(path)
    yield connection
    connection.close()


def left_in_log(path: Path) -> int:
    """Pages in the log that are not in the database yet."""
    connection = connect(path)
    _, written, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    connection.close()
    return int(written - copied)


def commit_until_checkpoint(writer: sqlite3.Connection, checkpoints: Checkpoints) -> None:
    """As many commits as make one checkpoint due, each followed by a look."""
    for _ in range(sqlite_connection.CHECKPOINT_PAGES // sqlite_connection.PAGES_PER_COMMIT + 1):
        writer.execute(WRITE)
        checkpoints.run(writer)


def test_nobody_can_write_during_a_checkpoint(path: Path, writer: sqlite3.Connection) -> None:
    checkpoints = Checkpoints(path)
    intruder = connect(path)
    intruder.execute("PRAGMA busy_timeout = 0")
    attempts: list[int] = []

    def write_now(statement: str) -> None:
        if "wal_checkpoint" in statement:
            try:
                intruder.execute(WRITE)
            except sqlite3.OperationalError as error:
                attempts.append(error.sqlite_errorcode)
            else:
                attempts.append(0)

    commit_until_checkpoint(writer, checkpoints)  # opens its connection
    assert checkpoints._other is not None
    checkpoints._other.set_trace_callback(write_now)
    commit_until_checkpoint(writer, checkpoints)
    assert attempts == [BUSY]
    intruder.execute(WRITE)  # and then one can
    intruder.close()
    checkpoints.close()


@pytest.mark.scenario(46)
def test_a_reader_is_not_waited_for_and_the_log_is_reused_after_it(
    path: Path, writer: sqlite3.Connection
) -> None:
    checkpoints = Checkpoints(path)
    log = path.with_name(path.name + "-wal")
    reader = connect(path)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM tenure_queue").fetchone()
    commit_until_checkpoint(writer, checkpoints)
    commit_until_checkpoint(writer, checkpoints)
    assert left_in_log(path) > 0  # the reader still needs what is behind it
    reader.execute("COMMIT")
    commit_until_checkpoint(writer, checkpoints)
    grown = log.stat().st_size
    for _ in range(3):
        commit_until_checkpoint(writer, checkpoints)
    assert log.stat().st_size == grown
    reader.close()
    checkpoints.close()


def test_a_writer_waits_for_the_one_before_it_and_gives_up_in_time(
    path: Path, writer: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = connect_writer(path)
    begin_writing(other)
    monkeypatch.setattr(sqlite_connection, "BUSY_TIMEOUT_MS", 30)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        begin_writing(writer)
    monkeypatch.setattr(sqlite_connection, "BUSY_TIMEOUT_MS", 60_000)
    looks = iter((lambda: None, lambda: None, lambda: other.execute("COMMIT")))
    monkeypatch.setattr(sqlite_connection.time, "sleep", lambda _: next(looks)())
    begin_writing(writer)
    assert writer.in_transaction
    other.close()


@pytest.mark.scenario(46)
def test_jobs_go_through_beside_a_long_reader_and_the_log_shrinks_after_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_connection, "CHECKPOINT_PAGES", 60)
    monkeypatch.setattr(sqlite_connection, "LOG_BYTES", 400_000)
    monkeypatch.setattr(commit, "MAX_COMMITS", 3)
    monkeypatch.setattr(sqlite_connection, "resets_wal_unsafely", lambda _: True)
    log = path.with_name(path.name + "-wal")
    app = Tenure(f"sqlite:///{path}")
    app.enqueue("first")
    reader = connect(path)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM tenure_job").fetchone() == (1,)
    for _ in range(60):
        app.enqueue("beside")
    held = log.stat().st_size
    assert held > 400_000  # all of it is kept for the reader
    assert reader.execute("SELECT count(*) FROM tenure_job").fetchone() == (1,)

    reader.close()
    for _ in range(60):
        app.enqueue("after")

    assert log.stat().st_size < held
    assert log.stat().st_size <= 400_000
    assert app.verify() == []
    app.close()
