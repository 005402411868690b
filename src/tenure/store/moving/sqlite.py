"""An SQLite file that its jobs leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tenure.store.moving.sides import EVENTS, Row, Source
from tenure.store.moving.tables import Table
from tenure.store.sqlite.connection import begin_writing, connect_writer, usable_path_of
from tenure.store.sqlite.statements import DIALECT

NOTE = """
CREATE TRIGGER tenure_move_{event}_{table} AFTER {event} ON tenure_{table}
BEGIN INSERT INTO tenure_move_change (name, key) VALUES ('{name}', json_array({key})); END"""
CLOSE = """
CREATE TRIGGER tenure_elsewhere_{event}_{table} BEFORE {event} ON tenure_{table}
BEGIN SELECT RAISE(ABORT, {message}); END"""


class SqliteSource(Source):
    """`Source` on SQLite."""

    d = DIALECT
    catalog = (
        "SELECT t.name, c.name, c.type FROM sqlite_schema AS t, pragma_table_info(t.name) AS c"
        " WHERE t.type = 'table' AND t.name GLOB 'tenure_*' ORDER BY 1"
    )
    joined = " CROSS JOIN {table} AS t ON {same}"
    number = "INTEGER PRIMARY KEY"
    may_begin = "SELECT true"
    size = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
    last_seq = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'tenure_transition'"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        path = usable_path_of(url)
        self.name = f"sqlite:///{path}"  # also for a program in another folder
        self._db = connect_writer(path)
        self._db.text_factory = str  # what is not UTF-8 is an error, and not copied changed

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._db.execute(statement, values).fetchall()

    def stream(self, statement: str, values: Sequence[Any] = ()) -> Iterator[Row]:
        return self._db.execute(statement, values)

    def canonical(self, row: str, column: str, type: str) -> str:
        cell = f'{row}."{column}"'
        if column == "lease_id":  # claims by tests and in plain SQL may make it with dashes
            return f"replace({cell}, '-', '')"
        return cell + (" * 1000" if type == "timestamptz" else "")

    def native(self, text: str, type: str) -> str:
        return f"({text})" + (" / 1000" if type == "timestamptz" else "")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK")  # there is nothing to commit

    @contextmanager
    def transaction(self) -> Iterator[None]:
        begin_writing(self._db)
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    closed = alone = transaction

    def note(self, table: Table, name: str) -> None:
        for event, row in EVENTS.items():
            key = self.key(table, row)
            self.rows(NOTE.format(event=event, table=table.name, name=name, key=key))

    def end_notes(self) -> None:
        of = "sqlite_schema WHERE type = 'trigger' AND name GLOB 'tenure_move_*'"
        for (name,) in self.rows(f"SELECT name FROM {of}"):
            self.rows(f"DROP TRIGGER {name}")
        self.rows("DROP TABLE tenure_move_change")

    def refuse_writes(self, message: str) -> None:
        text = "'" + message.replace("'", "''") + "'"
        for table in self.tables:
            for event in EVENTS if table != "schema" else ():
                self.rows(CLOSE.format(event=event, table=table, message=text))

    def close(self) -> None:
        self._db.close()
