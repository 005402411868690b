"""One module for each table beside `job` and `transition`, written once for both engines.

To add a thing with a table takes six edits: its value in `jobs/<x>.py`, its statements in
`store/tables/<x>.py`, a migration for each engine, and its verbs in `app/<x>.py`, `http/api/<x>.py`
and `cli/<x>.py`. Neither `Store`, `protocol.py` nor the readers and writers of the engines change.

A module here has a `Table` with the verbs of the application: `StoredTokens(store).add(...)`. Reads
call `self._rows`, writes `self._write`, which returns a future. What belongs into a transaction
with other things is a function over `Statements`, such as `webhooks.positions(db)`. SQL is written
over the `Dialect` of the engine: `d.table("webhook")`, `d.value`, `d.now`, `d.time("created_at")`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from tenure.store.protocol import Database
    from tenure.store.reader import Reader

T = TypeVar("T")


class Connected(Protocol):
    """What a table needs of `Store`."""

    @property
    def read(self) -> Reader:
        """The reading side."""

    def write(self, name: str, act: Callable[[Database], T], *, quiet: bool = False) -> Future[T]:
        """Call `act` in a transaction; see `Store.write`."""


class Table:
    """A table of a store. Safe to use from any thread."""

    name: str
    """Without the engine's prefix."""

    def __init__(self, store: Connected) -> None:
        self._store = store
        self._dialect = store.read.dialect
        self._table = self._dialect.table(self.name)

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._store.read.rows(statement, values)
