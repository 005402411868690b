"""The overview with its line on how the queues are, the failures and the state machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any, Literal

from starlette.responses import RedirectResponse, Response

from tenure.app.jobs import failures_shown
from tenure.dashboard import format as fmt
from tenure.dashboard import machine as machines
from tenure.dashboard.request import SEEN, PageRequest
from tenure.lifecycle import FIRST_EVENT, TRANSITIONS, Status
from tenure.rules.explain import is_live
from tenure.rules.jobs import NewJob
from tenure.rules.stats import QueueState, TypeState, WorkerState, jobs_by_status, rest_of, used
from tenure.values.text import length, quantity

MAX_FAILURES = 5
MAX_ROWS = 8
ENTERED_BY = {Status.PENDING: FIRST_EVENT, Status.PROCESSING: "claimed"}
"""The event that the small chart of a status counts, if it is not named as the status."""
SAMPLES: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    *(("fake.email", {"to": f"customer-{n}@example.com"}, {"queue": "mail"}) for n in range(1, 6)),
    *(("fake.sleep", {"seconds": n * 1.5}, {"delay": n * 0.7}) for n in range(1, 7)),
    *(("fake.flaky", {"fail_times": n}, {"max_retries": 3, "queue": "mail"}) for n in (1, 2)),
    ("fake.flaky", {"fail_times": 1}, {"max_retries": 1}),  # an operator's retry makes it good
    ("fake.fail", {"reason": "to see a failure"}, {"max_retries": 2}),
    ("fake.report", {"month": 11}, {"delay": "10m"}),
)
"""Jobs of each kind: quick, slow, failing once, failing for good."""


def show(request: PageRequest) -> Response:
    cache, now = request.cache, request.now
    counts, workers = cache.counts(), cache.workers()
    queues, number = cache.queues()
    activity, groups = cache.activity(), cache.failures()
    jobs = sum(group.jobs for group in counts)
    by_status = used(jobs_by_status(counts))
    failed, running = by_status[Status.FAILED], by_status[Status.PROCESSING]
    seen = min(request.seen, failed)
    pending: Counter[str] = Counter()
    for group in counts:
        pending[group.type] += group.jobs if group.status == Status.PENDING else 0
    paused = [(type, pending[type.name]) for type in cache.types() if type.paused_at is not None]
    by_age = sorted(queues, key=lambda q: (q.oldest_due_at is None, q.oldest_due_at, -q.pending))
    throughput = fmt.throughput(activity, now)
    recent = {name: line[-RECENT_MINUTES:] for name, line in throughput.lines.items()}
    completions, failures = (sum(filter(None, recent[name])) for name in ("completed", "failed"))
    response = request.page(
        "overview.html",
        health=health(
            now,
            jobs,
            failed - seen,
            queues,
            workers,
            cache.next_tick(),
            running,
            cache.trouble(),
            paused,
            (int(completions), int(failures)),
        ),
        jobs=jobs,
        by_status=by_status,
        sparks={
            s: fmt.sparkline(activity, now, ENTERED_BY.get(s, s)) for s in map(Status, by_status)
        },
        throughput=throughput,
        latency=fmt.latency(activity, now),
        queues=by_age[:MAX_ROWS],
        number=number,
        queues_read=len(queues),
        more_queues=max(number - MAX_ROWS, 0),
        failures=failures_shown(request.app.core, groups[:MAX_FAILURES], request.redaction),
        more_failures=max(len(groups) - MAX_FAILURES, 0),
        workers=workers[:MAX_ROWS],
        more_workers=max(len(workers) - MAX_ROWS, 0),
        is_live=is_live,
        fake_handlers=request.app.core.handlers.types() is None,  # as with --fake-handlers
        lag=cache.lag(now, "counts", "queues"),
    )
    if seen < request.seen:  # some were retried or deleted
        request.set_cookie(response, SEEN, str(seen))
    return response


def failures(request: PageRequest) -> Response:
    """Show failures by type and error; the browser keeps how many jobs had failed by then."""
    groups = request.cache.failures()
    failed = jobs_by_status(request.cache.counts())[Status.FAILED]
    shown = failures_shown(request.app.core, groups, request.redaction)
    response = request.page("failures.html", failures=shown)
    request.set_cookie(response, SEEN, str(failed))
    return response


def machine(request: PageRequest) -> Response:
    cache, now = request.cache, request.now
    jobs, activity = used(jobs_by_status(cache.counts())), cache.activity()
    rates = fmt.rates(activity, now)
    return request.page(
        "machine.html",
        pictures=[machines.draw(sheet, jobs, rates) for sheet in (machines.WIDE, machines.TALL)],
        rules=TRANSITIONS,
        first=FIRST_EVENT,
        rates=rates,
        counts=fmt.transition_counts(activity),
        lag=cache.lag(now, "counts"),
    )


def moved(request: PageRequest) -> Response:
    """Lead to the overview: people shorten the address of another page to this one."""
    return RedirectResponse(request.address("/"), 303)


def add_samples(request: PageRequest) -> Response:
    """Add a few jobs that the fake handlers complete and fail, to have something to see."""
    quick = {"base": 1.0, "factor": 2.0, "cap": 5.0}
    more = {"backoff": quick, "actor": request.actor}
    added = request.app.enqueue_many(
        [NewJob(type, payload, {**more, **options}) for type, payload, options in SAMPLES]  # type: ignore[typeddict-item]
    )
    return request.go(request.address("/"), f"{quantity(len(added), 'sample job')} added.")


# --- health ---------------------------------------------------------------------------------------

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
