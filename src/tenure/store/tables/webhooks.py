"""The table of webhooks, in the words of each database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tenure.jobs.webhook import Webhook
from tenure.store.rows import read_names, write_names


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What differs between the databases; `{value}` in a template stands for a parameter."""

    table: str
    now: str
    value: str
    time: str  # a column as it is read

    def read(self) -> str:
        """Every webhook, without its secret."""
        created = self.time.format(column="created_at")
        return (
            f"SELECT name, id, url, events, types, queues, {created}, created_by, position"
            f" FROM {self.table} ORDER BY name"
        )

    def positions(self) -> str:
        """Up to where in the ledger each has been told."""
        return f"SELECT position FROM {self.table}"

    def target(self) -> str:
        """Where the deliveries of one go, and what signs them."""
        v = self.value
        return f"SELECT url, secret FROM {self.table} WHERE name = {v} AND id = {v}"

    def add(self) -> str:
        """A new one, unless its name is there already."""
        v = self.value
        return (
            f"INSERT INTO {self.table} (name, id, url, secret, events, types, queues, created_by,"
            f" position, created_at) VALUES ({', '.join([v] * 9)}, {self.now})"
            " ON CONFLICT DO NOTHING"
        )

    def remove(self) -> str:
        """With its secret."""
        return f"DELETE FROM {self.table} WHERE name = {self.value}"

    def advance(self) -> str:
        """Unless somebody else has: then nobody's position is the one that was read."""
        v = self.value
        return (
            f"UPDATE {self.table} SET position = {v}"
            f" WHERE name = {v} AND id = {v} AND position = {v}"
        )


SQLITE = Words(
    table="tenure_webhook", now="(SELECT at FROM tenure_now)", value="?", time="{column}"
)
POSTGRES = Words(
    table="{s}.webhook",
    now="(SELECT {s}.clock())",
    value="%s",
    time="{column} AT TIME ZONE 'UTC'",
)


class WebhookTable:
    """The writing side, inside the transaction of its database."""

    def __init__(self, words: Words, run: Callable[[str, Sequence[Any]], Any]) -> None:
        """`run` executes a statement and returns its cursor."""
        self._words = words
        self._run = run

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
        position: str,
    ) -> bool:
        """Add one that is told of moves after `position`; False if its name is taken."""
        lists = (write_names(events), write_names(types), write_names(queues))
        values = (name, id, url, secret, *lists, actor, position)
        return bool(self._run(self._words.add(), values).rowcount)

    def positions(self) -> list[str]:
        """Up to where in the ledger each has been told: the moves behind that are still needed."""
        return [position for (position,) in self._run(self._words.positions(), ()).fetchall()]

    def remove(self, name: str) -> None:
        """Remove one."""
        self._run(self._words.remove(), (name,))

    def advance(self, hook: Webhook, position: str) -> bool:
        """Move the position; False if it is not where it was when the webhook was read."""
        values = (position, hook.name, hook.id, hook.position)
        return bool(self._run(self._words.advance(), values).rowcount)


def webhook_of(row: Sequence[Any], to_time: Callable[[Any], datetime]) -> Webhook:
    """A row of `Words.read`."""
    name, id, url, events, types, queues, created, created_by, position = row
    return Webhook(
        name=name,
        id=id,
        url=url,
        events=read_names(events) or (),
        types=read_names(types),
        queues=read_names(queues),
        created_at=to_time(created),
        created_by=created_by,
        position=position,
    )
