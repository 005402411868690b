"""A PostgreSQL database that `tenure move` reads and writes, and one that its jobs leave."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tenure.errors import MoveRefused
from tenure.store.moving.sides import EVENTS, Row, Side, Source
from tenure.store.moving.tables import COPIED, Table
from tenure.store.postgres.connection import address_of, connect, name_safely
from tenure.store.postgres.statements import DIALECT

# isort: split
import psycopg
from psycopg import errors

AT_ONCE = 5_000
"""Rows that are fetched at once."""
CLOSED = "TN007"
"""The SQLSTATE of a write to a database whose jobs are elsewhere."""
LOCK_TRIES = 100
LOCK_PAUSE_SECONDS = 0.2
WHO = {"EXCLUSIVE": "writes to", "ACCESS EXCLUSIVE": "reads or writes"}
"""Lock -> what a transaction does for which it waits."""

UNLIMITED = """
SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN
    ('statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout')"""
"""What a role may have for its other programs; here one side is idle while the other is read."""

CLOSE = """
CREATE FUNCTION {s}.refuse_all() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = '{code}', MESSAGE = {message};
END $$"""
CLOSE_ONE = """
CREATE TRIGGER elsewhere BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {t}
    FOR EACH STATEMENT EXECUTE FUNCTION {s}.refuse_all();
ALTER TABLE {t} ENABLE ALWAYS TRIGGER elsewhere"""

# Other plans than by index would read a whole table for a few keys.
BEGIN = "; ".join(
    (
        "BEGIN ISOLATION LEVEL {level}",
        *(f"SET LOCAL enable_{way} = off" for way in ("seqscan", "hashjoin", "mergejoin")),
        "SET LOCAL enable_bitmapscan = off; SET LOCAL jit = off",
        "SET LOCAL synchronous_commit = on",
        # Whatever form the values of a row have as text, it is the same on both sides, and whole.
        "SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO, YMD'",
        "SET LOCAL IntervalStyle = 'postgres'; SET LOCAL bytea_output = 'hex'",
        "SET LOCAL extra_float_digits = 3",
    )
)

# It runs with the owner's rights, because no other role may write these tables. A role that cannot
# call the function cannot use it in a trigger of another table.
NOTE = """
CREATE FUNCTION {s}.note_{table}() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO {s}.move_change (name, key)
    SELECT '{name}', json_build_array({key})::text FROM changed AS t;
    RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION {s}.note_{table}() FROM PUBLIC"""
NOTE_ON = """
CREATE TRIGGER move_notes_{event} AFTER {event} ON {s}.{table}
    REFERENCING {rows} TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION {s}.note_{table}();
ALTER TABLE {s}.{table} ENABLE ALWAYS TRIGGER move_notes_{event}"""


class PostgresSide(Side):
    """One connection, in autocommit outside of `transaction`."""

    d = DIALECT
    catalog = """
SELECT c.relname, a.attname, t.typname FROM pg_class AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_type AS t ON t.oid = a.atttypid
WHERE c.relnamespace = to_regnamespace('{s}') AND c.relkind = 'r' ORDER BY c.relname, a.attnum"""
    joined = " CROSS JOIN LATERAL (SELECT ctid, * FROM {table} AS t WHERE {same} OFFSET 0) AS t"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.address = address_of(url)
        self.connection = connect(self.address)
        name_safely(self.connection)
        self.rows(UNLIMITED)

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        cursor = self.connection.execute(self.address.sql(statement), values or None)
        return cursor.fetchall() if cursor.description else []

    def stream(self, statement: str, values: Sequence[Any] = ()) -> Iterator[Row]:
        if values:
            yield from self.rows(statement, values)
            return
        self.rows("SET LOCAL enable_seqscan = on")
        with self.connection.cursor("rows") as cursor:
            cursor.itersize = AT_ONCE
            yield from cursor.execute(self.address.sql(statement))

    def canonical(self, row: str, column: str, type: str) -> str:
        cell = f'{row}."{column}"'
        if type == "timestamptz":
            return f"(extract(epoch FROM {cell}) * 1000000)::bigint"
        if column == "lease_id":  # SQLite makes it without dashes
            return f"replace({cell}::text, '-', '')"
        return {"uuid": f"{cell}::text", "bool": f"{cell}::int"}.get(type, cell)

    def native(self, text: str, type: str) -> str:
        if type == "timestamptz":
            return f"'epoch'::timestamptz + ({text})::bigint * interval '1 microsecond'"
        return f"({text})::{type}"

    @contextmanager
    def transaction(self, level: str = "READ COMMITTED") -> Iterator[None]:
        try:
            self.connection.execute(BEGIN.format(level=level).encode())
            yield
        except BaseException:
            if not self.connection.closed:
                self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    @contextmanager
    def locked(self, names: Iterable[str], mode: str) -> Iterator[None]:
        """A transaction that locks tables against others. Raises MoveRefused.

        It first waits for autovacuum alone, which PostgreSQL ends for it after a second. It locks
        the table of jobs first, as writers do, so a writer that has this table waits for no other.
        It waits for others for less than the time after which PostgreSQL looks for deadlocks.
        Then it gives up its locks, the others continue, and it tries again.
        """
        first_job = sorted(names, key=lambda table: (table != "job", table))
        tables = ", ".join(f'{{s}}."{table}"' for table in first_job)
        with self.transaction():
            self.rows(
                f"SET LOCAL lock_timeout = '1min'; LOCK {tables} IN SHARE UPDATE EXCLUSIVE MODE"
            )
            for left in reversed(range(LOCK_TRIES)):
                self.rows("SAVEPOINT before")
                self.rows("SET LOCAL statement_timeout = '400ms'")  # of all locks together
                try:
                    self.rows(f"LOCK {tables} IN {mode} MODE")
                    self.rows("SET LOCAL statement_timeout = 0")
                    break
                except (errors.QueryCanceled, errors.DeadlockDetected) as error:
                    if not left:
                        raise MoveRefused(
                            f"a transaction that {WHO[mode]} the tables of {self.name} does not"
                            " end: run the same command again after it"
                        ) from error
                    self.rows("ROLLBACK TO before")
                    time.sleep(LOCK_PAUSE_SECONDS)
            yield

    def refuse_writes(self, message: str) -> None:
        text = psycopg.sql.Literal(message).as_string(self.connection)
        self.rows(CLOSE.replace("{code}", CLOSED).replace("{message}", text))
        for table in self.tables:
            self.rows(CLOSE_ONE.replace("{t}", f'{{s}}."{table}"'))

    def close(self) -> None:
        self.connection.close()


class PostgresSource(PostgresSide, Source):
    """`Source` on PostgreSQL."""

    number = "bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY"
    may_begin = (
        "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = '{s}.job'::regclass"
    )
    size = (
        "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class"
        " WHERE relnamespace = to_regnamespace('{s}') AND relkind = 'r'"
    )
    last_seq = "SELECT coalesce(pg_sequence_last_value('{s}.transition_seq_seq'), 0)"

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        with self.transaction("REPEATABLE READ, READ ONLY"):
            yield

    @contextmanager
    def closed(self) -> Iterator[None]:
        with self.locked(self.tables, "EXCLUSIVE"):
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self.locked(self.every_table(), "ACCESS EXCLUSIVE"):
            yield

    def note(self, table: Table, name: str) -> None:
        parts = {"s": "{s}", "table": table.name, "name": name}
        self.rows(NOTE.format(**parts, key=self.key(table, "t")))
        for event, rows in EVENTS.items():
            self.rows(NOTE_ON.format(**parts, event=event, rows=rows))

    def end_notes(self) -> None:
        for table in COPIED:
            self.rows(f"DROP FUNCTION IF EXISTS {{s}}.note_{table.name}() CASCADE")
        self.rows("DROP TABLE {s}.move_change")
