"""The connection that writes to a SQLite file, and its transactions."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from tenure.store.protocol import Trouble
from tenure.store.sqlite.connection import (
    NOW,
    Checkpoints,
    Files,
    begin_writing,
    connect_writer,
    to_time,
)
from tenure.store.sqlite.over_rows import OverRows


class SqliteSession:
    """A connection that connects when it is used."""

    def __init__(
        self, path: Path, connect: Callable[[Path], sqlite3.Connection] = connect_writer
    ) -> None:
        self._path = path
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._files: Files | None = None
        self._in_place = False  # the files were, when the last transaction began
        self._now: datetime | None = None
        self._checkpoints = Checkpoints(path)

    def begin(self) -> None:
        if self._connection is None:
            self._connection = self._connect(self._path)
        begin_writing(self._connection)
        self._in_place = False
        if self._files is None:
            self._files = Files(self._path)
        self._files.check()
        self._in_place = True
        self._now = None

    def commit(self) -> None:
        self._db.execute("COMMIT")

    def rollback(self) -> None:
        if self._connection is None:
            return
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            self.close()

    def savepoint(self) -> None:
        self._db.execute("SAVEPOINT tenure")

    def undo_to_savepoint(self) -> None:
        self._db.execute("ROLLBACK TO tenure")

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise sqlite3.OperationalError("not connected")
        return self._connection

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._db.execute(statement, values).fetchall()

    def changed(self, statement: str, values: Sequence[Any] = ()) -> int:
        return self._db.execute(statement, values).rowcount

    def _changed_each(
        self, statement: OverRows, rows: Sequence[tuple[Any, ...]], *values: Any
    ) -> list[bool]:
        """Execute a statement over all rows; return for each of them whether it changed something.

        All at once. Only if one changed nothing, that is undone and repeated row by row.
        """
        self._db.execute("SAVEPOINT tenure_each")
        if self._changed_by(statement, rows, *values) == len(rows):
            self._db.execute("RELEASE tenure_each")
            return [True] * len(rows)
        self._db.execute("ROLLBACK TO tenure_each")
        self._db.execute("RELEASE tenure_each")
        return [self._changed_by(statement, [row], *values) == 1 for row in rows]

    def _changed_by(
        self, statement: OverRows, rows: Sequence[tuple[Any, ...]], *values: Any
    ) -> int:
        """Execute a statement over all rows; return how many it changed."""
        return sum(
            self._db.execute(text, parameters).rowcount
            for text, parameters in statement.calls(rows, *values)
        )

    def now(self) -> datetime:
        """The clock, read once per transaction."""
        if self._now is None:
            self._now = to_time(self._db.execute(f"SELECT {NOW}").fetchone()[0])
        return self._now

    def trouble(self, error: Exception) -> Trouble:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without what SQLite adds in detail
        if code in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}:
            self._checkpoints.make_due()
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
            return Trouble.BUG
        return Trouble.UNAVAILABLE if isinstance(error, sqlite3.Error) else Trouble.BUG

    def announce(self) -> None:
        """Do nothing: other processes watch the file (`SqliteReader.watch`)."""

    def tidy(self) -> None:
        """Checkpoint where the library needs that, or where it may make room."""
        if self._connection is not None and self._in_place:
            self._checkpoints.run(self._connection)

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._checkpoints.close()
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
        self._files, self._in_place = None, False
