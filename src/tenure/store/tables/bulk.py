"""The table of bulk actions: one action on all jobs of a filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tenure.jobs.bulk_actions import Action, Bulk
from tenure.jobs.queries import Counted, Filter
from tenure.store.dialect import Reads, Statements
from tenure.store.rows import fields_of, selected

MAX_KEPT = 1_000
"""Actions on record. When an action starts, the oldest of those that have ended are deleted."""

COLUMNS = (
    *("id", "action", "filter", "more_retries", "actor", "created_at", "finished_at"),
    *("stopped_by", "total", "exact", "changed", "refused", "batches", "cursor"),
)

_read_filter = msgspec.json.Decoder(Filter).decode


def get(db: Reads, bulk_id: str) -> Bulk | None:
    """Return an action, None if it is unknown."""
    d = db.dialect
    found = _read(db, f"WHERE id = {d.id_value}", (bulk_id,)) if d.is_id(bulk_id) else []
    return found[0] if found else None


def latest(db: Reads, limit: int, *, unfinished: bool = False) -> list[Bulk]:
    """Return actions, newest first."""
    where = "WHERE finished_at IS NULL" if unfinished else ""
    return _read(db, f"{where} ORDER BY bulk.id DESC LIMIT {db.dialect.value}", (limit,))


def _read(db: Reads, rest: str, values: Sequence[Any]) -> list[Bulk]:
    d = db.dialect
    statement = f"SELECT {selected(d, COLUMNS)} FROM {d.table('bulk')} AS bulk {rest}"
    return [_bulk_of(fields_of(d, COLUMNS, row)) for row in db.rows(statement, values)]


def _bulk_of(fields: dict[str, Any]) -> Bulk:
    read = {
        "action": Action(fields["action"]),
        "filter": _read_filter(fields["filter"]),
        "exact": bool(fields["exact"]),
    }
    return Bulk(**fields | read)


def start(
    db: Statements,
    *,
    id: str,
    action: Action,
    filter: Filter,
    more_retries: int,
    actor: str,
    total: Counted,
) -> None:
    """Add an action that begins now, by the store's clock."""
    d = db.dialect
    table, text = d.table("bulk"), msgspec.json.encode(filter).decode()
    db.changed(
        f"INSERT INTO {table} (id, action, filter, more_retries, actor, total, exact, created_at)"
        f" VALUES ({d.id_value}, {d.values(6)}, {d.now})",
        (id, str(action), text, more_retries, actor, total.jobs, total.exact),
    )
    db.changed(
        f"DELETE FROM {table} WHERE finished_at IS NOT NULL AND id NOT IN"
        f" (SELECT id FROM {table} ORDER BY id DESC LIMIT {d.value})",
        (MAX_KEPT,),
    )


def stop(db: Statements, bulk_id: str, actor: str) -> None:
    """End an action early. One that has ended stays unchanged."""
    d = db.dialect
    db.changed(
        f"UPDATE {d.table('bulk')} SET finished_at = {d.now}, stopped_by = {d.value}"
        f" WHERE id = {d.id_value} AND finished_at IS NULL",
        (actor, bulk_id),
    )


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
