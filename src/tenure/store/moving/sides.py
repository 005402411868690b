"""The two databases as `tenure move` sees them, and the tables that it copies.

What follows from jobs is made again on the target.

Both engines give rows in one form, so that they can be compared: times are whole microseconds since
1970, ids are text, truth values are 0 and 1. Jobs can leave a SQLite file or a PostgreSQL database.
They move to PostgreSQL.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import msgspec

from tenure.errors import MoveRefused
from tenure.store.database import Dialect
from tenure.store.postgres.connection import address_of, connect, name_safely
from tenure.store.postgres.statements import DIALECT as POSTGRES
from tenure.store.sqlite.connection import begin_writing, connect_writer, usable_path_of
from tenure.store.sqlite.statements import DIALECT as SQLITE
from tenure.values.redaction import without_password

# The imports above say what to do where psycopg is missing.
# isort: split
import psycopg
from psycopg import errors


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose rows are copied, and the columns by which changed ones are found again."""

    name: str
    key: tuple[str, ...]


JOB = Table("job", ("id",))
OF_JOBS = (
    *(Table(name, ("job_id",)) for name in ("transition", "step", "checkpoint", "signal", "wait")),
    *(Table(name, ("job_id",)) for name in ("signal_token", "trace", "progress")),
    *(Table(name, ("child",)) for name in ("dependency", "gate")),
)
"""Rows that belong to one job. They are copied with it, all of them, whenever one has changed."""
ALONE = (
    *(Table(name, ("name",)) for name in ("access", "type", "queue", "schedule", "webhook")),
    *(Table(name, ("queue",)) for name in ("queue_limit", "limit_change")),
    *(Table(name, ("queue", "partition")) for name in ("partition_limit",)),
    *(Table(name, ("id",)) for name in ("workflow", "bulk")),
    *(Table(name, ("key",)) for name in ("unique_key", "throttle")),
    Table("retention", ("subject", "name")),
    Table("fire", ("schedule", "at", "outcome")),
    Table("line", ("queue", "partition", "id")),
    Table("overdue", ("parent",)),
    Table("revisit", ("job_id",)),
    Table("session", ("digest",)),
    Table("tally", ("status", "queue", "type")),
    Table("activity", ("minute", "type", "queue", "event")),
    Table("total", ("type", "queue", "event")),
    Table("failure", ("type", "queue", "error")),
)
"""The others."""
COPIED = (JOB, *OF_JOBS, *ALONE)

FIXED: Mapping[tuple[str, str], str] = {("transition", "xid"): "'0'", ("webhook", "position"): "''"}
"""Columns that `places` sets, and what they are until then, as SQL."""
OWN = ("move", "move_change", "move_copy")
"""Tables that exist only during `tenure move`: two on the source, the last on the target."""

# --- sides ----------------------------------------------------------------------------------------

Row = Sequence[Any]
Columns = Mapping[str, str]
"""Column -> type."""
Place = tuple[int, ...]
"""A place in the ledger."""
Change = tuple[int, str, str]
"""(number, table, key as a JSON array) of a row that was added, changed or deleted."""
FORGOTTEN_AT_ONCE = 1_000
"""Others cannot write meanwhile on SQLite."""
EVENTS = {"insert": "NEW", "update": "NEW", "delete": "OLD"}
"""What changes a row, and the row that is noted."""


class Destination(NamedTuple):
    """What a source says about where its jobs go. `moved`: they are there."""

    id: str
    target: str
    moved: bool


def digest(rows: Iterable[Row]) -> str:
    """Return the number of rows and the sum of their hashes, which is the same in every order."""
    encode, count, total = msgspec.msgpack.encode, 0, 0
    for row in rows:
        count += 1
        total += int.from_bytes(hashlib.blake2b(encode(row), digest_size=16).digest())
    return f"{count} rows, {total % 2**128:032x}"


class Side(ABC):
    """A database whose rows are read."""

    d: Dialect
    catalog: str
    """A SELECT of table, column and type."""
    joined: str
    """Template: join the rows `t` of a `table` for which `same` holds."""
    types: Mapping[str, Columns]
    """The columns of each table on PostgreSQL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = without_password(url)

    @abstractmethod
    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Execute a statement and return the rows of its answer."""

    @abstractmethod
    def stream(self, statement: str, values: Sequence[Any] = ()) -> Iterator[Row]:
        """Yield many rows."""

    @abstractmethod
    def canonical(self, row: str, column: str, type: str) -> str:
        """Return SQL for a cell in the form of both engines. `type` is PostgreSQL's."""

    @abstractmethod
    def native(self, text: str, type: str) -> str:
        """Return SQL for a text in that form as the engine stores it."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """Commit what the block does, or nothing of it."""

    @abstractmethod
    def refuse_writes(self, message: str) -> None:
        """Let every write fail with a message from now on."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection to the database."""

    def one(self, statement: str) -> Any:
        """Return the single value of a statement."""
        return self.rows(statement)[0][0]

    def every_table(self) -> Mapping[str, Columns]:
        """Return the columns that each table has now."""
        found = defaultdict[str, dict[str, str]](dict)
        for table, column, type in self.rows(self.catalog):
            found[table.removeprefix("tenure_")][column] = type
        return found

    @cached_property
    def tables(self) -> Mapping[str, Columns]:
        """The columns of each table, without those tables that exist during `tenure move` only."""
        return {name: of for name, of in self.every_table().items() if name not in OWN}

    def key(self, table: Table, row: str) -> str:
        """Return SQL for the key of a row as cells of a JSON array."""
        types = self.types[table.name]
        return ", ".join(self.canonical(row, column, types[column]) for column in table.key)

    def having(self, table: Table) -> str:
        """Return a FROM item: the rows `t` whose keys a JSON array of arrays has (parameter)."""
        types = self.types[table.name]
        cells = ", ".join(
            self.native(f"value ->> {place}", types[column]) + f' AS "{column}"'
            for place, column in enumerate(table.key)
        )
        same = " AND ".join(f't."{column}" = k."{column}"' for column in table.key)
        keys = f"(SELECT {cells} FROM {self.d.json_rows}) AS k"
        return keys + self.joined.format(table=self.d.table(table.name), same=same)

    def read(self, table: Table, keys: str | None = None) -> Generator[Row, None, None]:
        """Yield the rows with these keys (a JSON array of arrays), or all rows.

        They have the columns of PostgreSQL. One that is not here is NULL.
        """
        have = self.tables.get(table.name)
        if have is None:
            return
        cells = [
            FIXED.get((table.name, c)) or (self.canonical("t", c, of) if c in have else "NULL")
            for c, of in self.types[table.name].items()
        ]
        select = f"SELECT {', '.join(cells)} FROM "
        if keys is None:
            yield from self.stream(f"{select}{self.d.table(table.name)} AS t")
        else:
            yield from self.stream(select + self.having(table), (keys,))

    def count(self, table: Table) -> int:
        """Return the number of rows."""
        if table.name not in self.tables:
            return 0
        return int(self.one(f"SELECT count(*) FROM {self.d.table(table.name)}"))


class Source(Side):
    """The database that the jobs leave."""

    number: str
    """The type of a column that numbers rows."""
    may_begin: str
    """Ask whether this role may."""
    size: str
    """Ask for the bytes that it takes."""
    last_seq: str
    """Ask for the last number of an entry of the ledger."""

    @abstractmethod
    def snapshot(self) -> AbstractContextManager[None]:
        """Read one state of the data in the block."""

    @abstractmethod
    def closed(self) -> AbstractContextManager[None]:
        """A transaction that keeps all others from writing. Raises MoveRefused."""

    @abstractmethod
    def alone(self) -> AbstractContextManager[None]:
        """The same; where a trigger cannot be dropped while others read, also from reading."""

    @abstractmethod
    def note(self, table: Table, name: str) -> None:
        """Note the keys of the rows of a table that change, as changes of the table `name`."""

    @abstractmethod
    def end_notes(self) -> None:
        """Note no more."""

    def state(self) -> Destination | None:
        """Return where its jobs go, if `tenure move` was started."""
        if "move" not in self.every_table():
            return None
        ((id, target, moved),) = self.rows(f"SELECT * FROM {self.d.table('move')}")
        return Destination(id, target, bool(moved))

    def begin(self, state: Destination) -> None:
        """Note from now on which rows change. Raises MoveRefused if another move has started."""
        self.forsake(state.target)
        d, text = self.d, f"CAST({self.d.value} AS text)"
        with self.closed():
            values = f"{text} AS id, {text} AS target, false AS moved"
            self.rows(f"CREATE TABLE {d.table('move')} AS SELECT {values}", state[:2])
            columns = f"n {self.number}, name text NOT NULL, key text NOT NULL"
            self.rows(f"CREATE TABLE {d.table('move_change')} ({columns})")
            for table in COPIED:  # the ledger changes with its job only
                if table.name in self.tables and table.name != "transition":
                    self.note(table, (JOB if table in OF_JOBS else table).name)

    def forsake(self, target: str) -> None:
        """Remove what `begin` made for a target. Raises MoveRefused if it was another one."""
        if "move" in self.every_table():
            with self.alone():
                state = self.state()  # perhaps it began since it was checked
                if state is not None and state.target != target:
                    raise MoveRefused(f"the jobs are being moved to {state.target}")
                self.end_notes()
                self.rows(f"DROP TABLE {self.d.table('move')}")

    def hand_over(self, message: str) -> None:
        """In `closed`: note that the jobs are elsewhere; every later write fails with `message`."""
        self.rows(f"UPDATE {self.d.table('move')} SET moved = true")
        self.refuse_writes(message)

    def job_ids(self, after: str, limit: int) -> list[str]:
        """Return the next ids of jobs after one, in order."""
        d = self.d
        where = f"WHERE id > {d.id_value} ORDER BY job.id LIMIT {d.value}"
        found = self.rows(
            f"SELECT {d.id('id')} FROM {d.table('job')} AS job {where}", (after, limit)
        )
        return [id for (id,) in found]

    def open_jobs(self, queue: str) -> list[str]:
        """Return the ids of the pending and processing jobs of a queue."""
        d = self.d
        select = f"SELECT {d.id('id')} FROM {{}} WHERE queue = {d.value}"
        both = " UNION ALL ".join(map(select.format, (d.pending, d.processing)))
        return [id for (id,) in self.rows(both, (queue, queue))]

    def changes(self, limit: int = sys.maxsize) -> list[Change]:
        """Return changes that are not forgotten, in order."""
        of = f"{self.d.table('move_change')} ORDER BY n LIMIT {self.d.value}"
        return self.rows(f"SELECT n, name, key FROM {of}", (limit,))

    def changed(self) -> int:
        return int(self.one(f"SELECT count(*) FROM {self.d.table('move_change')}"))

    def forget(self, changes: Sequence[Change]) -> None:
        listed = f"SELECT CAST(CAST(value AS text) AS bigint) FROM {self.d.json_rows}"
        delete = f"DELETE FROM {self.d.table('move_change')} WHERE n IN ({listed})"
        for at in range(0, len(changes), FORGOTTEN_AT_ONCE):
            numbers = [number for number, _, _ in changes[at : at + FORGOTTEN_AT_ONCE]]
            with self.transaction():
                self.rows(delete, (json.dumps(numbers),))

    def places(self) -> dict[str, Place]:
        """Return up to which place in the ledger each webhook is, and the statistics, as ''."""
        found = self.rows(f"SELECT name, position FROM {self.d.table('webhook')}")
        places = {name: tuple(map(int, place.split("."))) for name, place in found}
        (measured,) = self.rows(f"SELECT {self.d.place} FROM {self.d.table('measured')}")
        return {**places, "": tuple(map(int, measured))}

    def seqs_after(self, place: Place) -> list[int]:
        """Return the numbers of the entries of the ledger after a place."""
        of = f"{self.d.table('transition')} AS t WHERE {self.d.after}"
        return [seq for (seq,) in self.rows(f"SELECT t.seq FROM {of}", place)]


# --- SQLite ---------------------------------------------------------------------------------------

NOTE_SQLITE = """
CREATE TRIGGER tenure_move_{event}_{table} AFTER {event} ON tenure_{table}
BEGIN INSERT INTO tenure_move_change (name, key) VALUES ('{name}', json_array({key})); END"""
CLOSE_SQLITE = """
CREATE TRIGGER tenure_elsewhere_{event}_{table} BEFORE {event} ON tenure_{table}
BEGIN SELECT RAISE(ABORT, {message}); END"""


class SqliteSource(Source):
    """`Source` on SQLite."""

    d = SQLITE
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
            self.rows(NOTE_SQLITE.format(event=event, table=table.name, name=name, key=key))

    def end_notes(self) -> None:
        of = "sqlite_schema WHERE type = 'trigger' AND name GLOB 'tenure_move_*'"
        for (name,) in self.rows(f"SELECT name FROM {of}"):
            self.rows(f"DROP TRIGGER {name}")
        self.rows("DROP TABLE tenure_move_change")

    def refuse_writes(self, message: str) -> None:
        text = "'" + message.replace("'", "''") + "'"
        for table in self.tables:
            for event in EVENTS if table != "schema" else ():
                self.rows(CLOSE_SQLITE.format(event=event, table=table, message=text))

    def close(self) -> None:
        self._db.close()


# --- PostgreSQL -----------------------------------------------------------------------------------

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

CLOSE_POSTGRES = """
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
NOTE_POSTGRES = """
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

    d = POSTGRES
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
        self.rows(CLOSE_POSTGRES.replace("{code}", CLOSED).replace("{message}", text))
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
        self.rows(NOTE_POSTGRES.format(**parts, key=self.key(table, "t")))
        for event, rows in EVENTS.items():
            self.rows(NOTE_ON.format(**parts, event=event, rows=rows))

    def end_notes(self) -> None:
        for table in COPIED:
            self.rows(f"DROP FUNCTION IF EXISTS {{s}}.note_{table.name}() CASCADE")
        self.rows("DROP TABLE {s}.move_change")
