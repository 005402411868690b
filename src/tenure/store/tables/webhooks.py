"""The table of webhooks."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from tenure import failpoints
from tenure.jobs.enqueue import CheckedJob
from tenure.jobs.ledger import EventFilter, LedgerPage, Webhook
from tenure.store import enqueue
from tenure.store.dialect import Statements
from tenure.store.rows import read_names, write_names
from tenure.store.tables import Table

if TYPE_CHECKING:
    from tenure.store.protocol import Database


class StoredWebhooks(Table):
    """The webhooks of a store."""

    name = "webhook"

    def every(self) -> list[Webhook]:
        """Return every webhook without its secret, by name."""
        d = self._dialect
        rows = self._rows(
            "SELECT name, id, url, events, types, queues, created_by, position,"
            f" {d.time('created_at')} FROM {self._table} ORDER BY name"
        )
        return [self._webhook_of(row) for row in rows]

    def target(self, name: str, id: str) -> tuple[str, str] | None:
        """Return the URL and the secret of a webhook, None if it was removed."""
        v = self._dialect.value
        statement = f"SELECT url, secret FROM {self._table} WHERE name = {v} AND id = {v}"
        rows = self._rows(statement, (name, id))
        return (rows[0][0], rows[0][1]) if rows else None

    def add(
        self,
        *,
        name: str,
        id: str,
        url: str,
        secret: str,
        events: tuple[str, ...],
        types: tuple[str, ...] | None,
        queues: tuple[str, ...] | None,
        actor: str,
    ) -> Future[bool]:
        """Add a webhook for transitions from now on.

        The future's result is False if the name is taken.
        """
        d = self._dialect
        position = self._store.read.ledger_end()
        lists = (write_names(events), write_names(types), write_names(queues))
        values = (name, id, url, secret, *lists, actor, position)
        statement = (
            f"INSERT INTO {self._table} (name, id, url, secret, events, types, queues, created_by,"
            f" position, created_at) VALUES ({d.values(9)}, {d.now}) ON CONFLICT DO NOTHING"
        )
        return self._store.write("operator", lambda db: db.changed(statement, values) == 1)

    def remove(self, name: str) -> Future[int]:
        """Delete a webhook and its secret."""
        statement = f"DELETE FROM {self._table} WHERE name = {self._dialect.value}"
        return self._store.write("operator", lambda db: db.changed(statement, (name,)))

    def next_transitions(self, hook: Webhook, limit: int) -> LedgerPage:
        """Look at up to `limit` entries after the position of `hook`; return those it wants."""
        wanted = EventFilter(events=hook.events, types=hook.types, queues=hook.queues)
        return self._store.read.transitions(hook.position, limit, wanted)

    def forward(
        self, hook: Webhook, deliveries: Sequence[CheckedJob], position: str
    ) -> Future[bool]:
        """Add the deliveries of the transitions up to `position`, and keep that position.

        The future's result is False, and nothing is added, if another process has done so since
        `hook` was read. A limit of the queue does not apply: what is not added now never would be.
        """
        return self._store.write(
            "webhook",
            lambda db: _forward(db, hook, deliveries, position),
            quiet=not deliveries,
        )

    def _webhook_of(self, row: Sequence[Any]) -> Webhook:
        name, id, url, events, types, queues, created_by, position, created = row
        return Webhook(
            name=name,
            id=id,
            url=url,
            events=read_names(events) or (),
            types=read_names(types),
            queues=read_names(queues),
            created_at=self._dialect.to_time(created),
            created_by=created_by,
            position=position,
        )


def positions(db: Statements) -> list[str]:
    """Return the position of each webhook: it still needs the transitions after that."""
    return [position for (position,) in db.rows(f"SELECT position FROM {_table(db)}")]


def _forward(db: Database, hook: Webhook, deliveries: Sequence[CheckedJob], position: str) -> bool:
    v = db.dialect.value
    advanced = db.changed(
        f"UPDATE {_table(db)} SET position = {v} WHERE name = {v} AND id = {v} AND position = {v}",
        (position, hook.name, hook.id, hook.position),
    )
    if not advanced:
        return False
    failpoints.hit("webhook.between_position_and_jobs")
    if deliveries:
        enqueue.add(db, deliveries)
    return True


def _table(db: Statements) -> str:
    return db.dialect.table(StoredWebhooks.name)
