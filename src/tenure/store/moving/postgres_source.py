"""A PostgreSQL database that its jobs leave: `Source`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from tenure.store.moving.postgres_rows import PostgresRows, key_of
from tenure.store.moving.rows import Change, Columns, Destination
from tenure.store.moving.tables import ALONE, COPIED, JOB, OF_JOBS
from tenure.store.postgres.statements import DIALECT

# isort: split
from psycopg import errors

LOCK_TRIES = 100
LOCK_PAUSE_SECONDS = 0.2

BEGIN = """
CREATE TABLE {s}.move (id text NOT NULL, target text NOT NULL, moved boolean NOT NULL);
CREATE TABLE {s}.move_change (
    n bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, name text NOT NULL, key text NOT NULL)"""

# With the owner's rights, since nobody else may write these tables. Who cannot call the function
# cannot give it to a trigger of another table.
NOTE = """
CREATE FUNCTION {s}.note_{table}() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO {s}.move_change (name, key) SELECT '{name}', {key} FROM changed AS t;
    RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION {s}.note_{table}() FROM PUBLIC"""
NOTE_ON = """
CREATE TRIGGER move_notes_{event} AFTER {event} ON {s}.{table}
    REFERENCING {rows} TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION {s}.note_{table}();
ALTER TABLE {s}.{table} ENABLE ALWAYS TRIGGER move_notes_{event}"""
EVENTS = {"insert": "NEW", "update": "NEW", "delete": "OLD"}


class PostgresSource(PostgresRows):
    """`Source` on PostgreSQL."""

    def state(self) -> Destination | None:
        found = self.rows("SELECT id, target, moved FROM {s}.move") if self.exists("move") else ()
        return Destination(*found[0]) if found else None

    def may_begin(self) -> bool:
        statement = (
            "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = '{s}.job'::regclass"
        )
        return bool(self.one(statement))

    def begin(self, state: Destination, columns: Mapping[str, Columns]) -> None:
        self.forsake()  # what is left of one that was killed in here
        with self._locked():
            self.rows(BEGIN)
            for table in COPIED:
                if table.name == "transition":
                    continue  # it changes with its job only
                noted = JOB if table in OF_JOBS else table
                parts = {"s": "{s}", "table": table.name, "name": noted.name}
                key = key_of(table, columns[table.name])
                self.rows(NOTE.format(**parts, key=key))
                for event, rows in EVENTS.items():
                    self.rows(NOTE_ON.format(**parts, event=event, rows=rows))
        with self.transaction():
            self.rows("INSERT INTO {s}.move VALUES (%s, %s, false)", (state.id, state.target))
            for table in ALONE:
                key = key_of(table, columns[table.name])
                self.rows(
                    f"INSERT INTO {{s}}.move_change (name, key)"
                    f" SELECT '{table.name}', {key} FROM {{s}}.{table.name} AS t"
                )

    def forsake(self) -> None:
        if self.exists("move"):
            with self._locked():
                self._end_notes()
                self.rows("DROP TABLE {s}.move")

    def _end_notes(self) -> None:
        for table in COPIED:
            self.rows(f"DROP FUNCTION IF EXISTS {{s}}.note_{table.name}() CASCADE")
        self.rows("DROP TABLE {s}.move_change")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        with self.transaction("REPEATABLE READ, READ ONLY"):
            yield

    @contextmanager
    def closed(self) -> Iterator[None]:
        with self._locked():
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """A transaction beside which nobody else writes.

        First it waits for autovacuum alone, which PostgreSQL ends for it after a second. For a
        writer it waits less long than PostgreSQL does before it looks for deadlocks: those who
        hold one lock and wait for another one go on, and this one tries again.
        """
        tables = ", ".join(f'{{s}}."{table}"' for table in sorted(self.tables()))
        with self.transaction():
            self.rows(
                f"SET LOCAL lock_timeout = '1min'; LOCK {tables} IN SHARE UPDATE EXCLUSIVE MODE"
            )
            for left in reversed(range(LOCK_TRIES)):
                self.rows("SAVEPOINT before")
                self.rows("SET LOCAL statement_timeout = '400ms'")  # of all locks together
                try:
                    self.rows(f"LOCK {tables} IN EXCLUSIVE MODE")
                    self.rows("SET LOCAL statement_timeout = 0")
                    break
                except (errors.QueryCanceled, errors.DeadlockDetected):
                    if not left:
                        raise
                    self.rows("ROLLBACK TO before")
                    time.sleep(LOCK_PAUSE_SECONDS)
            yield

    def hand_over(self, message: str) -> None:
        self._end_notes()
        self.rows("UPDATE {s}.move SET moved = true")
        self.close_all(message)

    def job_ids(self, after: str, limit: int) -> list[str]:
        where = "WHERE id > %s::uuid" if after else "WHERE %s = ''"
        found = self.rows(
            f"SELECT id::text FROM {{s}}.job {where} ORDER BY id LIMIT %s", (after, limit)
        )
        return [id for (id,) in found]

    def changes(self, after: int, limit: int | None) -> list[Change]:
        statement = "SELECT n, name, key FROM {s}.move_change WHERE n > %s ORDER BY n LIMIT %s"
        return self.rows(statement, (after, limit))

    def forget(self, numbers: Sequence[int]) -> None:
        self.rows("DELETE FROM {s}.move_change WHERE n = ANY (%s)", (list(numbers),))

    def last_seq(self) -> int:
        return int(self.one("SELECT coalesce(pg_sequence_last_value('{s}.transition_seq_seq'), 0)"))

    def measured(self) -> tuple[tuple[int, ...], int]:
        ((xid, seq, millis),) = self.rows("SELECT xid::text, seq, millis FROM {s}.measured")
        return (int(xid), seq), millis

    def seqs_after(self, place: tuple[int, ...]) -> list[int]:
        statement = f"SELECT t.seq FROM {{s}}.transition AS t WHERE {DIALECT.after}"
        return [seq for (seq,) in self.rows(statement, place)]

    def webhooks(self) -> list[tuple[str, tuple[int, ...]]]:
        found = self.rows("SELECT name, position FROM {s}.webhook")
        return [(name, tuple(map(int, place.split(".")))) for name, place in found]

    def size(self) -> int:
        statement = """
SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class
WHERE relnamespace = to_regnamespace(%s) AND relkind = 'r'"""
        return int(self.one(statement, self.address.quoted))
