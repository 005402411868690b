"""The table of actions on all jobs of a filter, in the words of each database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from tenure.jobs.bulk_actions import Action, Bulk
from tenure.jobs.queries import Counted, Filter

MAX_KEPT = 1_000
"""Actions on record; of those that have ended, the oldest go when another is started."""

_read_filter = msgspec.json.Decoder(Filter).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What differs between the databases; `{value}` in a template stands for a parameter."""

    table: str
    now: str
    value: str
    key: str  # a parameter that is an id
    text: str  # a column of ids as it is read
    time: str  # a column of times as it is read
    skip: str  # at the end of a SELECT: lock the row, unless somebody else has

    def read(self, where: str) -> str:
        """Every action of a condition, newest first."""
        ids = {name: self.text.format(column=name) for name in ("id", "cursor")}
        times = {name: self.time.format(column=name) for name in ("created_at", "finished_at")}
        columns = ", ".join({**ids, **times}.get(name, name) for name in COLUMNS)
        return f"SELECT {columns} FROM {self.table} AS bulk {where} ORDER BY bulk.id DESC LIMIT "


COLUMNS = (
    *("id", "action", "filter", "more_retries", "actor", "created_at", "finished_at"),
    *("stopped_by", "total", "exact", "changed", "refused", "batches", "cursor"),
)
SQLITE = Words(
    table="tenure_bulk",
    now="(SELECT at FROM tenure_now)",
    value="?",
    key="?",
    text="{column}",
    time="{column}",
    skip="",
)
POSTGRES = Words(
    table="{s}.bulk",
    now="(SELECT {s}.clock())",
    value="%s",
    key="%s::uuid",
    text="{column}::text",
    time="{column} AT TIME ZONE 'UTC'",
    skip="FOR UPDATE SKIP LOCKED",
)


class BulkTable:
    """The writing side, inside the transaction of its database."""

    def __init__(self, words: Words, run: Callable[[str, Sequence[Any]], Any]) -> None:
        """`run` executes a statement and returns its cursor."""
        self._words = words
        self._run = run

    def add(
        self,
        *,
        id: str,
        action: Action,
        filter: Filter,
        more_retries: int,
        actor: str,
        total: Counted,
    ) -> None:
        """Begin, by the store's clock. Those that ended long ago make room."""
        w = self._words
        text = msgspec.json.encode(filter).decode()
        self._run(
            f"INSERT INTO {w.table} (id, action, filter, more_retries, actor, total, exact,"
            f" created_at) VALUES ({w.key}, {', '.join([w.value] * 6)}, {w.now})",
            (id, str(action), text, more_retries, actor, total.jobs, total.exact),
        )
        self._run(
            f"DELETE FROM {w.table} WHERE finished_at IS NOT NULL AND id NOT IN"
            f" (SELECT id FROM {w.table} ORDER BY id DESC LIMIT {w.value})",
            (MAX_KEPT,),
        )

    def hold(self, bulk: Bulk) -> bool:
        """Lock an action; False if it has gone on or ended since it was read, or does just now."""
        w = self._words
        return bool(
            self._run(
                f"SELECT 1 FROM {w.table} WHERE id = {w.key} AND batches = {w.value}"
                f" AND finished_at IS NULL {w.skip}",
                (bulk.id, bulk.batches),
            ).fetchall()
        )

    def advance(self, bulk: Bulk, *, ended: bool) -> None:
        """Write down how far it has come by one batch."""
        w = self._words
        self._run(
            f"UPDATE {w.table} SET cursor = {w.key}, changed = {w.value}, refused = {w.value},"
            f" batches = batches + 1, finished_at = {w.now if ended else 'NULL'}"
            f" WHERE id = {w.key}",
            (bulk.cursor, bulk.changed, bulk.refused, bulk.id),
        )

    def stop(self, bulk_id: str, actor: str) -> None:
        """End an action early; one that has ended stays as it is."""
        w = self._words
        self._run(
            f"UPDATE {w.table} SET finished_at = {w.now}, stopped_by = {w.value}"
            f" WHERE id = {w.key} AND finished_at IS NULL",
            (actor, bulk_id),
        )


def bulk_of(row: Sequence[Any], to_time: Callable[[Any], datetime]) -> Bulk:
    """A row of `Words.read`."""
    values = dict(zip(COLUMNS, row, strict=True))
    finished = values["finished_at"]
    values |= {
        "action": Action(values["action"]),
        "filter": _read_filter(values["filter"]),
        "created_at": to_time(values["created_at"]),
        "finished_at": None if finished is None else to_time(finished),
        "exact": bool(values["exact"]),
    }
    return Bulk(**values)
