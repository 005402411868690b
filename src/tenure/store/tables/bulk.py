"""The table of bulk actions: one action on all jobs of a filter."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import msgspec

from tenure.jobs.bulk_actions import Action, Bulk
from tenure.jobs.queries import Counted, Filter
from tenure.store.dialect import Statements
from tenure.store.tables import Table

MAX_KEPT = 1_000
"""Actions on record. When an action starts, the oldest of those that have ended are deleted."""

COLUMNS = (
    *("id", "action", "filter", "more_retries", "actor", "created_at", "finished_at"),
    *("stopped_by", "total", "exact", "changed", "refused", "batches", "cursor"),
)

_read_filter = msgspec.json.Decoder(Filter).decode


class StoredBulks(Table):
    """The bulk actions of a store."""

    name = "bulk"

    def get(self, bulk_id: str) -> Bulk | None:
        """Return an action, None if it is unknown."""
        d = self._dialect
        if not d.is_id(bulk_id):
            return None
        found = self._read(f"WHERE id = {d.id_value} ORDER BY bulk.id", (bulk_id,))
        return found[0] if found else None

    def latest(self, limit: int, *, unfinished: bool = False) -> list[Bulk]:
        """Return actions, newest first."""
        where = "WHERE finished_at IS NULL" if unfinished else ""
        rest = f"{where} ORDER BY bulk.id DESC LIMIT {self._dialect.value}"
        return self._read(rest, (limit,))

    def start(
        self,
        *,
        id: str,
        action: Action,
        filter: Filter,
        more_retries: int,
        actor: str,
        total: Counted,
    ) -> Future[None]:
        """Add an action that begins now, by the store's clock."""
        d = self._dialect
        text = msgspec.json.encode(filter).decode()
        values = (id, str(action), text, more_retries, actor, total.jobs, total.exact)

        def add(db: Statements) -> None:
            db.changed(
                f"INSERT INTO {self._table} (id, action, filter, more_retries, actor, total, exact,"
                f" created_at) VALUES ({d.id_value}, {d.values(6)}, {d.now})",
                values,
            )
            db.changed(
                f"DELETE FROM {self._table} WHERE finished_at IS NOT NULL AND id NOT IN"
                f" (SELECT id FROM {self._table} ORDER BY id DESC LIMIT {d.value})",
                (MAX_KEPT,),
            )

        return self._store.write("bulk", add)

    def stop(self, bulk_id: str, actor: str) -> Future[int]:
        """End an action early. One that has ended stays unchanged."""
        d = self._dialect
        statement = (
            f"UPDATE {self._table} SET finished_at = {d.now}, stopped_by = {d.value}"
            f" WHERE id = {d.id_value} AND finished_at IS NULL"
        )
        return self._store.write("bulk", lambda db: db.changed(statement, (actor, bulk_id)))

    def _read(self, rest: str, values: Sequence[Any]) -> list[Bulk]:
        d = self._dialect
        columns = {name: d.id(name) for name in ("id", "cursor")}
        columns |= {name: d.time(name) for name in ("created_at", "finished_at")}
        selected = ", ".join(columns.get(name, name) for name in COLUMNS)
        rows = self._rows(f"SELECT {selected} FROM {self._table} AS bulk {rest}", values)
        return [self._bulk_of(row) for row in rows]

    def _bulk_of(self, row: Sequence[Any]) -> Bulk:
        values = dict(zip(COLUMNS, row, strict=True))
        values |= {
            "action": Action(values["action"]),
            "filter": _read_filter(values["filter"]),
            "created_at": self._dialect.to_time(values["created_at"]),
            "finished_at": self._dialect.time_or_none(values["finished_at"]),
            "exact": bool(values["exact"]),
        }
        return Bulk(**values)


def hold(db: Statements, bulk: Bulk) -> bool:
    """Lock the row of `bulk` until the end of the transaction.

    Returns False if the action advanced or ended since `bulk` was read, or if another transaction
    holds the lock.
    """
    d = db.dialect
    statement = (
        f"SELECT 1 FROM {d.table('bulk')} WHERE id = {d.id_value} AND batches = {d.value}"
        f" AND finished_at IS NULL {d.skip_locked}"
    )
    return bool(db.rows(statement, (bulk.id, bulk.batches)))


def advance(db: Statements, bulk: Bulk, *, ended: bool) -> None:
    """Store the cursor and the counts of `bulk` after one more batch."""
    d = db.dialect
    db.changed(
        f"UPDATE {d.table('bulk')} SET cursor = {d.id_value}, changed = {d.value},"
        f" refused = {d.value}, batches = batches + 1,"
        f" finished_at = {d.now if ended else 'NULL'} WHERE id = {d.id_value}",
        (bulk.cursor, bulk.changed, bulk.refused, bulk.id),
    )
