"""Rows as both engines read them, so that they can be compared: times are whole microseconds since
1970, ids are text, truth values are 0 and 1."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from tenure.store.moving.tables import Table

Row = Sequence[Any]
Columns = Mapping[str, str]
"""Column -> type, as PostgreSQL names it."""
Change = tuple[int, str, str]
"""(number, table, key as a JSON array) of a row that was added, changed or deleted."""


@dataclass(frozen=True, slots=True)
class Destination:
    """What a source says about where its jobs go. `moved`: they are there."""

    id: str
    target: str
    moved: bool


class Digest:
    """The number of rows and the sum of their hashes, which is the same in every order."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.rows = 0
        self._sum = 0
        self.add(rows)

    def add(self, rows: Iterable[Row]) -> None:
        encode, count, total = msgspec.msgpack.encode, 0, 0
        for row in rows:
            count += 1
            total += int.from_bytes(hashlib.blake2b(encode(row), digest_size=16).digest())
        self.rows += count
        self._sum = (self._sum + total) % 2**128

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Digest) and str(self) == str(other)

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"{self.rows} rows, {self._sum:032x}"


class Readable(Protocol):
    """A database whose rows are read."""

    def columns(self, table: str) -> list[str]:
        """Return the columns of a table, none if there is no such table."""

    def read(self, table: Table, columns: Columns, keys: str | None = None) -> Iterator[Row]:
        """Yield the rows with these keys (a JSON array of arrays), or all rows."""

    def count(self, table: Table) -> int:
        """Return the number of rows."""


class Source(Readable, Protocol):
    """The database that the jobs leave."""

    def state(self) -> Destination | None:
        """Return where its jobs go, if `tenure move` was started."""

    def may_begin(self) -> bool:
        """Whether this role may."""

    def begin(self, state: Destination, columns: Mapping[str, Columns]) -> None:
        """Note from now on which rows change, beginning with all rows that belong to no job."""

    def forsake(self) -> None:
        """Remove what `begin` made."""

    def snapshot(self) -> AbstractContextManager[None]:
        """Read one state of the data in the block."""

    def closed(self) -> AbstractContextManager[None]:
        """Let nobody write in the block, which is one transaction."""

    def hand_over(self, message: str) -> None:
        """In `closed`: note that the jobs are elsewhere; every later write fails with `message`."""

    def job_ids(self, after: str, limit: int) -> list[str]:
        """Return the next ids of jobs after one, in order."""

    def changes(self, after: int, limit: int | None) -> list[Change]:
        """Return changes after a number, in order, at most `limit`, that are not forgotten."""

    def forget(self, numbers: Sequence[int]) -> None:
        """Forget changes that are copied."""

    def last_seq(self) -> int:
        """Return the last number of an entry of the ledger."""

    def measured(self) -> tuple[tuple[int, ...], int]:
        """Return up to which place in the ledger the statistics go, and their milliseconds."""

    def seqs_after(self, place: tuple[int, ...]) -> list[int]:
        """Return the numbers of the entries of the ledger after a place."""

    def webhooks(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return the name of each webhook and its place in the ledger."""

    def size(self) -> int:
        """Return the bytes that it takes."""

    def close(self) -> None:
        """Close the connection to the database."""
