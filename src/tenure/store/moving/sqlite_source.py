"""An SQLite file that its jobs leave: `Source`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tenure.store.moving.rows import Change, Columns, Destination, Row
from tenure.store.moving.tables import ALONE, COPIED, FIXED, JOB, OF_JOBS, Table
from tenure.store.sqlite.connection import begin_writing, connect_writer

BEGIN = """
CREATE TABLE tenure_move (id TEXT NOT NULL, target TEXT NOT NULL, moved INTEGER NOT NULL) STRICT;
CREATE TABLE tenure_move_change (
    n INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, key TEXT NOT NULL) STRICT"""
NOTE = """
CREATE TRIGGER tenure_move_{event}_{table} AFTER {event} ON tenure_{table}
BEGIN INSERT INTO tenure_move_change (name, key) VALUES ('{name}', {key}); END"""
CLOSE = """
CREATE TRIGGER tenure_elsewhere_{event}_{table} BEFORE {event} ON tenure_{table}
BEGIN SELECT RAISE(ABORT, {message}); END"""
EVENTS = {"insert": "NEW", "update": "NEW", "delete": "OLD"}
UUID_PARTS = ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12))
"""Of a lease, which SQLite makes as a UUID without dashes: where they begin, and their lengths."""
NO_TABLE = ("move", "move_change")


class SqliteSource:
    """`Source` on SQLite."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = connect_writer(path)
        self._db.text_factory = str  # what is not UTF-8 is an error, and not copied changed
        self._columns: dict[str, list[str]] = {}

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._db.execute(statement, values).fetchall()

    def tables(self) -> list[str]:
        """Return the names of all tables, without what they begin with."""
        found = self._rows("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
        names = [n.removeprefix("tenure_") for (n,) in found if n.startswith("tenure_")]
        return [name for name in names if name not in NO_TABLE]

    def columns(self, table: str) -> list[str]:
        if table not in self._columns:
            found = self._rows("SELECT name FROM pragma_table_info(?)", (f"tenure_{table}",))
            self._columns[table] = [name for (name,) in found]
        return self._columns[table]

    def read(self, table: Table, columns: Columns, keys: str | None = None) -> Iterator[Row]:
        have = self.columns(table.name)
        if not have:
            return
        wanted = ", ".join(_canonical(table.name, c, t, have) for c, t in columns.items())
        statement = f"SELECT {wanted} FROM tenure_{table.name} AS t"
        if keys is not None:
            cells = ", ".join(
                f"{_native(f'value ->> {place}', columns[column])} AS k{place}"
                for place, column in enumerate(table.key)
            )
            same = " AND ".join(f't."{c}" = k{place}' for place, c in enumerate(table.key))
            statement = (
                f"SELECT {wanted} FROM (SELECT DISTINCT {cells} FROM json_each(?)) AS k"
                f" CROSS JOIN tenure_{table.name} AS t ON {same}"
            )
        yield from self._db.execute(statement, () if keys is None else (keys,))

    def count(self, table: Table) -> int:
        if not self.columns(table.name):
            return 0
        return int(self._rows(f"SELECT count(*) FROM tenure_{table.name}")[0][0])

    def state(self) -> Destination | None:
        if not self._has_state():
            return None
        found = self._rows("SELECT id, target, moved FROM tenure_move")
        return Destination(*found[0]) if found else None

    def _has_state(self) -> bool:
        return bool(self._rows("SELECT 1 FROM sqlite_schema WHERE name = 'tenure_move'"))

    def may_begin(self) -> bool:
        return True

    def begin(self, state: Destination, columns: Mapping[str, Columns]) -> None:
        self.forsake()  # what is left of one that was killed in here
        with self.closed():
            for statement in BEGIN.split(";"):
                self._db.execute(statement)
            for table in COPIED:
                if table.name == "transition" or not self.columns(table.name):
                    continue  # the ledger changes with its job only
                noted = JOB if table in OF_JOBS else table
                for event, row in EVENTS.items():
                    key = _key_of(table, columns[table.name], row)
                    parts = {"event": event, "table": table.name, "name": noted.name, "key": key}
                    self._db.execute(NOTE.format(**parts))
        with self.closed():
            self._db.execute("INSERT INTO tenure_move VALUES (?, ?, 0)", (state.id, state.target))
            for table in ALONE:
                key = _key_of(table, columns[table.name], f"tenure_{table.name}")
                self._db.execute(
                    "INSERT INTO tenure_move_change (name, key)"
                    f" SELECT '{table.name}', {key} FROM tenure_{table.name}"
                )

    def forsake(self) -> None:
        if self._has_state():
            with self.closed():
                self._end_notes()
                self._db.execute("DROP TABLE tenure_move")

    def _end_notes(self) -> None:
        for table in COPIED:
            for event in EVENTS:
                self._db.execute(f"DROP TRIGGER IF EXISTS tenure_move_{event}_{table.name}")
        self._db.execute("DROP TABLE tenure_move_change")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK")  # there is nothing to commit

    @contextmanager
    def closed(self) -> Iterator[None]:
        begin_writing(self._db)
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def hand_over(self, message: str) -> None:
        self._end_notes()
        self._db.execute("UPDATE tenure_move SET moved = 1")
        text = "'" + message.replace("'", "''") + "'"
        for table in self.tables():
            if table != "schema":
                for event in EVENTS:
                    self._db.execute(CLOSE.format(event=event, table=table, message=text))

    def job_ids(self, after: str, limit: int) -> list[str]:
        statement = "SELECT id FROM tenure_job WHERE id > ? ORDER BY id LIMIT ?"
        return [id for (id,) in self._rows(statement, (after, limit))]

    def changes(self, after: int, limit: int | None) -> list[Change]:
        statement = "SELECT n, name, key FROM tenure_move_change WHERE n > ? ORDER BY n LIMIT ?"
        return self._rows(statement, (after, -1 if limit is None else limit))

    def forget(self, numbers: Sequence[int]) -> None:
        if not self._db.in_transaction:
            with self.closed():
                self.forget(numbers)
            return
        statement = "DELETE FROM tenure_move_change WHERE n IN (SELECT value FROM json_each(?))"
        self._db.execute(statement, (json.dumps(list(numbers)),))

    def last_seq(self) -> int:
        found = self._rows("SELECT seq FROM sqlite_sequence WHERE name = 'tenure_transition'")
        return int(found[0][0]) if found else 0

    def measured(self) -> tuple[tuple[int, ...], int]:
        ((seq, millis),) = self._rows("SELECT seq, millis FROM tenure_measured")
        return (seq,), millis

    def seqs_after(self, place: tuple[int, ...]) -> list[int]:
        return [n for (n,) in self._rows("SELECT seq FROM tenure_transition WHERE seq > ?", place)]

    def webhooks(self) -> list[tuple[str, tuple[int, ...]]]:
        found = self._rows("SELECT name, position FROM tenure_webhook")
        return [(name, (int(place),)) for name, place in found]

    def size(self) -> int:
        files = (self._path, self._path.with_name(f"{self._path.name}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        self._db.close()


def _key_of(table: Table, columns: Columns, row: str) -> str:
    cells = (f'{row}."{c}"' + _times(columns[c], "*") for c in table.key)
    return f"json_array({', '.join(cells)})"


def _canonical(table: str, column: str, type: str, have: Sequence[str]) -> str:
    if (table, column) in FIXED:
        return FIXED[table, column]
    if column == "lease_id":
        return " || '-' || ".join(f"substr(t.lease_id, {at}, {long})" for at, long in UUID_PARTS)
    return f't."{column}"' + _times(type, "*") if column in have else "NULL"


def _native(text: str, type: str) -> str:
    return f"({text})" + _times(type, "/")


def _times(type: str, sign: str) -> str:
    """Times are stored in milliseconds."""
    return f" {sign} 1000" if type == "timestamptz" else ""
