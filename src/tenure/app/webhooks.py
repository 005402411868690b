"""Making, listing and removing webhooks: `app.webhooks`."""

from __future__ import annotations

from collections.abc import Iterable

from tenure.app.core import Core, Noun
from tenure.errors import InvalidInput
from tenure.lifecycle import EVENTS
from tenure.rules.ledger import Webhook
from tenure.rules.tokens import ANY_REST
from tenure.store.tables import webhooks
from tenure.values import ids
from tenure.values.names import check_name, list_of_names, some_or_any
from tenure.webhooks import deliveries

MAX_WEBHOOKS = 100
"""Each of them is one more reader of the ledger."""
MAX_NAME = 100
"""Characters of a name, which is a part of the name of a queue."""


class Webhooks(Noun):
    """The webhooks of one database. Servers, and workers beside it, deliver to them."""

    def create(
        self,
        name: str,
        url: str,
        events: Iterable[str],
        *,
        types: Iterable[str] | None = None,
        queues: Iterable[str] | None = None,
        actor: str | None = None,
    ) -> tuple[str, Webhook]:
        """Notify a URL of transitions from now on; return the secret that signs, and the webhook.

        The secret is shown only this once.

        - `name`: 1 to 100 of `A-Z a-z 0-9 _ : - .`.
        - `url`: http or https, at most 2,000 characters, without user, password and fragment.
        - `events`: which transitions, one or more of `tenure.lifecycle.EVENTS`, such as `failed`.
        - `types`, `queues`: only of jobs of these types and queues. Default: None, of all.
        - `actor`: who makes it. Default: the application's actor.

        Raises InvalidInput, also if there are 100 webhooks already.
        """
        from tenure.webhooks import request  # with ssl and all

        check_name(name, "webhook", "$.name")
        if len(name) > MAX_NAME:
            raise InvalidInput(f"use at most {MAX_NAME} characters", path="$.name")
        request.check_url(url, "$.url")
        wanted = frozenset(list_of_names(events, "$.events"))
        if not wanted or not wanted.issubset(EVENTS):
            raise InvalidInput(f"name one or more of {', '.join(EVENTS)}", path="$.events")
        if len(self.list()) >= MAX_WEBHOOKS:
            raise InvalidInput(f"there are {MAX_WEBHOOKS} webhooks: remove some", path="$.name")
        secret = request.new_secret()
        store = self._core.store
        hook = Webhook(
            name=name,
            id=ids.new_id(),
            url=url,
            events=tuple(sorted(wanted)),
            types=_names(types, "job type", "$.types"),
            queues=_names(queues, "queue", "$.queues"),
            created_at=store.read.clock(),
            created_by=self._core.signed(actor),
            position=store.read.ledger_end(),
        )
        if not store.write("operator", lambda db: webhooks.add(db, hook, secret)).result():
            raise InvalidInput(f"there is a webhook called {name}: remove it first", path="$.name")
        return secret, hook

    def list(self) -> list[Webhook]:
        """Return every webhook, without its secret."""
        return webhooks.every(self._core.store.read)

    def remove(self, name: str) -> Webhook:
        """Remove a webhook; return it. What is not delivered yet is dropped.

        Raises InvalidInput if no webhook has this name.
        """
        found = self._named(name)
        self._core.store.write("operator", lambda db: webhooks.remove(db, name)).result()
        return found

    def _named(self, name: str) -> Webhook:
        for hook in self.list():
            if hook.name == name:
                return hook
        raise InvalidInput(
            "there is no webhook of this name; `tenure webhooks list`", path="$.name"
        )


def _names(given: Iterable[str] | None, what: str, path: str) -> tuple[str, ...] | None:
    """Return valid names, each once; None for all there are."""
    names = some_or_any(given, what, path)
    return None if names is None else tuple(sorted({check_name(n, what, path) for n in names}))


def queues_of_webhooks(core: Core) -> set[str]:
    """Return the queues of the deliveries to each webhook."""
    return {deliveries.queue_of(hook.name) for hook in webhooks.every(core.store.read)}


def queues_with_deliveries(core: Core) -> set[str]:
    """Return the queues with pending deliveries, also to webhooks that were removed."""
    return set(core.store.read.lanes((deliveries.QUEUES + ANY_REST,)))
