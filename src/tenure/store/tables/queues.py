"""The table of queues that have settings, and every queue with its jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tenure.rules.stats import QueueQuery, QueueState
from tenure.store.database import Statements
from tenure.store.tables import limits

if TYPE_CHECKING:
    from tenure.store.reader import Reader

FIRST = {
    "name": "name",
    "jobs": "pending + processing DESC, name",
    "attention": "CASE WHEN paused_at IS NOT NULL AND pending > 0 OR pending >= max_pending"
    " THEN 0 ELSE 1 END, CASE WHEN due_at IS NULL THEN 1 ELSE 0 END, due_at,"
    " pending + processing DESC, name",
}
"""The orders of queues. For attention: what is paused or full with jobs, then the longest due."""


def set_queue(
    db: Statements,
    name: str,
    *,
    paused: bool | None = None,
    max_pending: int | None = None,
    actor: str,
    reason: str | None = None,
) -> None:
    """Pause or resume a queue (None: leave it), set its limit (None: leave it, -1: no limit)."""
    d = db.dialect
    table, v = d.table("queue"), d.value
    db.changed(f"INSERT INTO {table} (name) VALUES ({v}) ON CONFLICT DO NOTHING", (name,))
    if paused is not None:
        db.changed(d.pause("queue", f"name = {v}"), (paused, actor, reason, name, paused))
    if max_pending is not None:
        limit = None if max_pending < 0 else max_pending
        db.changed(f"UPDATE {table} SET max_pending = {v} WHERE name = {v}", (limit, name))


def listed(read: Reader, wanted: QueueQuery) -> tuple[list[QueueState], int]:
    """Return the queues of a query with jobs or settings, and how many there are without a limit.

    They are counted and put in order where they are stored: fifty thousand rows take longer to
    fetch than to count.
    """
    d = read.dialect
    where, values = d.in_queues("name", wanted.within)
    for condition, value in (
        (f"name = {d.value}", wanted.name),
        (f"replace(lower(name), {d.value}, '') <> lower(name)", (wanted.search or "").lower()),
        (f"name > {d.value}", wanted.after),
    ):
        if value:
            where, values = f"{where} AND {condition}", [*values, value]
    one = wanted.name is not None
    statement = f"{of_all(read, one=one)} WHERE {where}"
    statement += f" ORDER BY {FIRST[wanted.order]}"
    if wanted.limit is not None:
        statement += f" LIMIT {int(wanted.limit)}"
    ahead = [wanted.name] * (read.heads.count("{only}") + 1) if one else []
    rows = read.stats.counted(statement, (*ahead, *values))
    some = None if wanted.limit is None and wanted.name is None else [name for name, *_ in rows]
    limited = limits.read(read, some)
    return [_state(read, row, limited) for row in rows], rows[0][-1] if rows else 0


def _state(read: Reader, row: Sequence[Any], limited: limits.Limited) -> QueueState:
    name, paused, most, pending, processing, oldest, reason, _ = row
    time = read.dialect.time_or_none
    state = (name, time(paused), most, pending, processing, time(oldest), reason)
    return QueueState(*state, *limited.get(name, ()))


def heads(read: Reader, only: str = "") -> str:
    """The heads of all lanes, or of those of one queue: `only` is a condition."""
    return read.heads.replace("{only}", only).replace("{others}", "AND false" if only else "")


def of_all(read: Reader, *, one: bool = False) -> str:
    """Select all queues, or `one` whose name are the first values, with `{parts}` of counts."""
    d = read.dialect
    only = f"AND queue = {d.value}" if one else ""
    return f"""{heads(read, only)}
SELECT name, {d.time("paused_at")}, max_pending, pending, processing, {d.time("due_at")},
    pause_reason, count(*) OVER ()
FROM (
SELECT name, max(paused_at) AS paused_at, max(max_pending) AS max_pending,
    CAST(sum(pending) AS bigint) AS pending, CAST(sum(processing) AS bigint) AS processing,
    min(due_at) AS due_at, max(pause_reason) AS pause_reason
FROM (
    SELECT name, paused_at, max_pending, 0 AS pending, 0 AS processing, NULL AS due_at,
        pause_reason, 1 AS setting
    FROM {d.table("queue")}
    UNION ALL SELECT queue, NULL, NULL, 0, 0, run_at, NULL, 0 FROM head WHERE run_at <= {d.now}
    UNION ALL SELECT queue, NULL, NULL, CASE status WHEN 'pending' THEN jobs ELSE 0 END,
        CASE status WHEN 'processing' THEN jobs ELSE 0 END, NULL, NULL, 0
    FROM ({{parts}}) AS counted WHERE status IN ('pending', 'processing') {only}
    UNION ALL SELECT queue, NULL, NULL, 0, 0, NULL, NULL, 1 FROM {d.table("queue_limit")}
) AS part GROUP BY name
HAVING sum(pending) <> 0 OR sum(processing) <> 0 OR max(setting) = 1) AS queue
"""
