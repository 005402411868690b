"""Deliveries: the jobs that carry transitions to webhooks.

A delivery is a job of the type `tenure.webhook`, one for each transition that a webhook wants.
`app/core.py` adds them, each once, and `worker/webhook_delivery.py` runs them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tenure.rules.jobs import CheckedJob
from tenure.rules.ledger import LedgerEvent, Webhook
from tenure.values import ids, payload
from tenure.values.durations import policy_of
from tenure.wire import responses

WEBHOOK = "tenure.webhook"
"""The type of deliveries. They are signed when they are sent, so only Tenure adds them."""
QUEUES = "tenure.webhooks."
"""Begins the queue of each webhook; its name follows."""
BATCH = 500
"""Transitions that one step looks at, for each webhook."""
MAX_RETRIES = 10
BACKOFF = policy_of({"base": 5, "cap": 3600}, "$.backoff")
ATTEMPT_SECONDS = 30.0
"""Limit of one attempt; the request itself has less."""


def queue_of(name: str) -> str:
    return QUEUES + name


def deliveries_of(
    hook: Webhook, events: Sequence[LedgerEvent], *, without_errors: bool
) -> list[CheckedJob]:
    """Return delivery jobs for these events, except events of delivery jobs themselves.

    `without_errors` leaves out the errors of attempts, which may hold redacted values.
    """
    news = [event for event in events if event.type != WEBHOOK]
    shown = (event.without_errors() if without_errors else event for event in news)
    bodies = [msgspec.to_builtins(responses.event_body(event)) for event in shown]
    return [
        CheckedJob(
            id=id,
            type=WEBHOOK,
            queue=queue_of(hook.name),
            payload=payload.canonical({"hook": hook.name, "hook_id": hook.id, "event": body}),
            max_retries=MAX_RETRIES,
            timeout=ATTEMPT_SECONDS,
            backoff=BACKOFF,
            actor="webhooks",
        )
        for id, body in zip(ids.new_ids(len(news)), bodies, strict=True)
    ]
