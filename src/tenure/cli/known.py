"""Whether the name that a command was given is known: it may be misspelt.

Queues, types and partitions can have settings before their first job, so no name is refused. Ask
before the change: a type that is paused is known from then on.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import TYPE_CHECKING

from tenure.errors import TenureError

if TYPE_CHECKING:
    from tenure.app.app import Tenure

MAX_PARTITIONS = 1_000
"""Partitions among which the nearest name is searched."""


def queue_doubt(app: Tenure, name: str) -> str:
    """Return what to add to an answer about a queue: nothing if a job, type or worker names it."""
    from tenure.jobs.queue_rights import includes

    with suppress(TenureError):  # the change itself says what is wrong
        named = {count.queue for count in app.stats.counts()}
        named |= {type.queue for type in app.types.list()}
        limited = [worker for worker in app.workers.list() if worker.queues is not None]
        named |= {queue for worker in limited for queue in worker.queues or ()}
        taken = any(worker.serves(name) or includes(worker.queues, name) for worker in limited)
        if name not in named and not taken:
            return f"; no job, type or worker names this queue yet{_nearest(name, named)}"
    return ""


def type_doubt(app: Tenure, name: str) -> str:
    """Return what to add to an answer about a type: nothing if a job or a program has it."""
    with suppress(TenureError):
        named = {count.type for count in app.stats.counts()}
        named |= {type.name for type in app.types.list()}
        named |= {type for worker in app.workers.list() for type in worker.types or ()}
        if name not in named:
            return f"; no job, handler or worker has this type yet{_nearest(name, named)}"
    return ""


def partition_doubt(app: Tenure, queue: str, name: str) -> str:
    """Return what to add to an answer about a partition: nothing if jobs have it."""
    if doubt := queue_doubt(app, queue):
        return doubt
    with suppress(TenureError):
        found = app.count(at_most=1, queue=queue, partition=name) if name else None
        if found is not None and found.exact and not found.jobs:
            others = {each.partition for each in app.queues.partitions(queue, MAX_PARTITIONS)}
            return f"; no job of the queue has this partition yet{_nearest(name, others - {name})}"
    return ""


def _nearest(name: str, others: Collection[str]) -> str:
    from tenure.jobs.names import nearest

    near = nearest(name, others)
    return f", the nearest is {near}" if near else ""
