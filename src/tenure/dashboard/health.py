"""The one line that says how things are, in words. Pure: what was read in, sentences out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from tenure.dashboard import format as words
from tenure.jobs.explain import is_live
from tenure.jobs.reserved import serves
from tenure.jobs.states import QueueState, WorkerState
from tenure.jobs.text import length

LATE = timedelta(seconds=60)
"""A job that is due and has waited longer makes its queue late."""


class Mood(StrEnum):
    """How it is: nothing there, all well, worth a look, or late."""

    IDLE = "idle"
    WELL = "well"
    WATCH = "watch"
    LATE = "late"


@dataclass(frozen=True, slots=True)
class Health:
    """The worst that is to be said, and what else there is."""

    mood: Mood
    text: str
    also: Sequence[str] = ()


def health(
    now: datetime, jobs: int, queues: Sequence[QueueState], workers: Sequence[WorkerState]
) -> Health:
    """How it is at `now`."""
    live = [worker for worker in workers if is_live(worker, now)]
    late = list(_late(now, queues, live))
    watch = list(_watch(now, queues, live))
    if late:
        return Health(Mood.LATE, late[0], [*late[1:], *watch])
    if watch:
        return Health(Mood.WATCH, watch[0], watch[1:])
    hands = words.count(len(live), "worker")
    if jobs == 0:
        here = f"{hands} {'is' if len(live) == 1 else 'are'} ready." if live else "No worker yet."
        return Health(Mood.IDLE, f"Nothing here yet. {here}")
    running = sum(queue.processing for queue in queues)
    waiting = sum(queue.pending for queue in queues)
    doing = "Nothing is waiting" if waiting == 0 else "Nothing is late"
    if not live:
        return Health(Mood.WELL, f"All is well: {doing.lower()}. No worker is alive just now.")
    busy = f", {words.count(running, 'job')} running" if running else ""
    ready = "is taking" if len(live) == 1 else "are taking"
    return Health(Mood.WELL, f"All is well: {doing.lower()}, and {hands} {ready} jobs{busy}.")


def _late(
    now: datetime, queues: Sequence[QueueState], live: Sequence[WorkerState]
) -> Iterator[str]:
    """Queues whose oldest due job waits too long, the longest first."""
    late = [
        (queue.oldest_due_at, queue)
        for queue in queues
        if queue.paused_at is None
        and queue.oldest_due_at is not None
        and now - queue.oldest_due_at >= LATE
    ]
    for since, queue in sorted(late, key=lambda pair: pair[0]):
        waits = length(int((now - since).total_seconds()))
        served = any(serves(worker.queues, queue.name) for worker in live)
        why = "" if served else ", and no live worker takes from it: start one"
        yield f"Queue {queue.name} is late: a job has been due for {waits}{why}."


def _watch(
    now: datetime, queues: Sequence[QueueState], live: Sequence[WorkerState]
) -> Iterator[str]:
    """What is not late and still worth a look."""
    for queue in queues:
        if queue.paused_at is not None and queue.pending:
            since = length(int((now - queue.paused_at).total_seconds()))
            jobs = words.count(queue.pending, "job")
            wait = "waits" if queue.pending == 1 else "wait"
            yield f"Queue {queue.name} has been paused for {since}; {jobs} {wait} in it."
        if queue.max_pending is not None and queue.pending >= queue.max_pending:
            yield f"Queue {queue.name} is full at {queue.max_pending:,}: new jobs are refused."
    waiting = sum(queue.oldest_due_at is not None for queue in queues)
    if waiting and not live:
        yield "Jobs are due and no worker is alive: start one."
