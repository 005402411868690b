"""The table of webhooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tenure import failpoints
from tenure.rules.jobs import CheckedJob
from tenure.rules.ledger import Webhook
from tenure.store import enqueue
from tenure.store.database import Reads, Statements
from tenure.store.rows import read_names, read_rows, write_names

if TYPE_CHECKING:
    from tenure.store.database import Database

COLUMNS = (
    *("name", "id", "url", "events", "types", "queues", "created_by", "position"),
    "created_at",
)


def every(db: Reads) -> list[Webhook]:
    """Return every webhook without its secret, by name."""
    hooks = []
    for fields in read_rows(db, COLUMNS, f"{db.dialect.table('webhook')} ORDER BY name"):
        lists = {name: read_names(fields[name]) for name in ("events", "types", "queues")}
        hooks.append(Webhook(**fields | lists))
    return hooks


def target(db: Reads, name: str, id: str) -> tuple[str, str] | None:
    """Return the URL and the secret of a webhook, None if it was removed."""
    d = db.dialect
    where = f"WHERE name = {d.value} AND id = {d.value}"
    rows = db.rows(f"SELECT url, secret FROM {d.table('webhook')} {where}", (name, id))
    return (rows[0][0], rows[0][1]) if rows else None


def positions(db: Reads) -> list[str]:
    """Return the position of each webhook: it still needs the transitions after that."""
    return [at for (at,) in db.rows(f"SELECT position FROM {db.dialect.table('webhook')}")]


def add(db: Statements, hook: Webhook, secret: str) -> bool:
    """Add a webhook for the transitions after its position. Returns False if the name is taken."""
    d = db.dialect
    lists = [write_names(names) for names in (hook.events, hook.types, hook.queues)]
    at = d.to_bound(hook.created_at)
    added = db.changed(
        f"INSERT INTO {d.table('webhook')} ({', '.join(COLUMNS)}, secret)"
        f" VALUES ({d.values(10)}) ON CONFLICT DO NOTHING",
        (hook.name, hook.id, hook.url, *lists, hook.created_by, hook.position, at, secret),
    )
    return added == 1


def remove(db: Statements, name: str) -> None:
    d = db.dialect
    db.changed(f"DELETE FROM {d.table('webhook')} WHERE name = {d.value}", (name,))


def forward(db: Database, hook: Webhook, deliveries: Sequence[CheckedJob], position: str) -> bool:
    """Add the deliveries of the transitions up to `position`, and keep that position.

    Returns False, and adds nothing, if another process has done so since `hook` was read. A limit
    of the queue does not apply: what is not added now never would be.
    """
    table, v = db.dialect.table("webhook"), db.dialect.value
    advanced = db.changed(
        f"UPDATE {table} SET position = {v} WHERE name = {v} AND id = {v} AND position = {v}",
        (position, hook.name, hook.id, hook.position),
    )
    if not advanced:
        return False
    failpoints.hit("webhook.between_position_and_jobs")
    if deliveries:
        enqueue.add(db, deliveries)
    return True
