"""A PostgreSQL database whose rows `tenure move` reads and writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tenure.store.moving.rows import Columns, Row
from tenure.store.moving.tables import FIXED, OWN, Table
from tenure.store.postgres.connection import address_of, connect

# isort: split
import psycopg

AT_ONCE = 5_000
"""Rows that are fetched at once."""
CLOSED = "TN007"
"""The SQLSTATE of a write to a database whose jobs are elsewhere."""

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
        "SET LOCAL synchronous_commit = on; SET LOCAL TimeZone = 'UTC'",
    )
)


class PostgresRows:
    """One connection, in autocommit outside of `transaction`."""

    def __init__(self, url: str) -> None:
        self.address = address_of(url)
        self.connection = connect(self.address)
        self._tables: dict[str, dict[str, str]] = {}

    def sql(self, statement: str) -> bytes:
        """Return a statement with the schema put in for `{s}`."""
        return self.address.sql(statement)

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Execute a statement and return the rows of its answer."""
        cursor = self.connection.execute(self.sql(statement), values or None)
        return cursor.fetchall() if cursor.description else []

    def one(self, statement: str, *values: Any) -> Any:
        """Return the single value of a statement, None if there is no row."""
        found = self.rows(statement, values)
        return found[0][0] if found else None

    def exists(self, table: str) -> bool:
        """Whether there is such a table."""
        return self.one("SELECT to_regclass(%s)", f'"{self.address.schema}"."{table}"') is not None

    @contextmanager
    def transaction(self, level: str = "READ COMMITTED") -> Iterator[None]:
        """Commit what the block does, or nothing of it."""
        try:
            self.connection.execute(BEGIN.format(level=level).encode())
            yield
        except BaseException:
            if not self.connection.closed:
                self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    def tables(self) -> dict[str, dict[str, str]]:
        """Return the tables of the schema, with the type of each column."""
        found: dict[str, dict[str, str]] = {}
        statement = """
SELECT c.relname, a.attname, t.typname FROM pg_class AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_type AS t ON t.oid = a.atttypid
WHERE c.relnamespace = to_regnamespace(%s) AND c.relkind = 'r' ORDER BY c.relname, a.attnum"""
        for table, column, type in self.rows(statement, (self.address.quoted,)):
            found.setdefault(table, {})[column] = type
        return {name: columns for name, columns in found.items() if name not in OWN}

    def columns(self, table: str) -> list[str]:
        self._tables = self._tables or self.tables()
        return list(self._tables.get(table, ()))

    def read(self, table: Table, columns: Columns, keys: str | None = None) -> Iterator[Row]:
        have = self.columns(table.name)
        if not have:
            return
        wanted = ", ".join(_canonical(table.name, c, t, have) for c, t in columns.items())
        of = f"{{s}}.{table.name} AS t"
        if keys is not None:
            one = f"SELECT * FROM {of} WHERE {same_key(table)} OFFSET 0"  # by index, key by key
            joined = f"{keys_as(table, columns)} CROSS JOIN LATERAL ({one}) AS t"
            yield from self.rows(f"SELECT {wanted} FROM {joined}", (keys,))
            return
        self.rows("SET LOCAL enable_seqscan = on")
        with self.connection.cursor("rows") as cursor:
            cursor.itersize = AT_ONCE
            yield from cursor.execute(self.sql(f"SELECT {wanted} FROM {of}"))

    def count(self, table: Table) -> int:
        if not self.columns(table.name):
            return 0
        return int(self.one(f"SELECT count(*) FROM {{s}}.{table.name}"))

    def close_all(self, message: str) -> None:
        """Let every write fail with a message from now on."""
        text = psycopg.sql.Literal(message).as_string(self.connection)
        self.rows(CLOSE.replace("{code}", CLOSED).replace("{message}", text))
        for table in self.tables():
            self.rows(CLOSE_ONE.replace("{t}", f'{{s}}."{table}"'))

    def close(self) -> None:
        self.connection.close()


def quoted(columns: Sequence[str]) -> str:
    """Return names of columns as SQL."""
    return ", ".join(f'"{column}"' for column in columns)


def same_key(table: Table) -> str:
    """Return the condition that a row `t` has the key `k`."""
    return " AND ".join(f't."{column}" = k."{column}"' for column in table.key)


def keys_as(table: Table, columns: Columns) -> str:
    """Return a FROM item: the keys in a JSON parameter."""
    cells = ", ".join(
        _native(f"value ->> {place}", columns[column]) + f' AS "{column}"'
        for place, column in enumerate(table.key)
    )
    return f"(SELECT DISTINCT {cells} FROM json_array_elements(%s::json) AS one (value)) AS k"


def key_of(table: Table, columns: Columns) -> str:
    """Return SQL for the key of a row `t` as a JSON array."""
    cells = [_canonical(table.name, c, columns[c], table.key) for c in table.key]
    return f"json_build_array({', '.join(cells)})::text"


def _canonical(table: str, column: str, type: str, have: Sequence[str]) -> str:
    if (table, column) in FIXED:
        return FIXED[table, column]
    if column not in have:
        return "NULL"
    cell = f't."{column}"'
    if type == "timestamptz":
        return f"(extract(epoch FROM {cell}) * 1000000)::bigint"
    return {"uuid": f"{cell}::text", "bool": f"{cell}::int"}.get(type, cell)


def _native(text: str, type: str) -> str:
    if type == "timestamptz":
        return f"'epoch'::timestamptz + ({text})::bigint * interval '1 microsecond'"
    return f"({text})::{type}"
