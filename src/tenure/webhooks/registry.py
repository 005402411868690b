"""Making, listing and removing webhooks, and following the ledger for them: `app.webhooks`.

A delivery is a job of the type `tenure.webhook`. What becomes of it is the courier's matter
(`courier.py`); here the moves of the ledger become such jobs, each once.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from tenure.errors import InvalidInput
from tenure.jobs import ids, payload
from tenure.jobs.checked_job import CheckedJob
from tenure.jobs.enqueue import policy_of
from tenure.jobs.ledger import EventFilter, LedgerEvent, LedgerPage
from tenure.jobs.reserved import WEBHOOK, WEBHOOK_QUEUE
from tenure.jobs.webhook import Webhook
from tenure.lifecycle import EVENTS
from tenure.wire import responses

MAX_WEBHOOKS = 100
"""Each of them reads the ledger once."""
MAX_URL = 2_000
"""Characters of a URL."""
BITE = 500
"""Moves that one step looks at, for each webhook."""
BEGINNING = "whsec_"
"""What a secret begins with, as Standard Webhooks has it; 32 random bytes in base64 follow."""
MAX_RETRIES = 10
BACKOFF = policy_of({"base": 5, "cap": 3600}, "$.backoff")
ATTEMPT_SECONDS = 30.0
"""For one attempt of a delivery; the request itself has less."""


class Keeper(Protocol):
    """What keeps webhooks; the store does."""

    @property
    def read(self) -> Reader:
        """The reading side."""

    def add_webhook(self, **fields: Any) -> Future[bool]:
        """Keep a new one; False if the name is taken."""

    def remove_webhook(self, name: str) -> Future[None]:
        """Remove one."""

    def forward(
        self, hook: Webhook, deliveries: Sequence[CheckedJob], position: str
    ) -> Future[bool]:
        """Add deliveries and move the position of a webhook; False if somebody else has."""


class Reader(Protocol):
    """What is read of the store here."""

    def webhooks(self) -> list[Webhook]:
        """Every webhook."""

    def webhook_target(self, name: str, id: str) -> tuple[str, str] | None:
        """Its URL and secret."""

    def transitions(self, after: str, limit: int, wanted: EventFilter) -> LedgerPage:
        """A stretch of the ledger."""

    def ledger_end(self) -> str:
        """The position of the newest move."""


class Webhooks:
    """The webhooks of one database. Servers, and workers beside it, deliver to them."""

    def __init__(self, keeper: Callable[[], Keeper], actor: str) -> None:
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

    def target(self, name: str, id: str) -> tuple[str, str] | None:
        """The URL and the secret of a webhook, for who delivers; None if it is gone."""
        return self._keeper().read.webhook_target(name, id)

    def step(self, *, without_errors: bool = False) -> int:
        """Make jobs of the next moves for every webhook; how many have more moves to look at.

        `withheld`: without errors, which may hold what is redacted.
        """
        keeper = self._keeper()
        behind = 0
        for hook in keeper.read.webhooks():
            wanted = EventFilter(events=hook.events, types=hook.types, queues=hook.queues)
            transitions = keeper.read.transitions(hook.position, BITE, wanted)
            if transitions.position != hook.position:
                deliveries = deliveries_of(hook, transitions.told, without_errors=without_errors)
                keeper.forward(hook, deliveries, transitions.position).result()
            behind += transitions.more
        return behind

    def _named(self, name: str) -> Webhook:
        for hook in self.list():
            if hook.name == name:
                return hook
        raise InvalidInput(
            "there is no webhook of this name; `tenure webhooks list`", path="$.name"
        )


def deliveries_of(
    hook: Webhook, told: Sequence[LedgerEvent], *, without_errors: bool
) -> list[CheckedJob]:
    """The jobs that tell a webhook of these moves; none of moves of such jobs themselves."""
    news = [one for one in told if one.type != WEBHOOK]
    return [
        CheckedJob(
            id=id,
            type=WEBHOOK,
            queue=WEBHOOK_QUEUE,
            payload=payload.canonical(
                {
                    "hook": hook.name,
                    "hook_id": hook.id,
                    "event": _event(one, without_errors=without_errors),
                }
            ),
            max_retries=MAX_RETRIES,
            timeout=ATTEMPT_SECONDS,
            backoff=BACKOFF,
            actor="webhooks",
        )
        for id, one in zip(ids.new_ids(len(news)), news, strict=True)
    ]


def _event(told: LedgerEvent, *, without_errors: bool) -> Any:
    """A move as the event stream has it."""
    return msgspec.to_builtins(
        responses.event_body(told.without_errors() if without_errors else told)
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
