"""Names that Tenure keeps for its own jobs."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from tenure.errors import InvalidInput
from tenure.jobs import payload

RESERVED = "tenure."
"""The beginning of every type and queue that is not for users."""
WEBHOOK = "tenure.webhook"
"""The type of the jobs that deliver moves to webhooks. Nobody else may add any: they are signed."""
WEBHOOK_QUEUE = "tenure.webhooks"
"""The queue of those jobs, and of no others."""


def serves(queues: Collection[str] | None, queue: str) -> bool:
    """Whether who asks for jobs of `queues`, None for any, is handed those of `queue`.

    Deliveries go only to who asks for their queue by name: nobody else knows how to run them.
    """
    return not queue.startswith(RESERVED) if queues is None else queue in queues


def check_open(queue: str, path: str) -> str:
    """`queue` if users may put jobs into it and take jobs from it; raises InvalidInput."""
    if queue == WEBHOOK_QUEUE:
        raise InvalidInput(
            f"the queue {WEBHOOK_QUEUE} is that of deliveries to webhooks, which every server and "
            "every worker beside the database runs by itself: name other queues",
            path=path,
        )
    return queue


def check_queues(queues: Iterable[str] | None, path: str) -> tuple[str, ...] | None:
    """The queues that a worker of users may take from, None for any; raises InvalidInput."""
    if queues is None:
        return None
    names = payload.several(queues, path)
    return tuple(check_open(payload.check_name(name, "queue", path), path) for name in names)
