"""Deliveries: the jobs that carry transitions to webhooks.

A delivery is a job of the type `tenure.webhook`. `forward` reads the ledger for each webhook and
adds one such job for each transition, each once. `worker/webhook_delivery.py` runs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import msgspec

from tenure.jobs import ids, payload
from tenure.jobs.enqueue import CheckedJob, policy_of
from tenure.jobs.ledger import LedgerEvent, LedgerPage, Webhook
from tenure.wire import responses

WEBHOOK = "tenure.webhook"
"""The type of deliveries. They are signed when they are sent, so only Tenure adds them."""
WEBHOOK_QUEUE = "tenure.webhooks"
BATCH = 500
"""Transitions that one step looks at, for each webhook."""
MAX_RETRIES = 10
BACKOFF = policy_of({"base": 5, "cap": 3600}, "$.backoff")
ATTEMPT_SECONDS = 30.0
"""Limit of one attempt; the request itself has less."""


class DeliveryTable(Protocol):
    """The webhooks and the ledger; see `StoredWebhooks`."""

    def every(self) -> list[Webhook]: ...

    def next_transitions(self, hook: Webhook, limit: int) -> LedgerPage: ...

    def forward(
        self, hook: Webhook, deliveries: Sequence[CheckedJob], position: str
    ) -> Future[bool]: ...


def forward(webhooks: DeliveryTable, *, without_errors: bool = False) -> int:
    """Add delivery jobs for the next transitions of every webhook; return how many have more.

    `without_errors` leaves out the errors of attempts, which may hold redacted values.
    """
    behind = 0
    for hook in webhooks.every():
        transitions = webhooks.next_transitions(hook, BATCH)
        if transitions.position != hook.position:
            deliveries = deliveries_of(hook, transitions.events, without_errors=without_errors)
            webhooks.forward(hook, deliveries, transitions.position).result()
        behind += transitions.more
    return behind


def deliveries_of(
    hook: Webhook, events: Sequence[LedgerEvent], *, without_errors: bool
) -> list[CheckedJob]:
    """Return delivery jobs for these events, except events of delivery jobs themselves."""
    news = [one for one in events if one.type != WEBHOOK]
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


def _event(event: LedgerEvent, *, without_errors: bool) -> Any:
    """Return the event as the event stream has it."""
    return msgspec.to_builtins(
        responses.event_body(event.without_errors() if without_errors else event)
    )
