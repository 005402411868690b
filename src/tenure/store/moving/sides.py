"""The two databases as `tenure move` sees them.

Both engines give rows in one form, so that they can be compared: times are whole microseconds since
1970, ids are text, truth values are 0 and 1.
"""

from __future__ import annotations

import hashlib
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

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


@dataclass(frozen=True, slots=True)
class Destination:
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

    def every_table(self) -> dict[str, Columns]:
        """Return the columns of each table, as they are now."""
        found: dict[str, dict[str, str]] = {}
        for table, column, type in self.rows(self.catalog):
            found.setdefault(table.removeprefix("tenure_"), {})[column] = type
        return dict(found)

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

    def read(self, table: Table, keys: str | None = None) -> Iterator[Row]:
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
        return int(self.rows(f"SELECT count(*) FROM {self.d.table(table.name)}")[0][0])


class Source(Side):
    """The database that the jobs leave."""

    notes: Sequence[str]
    """Statements that make the tables `move` and `move_change`."""

    @abstractmethod
    def may_begin(self) -> bool:
        """Whether this role may."""

    @abstractmethod
    def snapshot(self) -> AbstractContextManager[None]:
        """Read one state of the data in the block."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """Commit what the block does, or nothing of it."""

    @abstractmethod
    def closed(self) -> AbstractContextManager[None]:
        """The same, and let nobody else write in the block."""

    @abstractmethod
    def note(self, table: Table, name: str) -> None:
        """Note the keys of the rows of a table that change, as changes of the table `name`."""

    @abstractmethod
    def end_notes(self) -> None:
        """Note no more."""

    @abstractmethod
    def refuse_writes(self, message: str) -> None:
        """Let every write fail with a message from now on."""

    @abstractmethod
    def last_seq(self) -> int:
        """Return the last number of an entry of the ledger."""

    @abstractmethod
    def size(self) -> int:
        """Return the bytes that it takes."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection to the database."""

    def state(self) -> Destination | None:
        """Return where its jobs go, if `tenure move` was started."""
        if "move" not in self.every_table():
            return None
        ((id, target, moved),) = self.rows(f"SELECT * FROM {self.d.table('move')}")
        return Destination(id, target, bool(moved))

    def begin(self, state: Destination) -> None:
        """Note from now on which rows change."""
        self.forsake()
        with self.closed():
            for statement in self.notes:
                self.rows(statement)
            for table in COPIED:  # the ledger changes with its job only
                if table.name in self.tables and table.name != "transition":
                    noted = JOB if table in OF_JOBS else table
                    self.note(table, noted.name)
            values = self.d.values(2)
            self.rows(
                f"INSERT INTO {self.d.table('move')} VALUES ({values}, false)",
                (state.id, state.target),
            )

    def forsake(self) -> None:
        """Remove what `begin` made."""
        if "move" in self.every_table():
            with self.closed():
                self.end_notes()
                self.rows(f"DROP TABLE {self.d.table('move')}")

    def hand_over(self, message: str) -> None:
        """In `closed`: note that the jobs are elsewhere; every later write fails with `message`."""
        self.end_notes()
        self.rows(f"UPDATE {self.d.table('move')} SET moved = true")
        self.refuse_writes(message)

    def job_ids(self, after: str, limit: int) -> list[str]:
        """Return the next ids of jobs after one, in order."""
        d = self.d
        where = f"WHERE id > {d.id_value} ORDER BY id LIMIT {d.value}"
        found = self.rows(f"SELECT {d.id('id')} FROM {d.table('job')} {where}", (after, limit))
        return [id for (id,) in found]

    def open_jobs(self, queue: str) -> list[str]:
        """Return the ids of the pending and processing jobs of a queue."""
        d, ids = self.d, set[str]()
        for of in (d.pending, d.processing):
            found = self.rows(f"SELECT {d.id('id')} FROM {of} WHERE queue = {d.value}", (queue,))
            ids.update(id for (id,) in found)
        return sorted(ids)

    def changes(self, limit: int = sys.maxsize) -> list[Change]:
        """Return changes that are not forgotten, in order."""
        of = f"{self.d.table('move_change')} ORDER BY n LIMIT {self.d.value}"
        return self.rows(f"SELECT n, name, key FROM {of}", (limit,))

    def changed(self) -> int:
        """Return how many changes there are."""
        return int(self.rows(f"SELECT count(*) FROM {self.d.table('move_change')}")[0][0])

    def forget(self, numbers: Sequence[int]) -> None:
        """Forget changes that are copied."""
        listed = f"SELECT CAST(CAST(value AS text) AS bigint) FROM {self.d.json_rows}"
        for at in range(0, len(numbers), FORGOTTEN_AT_ONCE):
            some = json.dumps(numbers[at : at + FORGOTTEN_AT_ONCE])
            with self.transaction():
                self.rows(
                    f"DELETE FROM {self.d.table('move_change')} WHERE n IN ({listed})", (some,)
                )

    def measured(self) -> tuple[Place, int]:
        """Return up to which place in the ledger the statistics go, and their milliseconds."""
        of = f"{self.d.place}, millis FROM {self.d.table('measured')}"
        ((*place, millis),) = self.rows(f"SELECT {of}")
        return tuple(map(int, place)), millis

    def webhooks(self) -> list[tuple[str, Place]]:
        """Return the name of each webhook and its place in the ledger."""
        found = self.rows(f"SELECT name, position FROM {self.d.table('webhook')}")
        return [(name, tuple(map(int, place.split(".")))) for name, place in found]

    def seqs_after(self, place: Place) -> list[int]:
        """Return the numbers of the entries of the ledger after a place."""
        of = f"{self.d.table('transition')} AS t WHERE {self.d.after}"
        return [seq for (seq,) in self.rows(f"SELECT t.seq FROM {of}", place)]
