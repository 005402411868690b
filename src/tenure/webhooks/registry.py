"""Making, listing and removing webhooks: `app.webhooks`."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Protocol
from urllib.parse import urlsplit

from tenure.errors import InvalidInput
from tenure.jobs import ids, payload
from tenure.jobs.webhook import Webhook
from tenure.lifecycle import EVENTS

MAX_WEBHOOKS = 100
"""Each of them reads the ledger once."""
MAX_URL = 2_000
"""Characters of a URL."""
BEGINNING = "whsec_"
"""What a secret begins with, as Standard Webhooks has it; 32 random bytes in base64 follow."""


class WebhookStore(Protocol):
    """The part of the store that keeps webhooks."""

    @property
    def read(self) -> WebhookReader: ...

    def add_webhook(self, **fields: Any) -> Future[bool]: ...

    def remove_webhook(self, name: str) -> Future[None]: ...


class WebhookReader(Protocol):
    """What is read of it."""

    def webhooks(self) -> list[Webhook]: ...

    def ledger_end(self) -> str: ...


class Webhooks:
    """The webhooks of one database. Servers, and workers beside it, deliver to them."""

    def __init__(self, keeper: Callable[[], WebhookStore], actor: str) -> None:
        self._keeper = keeper
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
        """Have moves from now on told to `url`; the secret that signs them, and the webhook.

        The secret is seen this once. Only moves of these `events` are told, of jobs of these
        `types` and `queues` if any are given. Raises InvalidInput.
        """
        payload.check_name(name, "webhook", "$.name")
        check_url(url, "$.url")
        wanted = frozenset(payload.several(events, "$.events"))
        if not wanted or not wanted.issubset(EVENTS):
            raise InvalidInput(f"name one or more of {', '.join(EVENTS)}", path="$.events")
        if len(self.list()) >= MAX_WEBHOOKS:
            raise InvalidInput(f"there are {MAX_WEBHOOKS} webhooks: remove some", path="$.name")
        keeper = self._keeper()
        secret = new_secret()
        added = keeper.add_webhook(
            name=name,
            id=ids.new_id(),
            url=url,
            secret=secret,
            events=tuple(sorted(wanted)),
            types=_names(types, "job type", "$.types"),
            queues=_names(queues, "queue", "$.queues"),
            actor=payload.check_label(actor or self._actor, "actor", "$.actor"),
            position=keeper.read.ledger_end(),
        )
        if not added.result():
            raise InvalidInput(f"there is a webhook called {name}: remove it first", path="$.name")
        return secret, self._named(name)

    def list(self) -> list[Webhook]:
        """Every webhook, without its secret."""
        return self._keeper().read.webhooks()

    def remove(self, name: str) -> Webhook:
        """Remove a webhook; what is yet to be delivered to it is dropped. Raises InvalidInput."""
        found = self._named(name)
        self._keeper().remove_webhook(name).result()
        return found

    def _named(self, name: str) -> Webhook:
        for hook in self.list():
            if hook.name == name:
                return hook
        raise InvalidInput(
            "there is no webhook of this name; `tenure webhooks list`", path="$.name"
        )


def new_secret() -> str:
    """A secret nobody can guess."""
    return BEGINNING + base64.b64encode(secrets.token_bytes(32)).decode()


def key_of(secret: str) -> bytes:
    """The bytes that sign; raises ValueError if it is no secret."""
    try:
        return base64.b64decode(secret.removeprefix(BEGINNING), validate=True)
    except binascii.Error as error:
        raise ValueError("the secret of a webhook is whsec_ and base64") from error


def check_url(url: object, path: str) -> str:
    """`url` if requests can be sent there; raises InvalidInput.

    Where it leads is checked at each delivery, for names lead elsewhere from one day to the next.
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
    """Names that are checked, each once; None if there are none."""
    names = () if given is None else payload.several(given, path)
    return tuple(sorted({payload.check_name(name, what, path) for name in names})) or None
