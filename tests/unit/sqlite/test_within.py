"""Jobs in the caller's transaction on SQLite: the file, and the settings of the connection."""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import tenure.sqlite
from tenure import InvalidInput, Tenure
from tenure.errors import SchemaMismatch
from tenure.store.borrowed import connections


@pytest.fixture
def path(app: Tenure) -> Path:
    return Path(app.database.removeprefix("sqlite:///"))


@pytest.fixture
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as connection:
        yield connection


def test_an_application_that_only_lends_connections_opens_none(app: Tenure, path: Path) -> None:
    other = Tenure(app.database)
    with closing(tenure.sqlite.connect(path)) as connection, connection:
        job = other.within(connection).enqueue("mail")
    assert other.core._opened is None
    assert app.get(job.id) == job


def test_only_the_file_of_the_jobs_itself_is_accepted(app: Tenure, tmp_path: Path) -> None:
    for name, wanted in ((":memory:", "in memory"), (str(tmp_path / "own.db"), "own.db")):
        with closing(sqlite3.connect(name)) as connection:
            connection.execute("ATTACH ? AS jobs", (app.database.removeprefix("sqlite:///"),))
            with pytest.raises(InvalidInput, match=wanted):
                app.within(connection).enqueue("mail")
    empty = tmp_path / "empty.db"
    with closing(sqlite3.connect(empty)) as connection:
        connection.execute("CREATE TABLE orders (number INTEGER)")
        with pytest.raises(SchemaMismatch, match="tenure migrate"):
            Tenure(f"sqlite:///{empty}").within(connection).enqueue("mail")
    assert app.count().jobs == 0


def test_factories_of_the_connection_are_left_alone(app: Tenure, path: Path) -> None:
    def as_dict(cursor: sqlite3.Cursor, row: Any) -> dict[str, Any]:
        return dict(zip((name for name, *_ in cursor.description), row, strict=True))

    for text, rows in ((bytes, sqlite3.Row), (str, as_dict)):
        with closing(sqlite3.connect(path)) as connection:
            connection.text_factory, connection.row_factory = text, rows
            job = app.within(connection).enqueue("mail", idempotency_key="k")
            assert app.within(connection).get(job.id) == job
            connection.commit()
            assert (connection.text_factory, connection.row_factory) == (text, rows)
    assert app.count().jobs == 1


def test_a_transaction_that_has_read_before_another_wrote_is_refused_by_sqlite(
    app: Tenure, path: Path
) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM tenure_job").fetchone()
        app.enqueue("mail")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            app.within(connection).enqueue("mail")
        connection.execute("ROLLBACK")
    assert app.count().jobs == 1


def test_settings_that_may_lose_jobs_are_warned_of_once(
    app: Tenure, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(tenure.sqlite.connect(path)) as careful, careful:
        app.within(careful).enqueue("mail")
    assert caplog.records == []
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = NORMAL")
        for _ in range(2):
            app.within(connection).enqueue("mail")
            connection.commit()
    texts = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [text for text in texts if "power cut" in text] == texts[:1]
    assert len(texts) == len(set(texts))
    assert all("tenure.sqlite.connect()" in text for text in texts)


def test_a_warning_named_a_way_that_sqlalchemy_does_not_have(
    app: Tenure, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy makes its connections itself: it can set what the warnings name."""
    monkeypatch.setattr(connections, "resets_wal_unsafely", lambda version: True)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = NORMAL")
        app.within(connection).enqueue("mail")
        connection.commit()
    named = re.findall("`(PRAGMA [a-z_]+ = [A-Z0-9]+)`", caplog.text)
    assert named == ["PRAGMA synchronous = FULL", "PRAGMA wal_autocheckpoint = 0"]
    connections._warned.clear()
    caplog.clear()
    with closing(sqlite3.connect(path)) as connection:
        for pragma in named:
            connection.execute(pragma)
        app.within(connection).enqueue("mail")
        connection.commit()
    assert caplog.records == []


def test_an_application_is_no_path() -> None:
    """Its text would be the name of a new file."""
    with pytest.raises(InvalidInput, match="not Tenure"):
        tenure.sqlite.connect(Tenure("sqlite:///never-opened.db"))  # type: ignore[arg-type]


def test_its_own_connection_waits_for_other_writers_and_begins_by_itself(path: Path) -> None:
    with closing(tenure.sqlite.connect(f"sqlite:///{path}")) as connection:
        connection.execute("CREATE TABLE orders (number INTEGER)")
        connection.execute("INSERT INTO orders VALUES (1)")
        assert connection.in_transaction
        connection.rollback()
        ((synchronous,),) = connection.execute("PRAGMA synchronous").fetchall()
        assert synchronous == 2
