"""The two databases as `tenure move` sees them.

Both engines give rows in one form, so that they can be compared: times are whole microseconds since
1970, ids are text, truth values are 0 and 1.
"""

from __future__ import annotations

import hashlib
import json
import sys
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, NamedTuple

import msgspec

from tenure.errors import MoveRefused
from tenure.jobs.redaction import without_password
from tenure.store.dialect import Dialect
from tenure.store.moving.tables import COPIED, FIXED, JOB, OF_JOBS, OWN, Table

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
