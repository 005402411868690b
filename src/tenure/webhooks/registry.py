"""Making, listing and removing webhooks: `app.webhooks`."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Protocol
from urllib.parse import urlsplit

from tenure.errors import InvalidInput
from tenure.jobs import ids
from tenure.jobs.ledger import Webhook
from tenure.jobs.names import check_label, check_name, list_of_names
from tenure.lifecycle import EVENTS

MAX_WEBHOOKS = 100
"""Each of them is one more reader of the ledger."""
MAX_URL = 2_000
"""Characters of a URL."""
BEGINNING = "whsec_"
"""The beginning of a secret, as in Standard Webhooks; 32 random bytes in base64 follow."""


class WebhookTable(Protocol):
    """Where webhooks are stored; see `StoredWebhooks`."""

    def every(self) -> list[Webhook]: ...

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
    ) -> Future[bool]: ...

    def remove(self, name: str) -> Future[int]: ...


class Webhooks:
    """The webhooks of one database. Servers, and workers beside it, deliver to them."""

    def __init__(self, table: Callable[[], WebhookTable], actor: str) -> None:
        self._table = table
        self._actor = actor

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

        - `name`: 1 to 128 of `A-Z a-z 0-9 _ : - .`.
        - `url`: http or https, at most 2,000 characters, without user, password and fragment.
        - `events`: which transitions, one or more of `tenure.lifecycle.EVENTS`, such as `failed`.
        - `types`, `queues`: only of jobs of these types and queues. Default: None, of all.
        - `actor`: who makes it. Default: the application's actor.

        Raises InvalidInput, also if there are 100 webhooks already.
        """
        check_name(name, "webhook", "$.name")
        check_url(url, "$.url")
        wanted = frozenset(list_of_names(events, "$.events"))
        if not wanted or not wanted.issubset(EVENTS):
            raise InvalidInput(f"name one or more of {', '.join(EVENTS)}", path="$.events")
        if len(self.list()) >= MAX_WEBHOOKS:
            raise InvalidInput(f"there are {MAX_WEBHOOKS} webhooks: remove some", path="$.name")
        secret = new_secret()
        added = self._table().add(
            name=name,
            id=ids.new_id(),
            url=url,
            secret=secret,
            events=tuple(sorted(wanted)),
            types=_names(types, "job type", "$.types"),
            queues=_names(queues, "queue", "$.queues"),
            actor=check_label(actor or self._actor, "actor", "$.actor"),
        )
        if not added.result():
            raise InvalidInput(f"there is a webhook called {name}: remove it first", path="$.name")
        return secret, self._named(name)

    def list(self) -> list[Webhook]:
        """Return every webhook, without its secret."""
        return self._table().every()

    def remove(self, name: str) -> Webhook:
        """Remove a webhook; return it. What is not delivered yet is dropped.

        Raises InvalidInput if no webhook has this name.
        """
        found = self._named(name)
        self._table().remove(name).result()
        return found

    def _named(self, name: str) -> Webhook:
        for hook in self.list():
            if hook.name == name:
                return hook
        raise InvalidInput(
            "there is no webhook of this name; `tenure webhooks list`", path="$.name"
        )


def new_secret() -> str:
    """Return a random secret of 256 bits."""
    return BEGINNING + base64.b64encode(secrets.token_bytes(32)).decode()


def key_of(secret: str) -> bytes:
    """Return the bytes that sign; raises ValueError for anything but a secret."""
    try:
        return base64.b64decode(secret.removeprefix(BEGINNING), validate=True)
    except binascii.Error as error:
        raise ValueError("the secret of a webhook is whsec_ and base64") from error


def check_url(url: object, path: str) -> str:
    """Return `url` if requests can be sent there; raises InvalidInput.

    Each delivery checks its address, because a name can resolve to another one every day.
    """
    text = url if isinstance(url, str) and len(url) <= MAX_URL else ""
    fault = InvalidInput(
        "give a URL such as https://example.com/hook: http or https, visible ASCII, at most"
        f" {MAX_URL} characters, without user, password and fragment",
        path=path,
    )
    if not text.isascii() or not text.isprintable() or set(text) & set(' "<>\\^`{|}#'):
        raise fault
    try:
        parts = urlsplit(text)
        known = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a broken IPv6 address
        raise fault from None
    if not known or "@" in parts.netloc:
        raise fault
    return text


def _names(given: Iterable[str] | None, what: str, path: str) -> tuple[str, ...] | None:
    """Return valid names, each once; None if there are none."""
    names = () if given is None else list_of_names(given, path)
    return tuple(sorted({check_name(name, what, path) for name in names})) or None
