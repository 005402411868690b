"""The line on the overview that says how the queues are. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Literal

from tenure.rules.explain import is_live
from tenure.rules.stats import QueueState, TypeState, WorkerState, rest_of
from tenure.values.text import length, quantity

LATE = timedelta(seconds=60)
"""A queue is late if a job has been due for longer."""
RECENT_MINUTES = 10
MIN_FAILURES = 10
"""Failed attempts in that time from which on their share counts."""


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
    paused: Sequence[tuple[TypeState, int]] = (),
    attempts: tuple[int, int] = (0, 0),
) -> HealthLine:
    """Return how the queues are at `now`; `failed` jobs have not been looked at.

    `queues` are in the order of `attention`. `trouble` says why the store cannot commit. `paused`
    are the paused types with the number of their pending jobs, `attempts` how many completed and
    failed in the last `RECENT_MINUTES`.
    """
    alive = [worker for worker in workers if is_live(worker, now)]
    live = [worker for worker in alive if not worker.runs_own]
    late = [f"Nothing can be stored: {trouble}."] if trouble else []
    late += _late(now, queues, alive)
    if next_tick and now - next_tick >= LATE:
        due = length(int((now - next_tick).total_seconds()))
        late.append(f"A tick of a schedule has been due for {due}, and no process decides it.")
    completed, failures = attempts
    watch = [*_paused_types(now, paused), *_watch(now, failed, queues, live)]
    if failures >= MIN_FAILURES and failures > completed:
        ended = f"{failures:,} of {failures + completed:,} attempts"
        watch.insert(0, f"{ended} in the last {RECENT_MINUTES} minutes failed.")
    if late:
        return HealthLine("late", late[0], [*late[1:], *watch])
    if watch:
        return HealthLine("watch", watch[0], watch[1:])
    number = quantity(len(live), "worker")
    if jobs == 0:
        here = f"{number} {'is' if len(live) == 1 else 'are'} ready." if live else "No worker yet."
        return HealthLine("idle", f"Nothing here yet. {here}")
    waiting = sum(queue.pending for queue in queues)
    well = f"All is well: nothing is {'late' if waiting else 'waiting'}"
    if not live:
        return HealthLine("well", f"{well}. No worker is alive just now.")
    busy = f", {quantity(running, 'job')} running" if running else ""
    taking = "is taking" if len(live) == 1 else "are taking"
    return HealthLine("well", f"{well}, and {number} {taking} jobs{busy}.")


def _late(
    now: datetime, queues: Sequence[QueueState], live: Sequence[WorkerState]
) -> Iterator[str]:
    """Yield the queues whose oldest due job waits too long, the longest first."""
    due = [
        (queue.oldest_due_at, queue.name, rest_of(queue, now), queue.limits)
        for queue in queues
        if queue.paused_at is None and queue.oldest_due_at and now - queue.oldest_due_at >= LATE
    ]
    for since, name, rest, limits in sorted(due, key=itemgetter(0, 1)):
        waits = length(int((now - since).total_seconds()))
        served = any(worker.serves(name) for worker in live)
        why = "" if served else ", and no live worker takes from it: start one"
        if limits is not None and limits.max_running == 0:
            why = ", and its limit lets none run"
        if rest:
            why = f", and none starts for {length(rest)}: one has met a rate limit outside"
        yield f"Queue {name} is late: a job has been due for {waits}{why}."


def _watch(
    now: datetime, failed: int, queues: Sequence[QueueState], live: Sequence[WorkerState]
) -> Iterator[str]:
    """Yield what is not late but worth a look."""
    if failed:
        yield f"{quantity(failed, 'job')} failed for good since you last looked at the failures."
    for queue in queues:
        if queue.paused_at is not None and queue.pending:
            held = _held(now, queue.paused_at, queue.pending)
            yield f"Queue {queue.name} has been paused for {held} in it."
        if queue.max_pending is not None and queue.pending >= queue.max_pending:
            yield f"Queue {queue.name} is full at {queue.max_pending:,}: new jobs are refused."
    if not live and any(queue.oldest_due_at for queue in queues):
        yield "Jobs are due and no worker is alive: start one."


def _paused_types(now: datetime, paused: Sequence[tuple[TypeState, int]]) -> Iterator[str]:
    """Yield the paused types for which jobs wait: their queues may look as if nothing was wrong."""
    for type, pending in paused:
        if type.paused_at is not None and pending:
            yield f"Type {type.name} has been paused for {_held(now, type.paused_at, pending)}."


def _held(now: datetime, since: datetime, pending: int) -> str:
    paused = length(int((now - since).total_seconds()))
    return f"{paused}; {quantity(pending, 'job')} {'waits' if pending == 1 else 'wait'}"
