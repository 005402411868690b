"""The line on the overview that says how the queues are. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from tenure.dashboard.format import count
from tenure.jobs.explain import is_live
from tenure.jobs.stats import QueueState, WorkerState, rest_of
from tenure.jobs.text import length

LATE = timedelta(seconds=60)
"""A queue is late if a job has been due for longer."""


@dataclass(frozen=True, slots=True)
class HealthLine:
    """The worst problem, and the others."""

    level: Literal["idle", "well", "watch", "late"]  # "watch" is worth a look
    text: str
    also: Sequence[str] = ()


def health(
    now: datetime,
    jobs: int,
    failed: int,
    queues: Sequence[QueueState],
    workers: Sequence[WorkerState],
    next_tick: datetime | None = None,
    running: int = 0,
    trouble: str | None = None,
) -> HealthLine:
    """Return how the queues are at `now`; `failed` jobs have not been looked at.

    `queues` are in the order of `attention`. `trouble` says why the store cannot commit.
    """
    live = [worker for worker in workers if is_live(worker, now)]
    late = [f"Nothing can be stored: {trouble}."] if trouble else []
    late += _late(now, queues, live)
    if next_tick and now - next_tick >= LATE:
        due = length(int((now - next_tick).total_seconds()))
        late.append(f"A tick of a schedule has been due for {due}, and no process decides it.")
    watch = list(_watch(now, failed, queues, live))
    if late:
        return HealthLine("late", late[0], [*late[1:], *watch])
    if watch:
        return HealthLine("watch", watch[0], watch[1:])
    number = count(len(live), "worker")
    if jobs == 0:
        here = f"{number} {'is' if len(live) == 1 else 'are'} ready." if live else "No worker yet."
        return HealthLine("idle", f"Nothing here yet. {here}")
    waiting = sum(queue.pending for queue in queues)
    well = f"All is well: nothing is {'late' if waiting else 'waiting'}"
    if not live:
        return HealthLine("well", f"{well}. No worker is alive just now.")
    busy = f", {count(running, 'job')} running" if running else ""
    taking = "is taking" if len(live) == 1 else "are taking"
    return HealthLine("well", f"{well}, and {number} {taking} jobs{busy}.")


def _late(
    now: datetime, queues: Sequence[QueueState], live: Sequence[WorkerState]
) -> Iterator[str]:
    """Yield the queues whose oldest due job waits too long, the longest first."""
    due = [
        (queue.oldest_due_at, queue.name, rest_of(queue, now))
        for queue in queues
        if queue.paused_at is None and queue.oldest_due_at and now - queue.oldest_due_at >= LATE
    ]
    for since, name, rest in sorted(due):
        waits = length(int((now - since).total_seconds()))
        served = any(worker.serves(name) for worker in live)
        why = "" if served else ", and no live worker takes from it: start one"
        if rest:
            why = f", and none starts for {length(rest)}: one has met a rate limit outside"
        yield f"Queue {name} is late: a job has been due for {waits}{why}."


def _watch(
    now: datetime, failed: int, queues: Sequence[QueueState], live: Sequence[WorkerState]
) -> Iterator[str]:
    """Yield what is not late but worth a look."""
    if failed:
        yield f"{count(failed, 'job')} failed for good since you last looked at the failures."
    for queue in queues:
        if queue.paused_at is not None and queue.pending:
            since = length(int((now - queue.paused_at).total_seconds()))
            jobs = count(queue.pending, "job")
            wait = "waits" if queue.pending == 1 else "wait"
            yield f"Queue {queue.name} has been paused for {since}; {jobs} {wait} in it."
        if queue.max_pending is not None and queue.pending >= queue.max_pending:
            yield f"Queue {queue.name} is full at {queue.max_pending:,}: new jobs are refused."
    if not live and any(queue.oldest_due_at for queue in queues):
        yield "Jobs are due and no worker is alive: start one."
