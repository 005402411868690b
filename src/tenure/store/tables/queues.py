"""The table of queues that have settings."""

from __future__ import annotations

from tenure.store.dialect import Statements


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
        db.changed(
            f"UPDATE {table} SET paused_at = CASE WHEN {v} THEN {d.now} END, paused_by = {v},"
            f" pause_reason = {v} WHERE name = {v} AND (paused_at IS NULL) = {v}",
            (paused, actor, reason, name, paused),
        )
    if max_pending is not None:
        limit = None if max_pending < 0 else max_pending
        db.changed(f"UPDATE {table} SET max_pending = {v} WHERE name = {v}", (limit, name))
