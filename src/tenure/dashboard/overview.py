"""The overview, the failures and the state machine."""

from __future__ import annotations

from collections import Counter
from typing import Any

from starlette.responses import RedirectResponse, Response

from tenure.app.jobs import failures_shown
from tenure.dashboard import charts
from tenure.dashboard import machine as machines
from tenure.dashboard.health import RECENT_MINUTES, health
from tenure.dashboard.request import SEEN, PageRequest
from tenure.lifecycle import FIRST_EVENT, TRANSITIONS, Status
from tenure.rules.explain import is_live
from tenure.rules.jobs import NewJob
from tenure.rules.stats import jobs_by_status, used
from tenure.values.text import quantity

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
    throughput = charts.throughput(activity, now)
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
            s: charts.sparkline(activity, now, ENTERED_BY.get(s, s)) for s in map(Status, by_status)
        },
        throughput=throughput,
        latency=charts.latency(activity, now),
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
    rates = charts.rates(activity, now)
    return request.page(
        "machine.html",
        pictures=[machines.draw(sheet, jobs, rates) for sheet in (machines.WIDE, machines.TALL)],
        rules=TRANSITIONS,
        first=FIRST_EVENT,
        rates=rates,
        counts=charts.transition_counts(activity),
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
