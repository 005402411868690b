"""The pages about everything at once: overview, failures, the state machine."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from tenure.app.queries import failures_shown
from tenure.dashboard import charts as series
from tenure.dashboard import format as words
from tenure.dashboard import machine as machines
from tenure.dashboard.health import health
from tenure.dashboard.request import PageRequest
from tenure.jobs.enqueue import NewJob
from tenure.jobs.explain import is_live
from tenure.jobs.stats import Count
from tenure.lifecycle import FIRST_EVENT, TRANSITIONS, Status

MAX_FAILURES = 5
MAX_QUEUES = 8
MAX_WORKERS = 8
SPARKS = {
    Status.PENDING: FIRST_EVENT,
    Status.PROCESSING: "claimed",
    Status.COMPLETED: "completed",
    Status.FAILED: "failed",
    Status.CANCELLED: "cancelled",
}
"""Which move stands for a status in its small line."""


def show(visit: PageRequest) -> Response:
    """How everything is."""
    glance, now = visit.site.glance, visit.now
    counts, queues, workers = glance.counts(), glance.queues(), glance.workers()
    activity, groups = glance.activity(), glance.failures()
    jobs = sum(count.jobs for count in counts)
    by_age = sorted(queues, key=lambda q: (q.oldest_due_at is None, q.oldest_due_at, -q.pending))
    return visit.page(
        "overview.html",
        health=health(now, jobs, queues, workers),
        jobs=jobs,
        by_status=by_status(counts),
        sparks={s: series.spark(activity, now, event) for s, event in SPARKS.items()},
        totals=series.totals(activity),
        throughput=series.throughput(activity, now),
        latency=series.latency(activity, now),
        queues=by_age[:MAX_QUEUES],
        more_queues=max(len(queues) - MAX_QUEUES, 0),
        failures=failures_shown(visit.app, groups[:MAX_FAILURES], visit.redaction),
        more_failures=max(len(groups) - MAX_FAILURES, 0),
        workers=workers[:MAX_WORKERS],
        more_workers=max(len(workers) - MAX_WORKERS, 0),
        is_live=is_live,
        fake_handlers=has_fake_handlers(visit),
        lag=glance.lag(now, "counts", "queues"),
    )


def failures(visit: PageRequest) -> Response:
    """Failures by type and error."""
    groups = visit.site.glance.failures()
    shown = failures_shown(visit.app, groups, visit.redaction)
    return visit.page("failures.html", failures=shown)


def machine(visit: PageRequest) -> Response:
    """The state machine with live numbers."""
    glance, now = visit.site.glance, visit.now
    jobs, activity = by_status(glance.counts()), glance.activity()
    rates = series.rates(activity, now)
    return visit.page(
        "machine.html",
        pictures=[machines.draw(sheet, jobs, rates) for sheet in (machines.WIDE, machines.TALL)],
        transitions=TRANSITIONS,
        first=FIRST_EVENT,
        rates=rates,
        moved=series.moved(activity),
        lag=glance.lag(now, "counts"),
    )


def add_samples(visit: PageRequest) -> Response:
    """Add a few jobs that the fake handlers complete and fail, to have something to see."""
    made = visit.app.enqueue_many(samples(visit.actor))
    return visit.go(visit.address("/"), f"{words.count(len(made), 'sample job')} added.")


def samples(actor: str) -> list[NewJob]:
    """A handful of each: quick, slow, failing once, failing for good."""
    quick = {"base": 1.0, "factor": 2.0, "cap": 5.0}
    new_jobs: list[NewJob] = []

    def add(type: str, payload: dict[str, Any], **options: Any) -> None:
        given: Any = {"backoff": quick, "actor": actor, **options}
        new_jobs.append(NewJob(type, payload, given))

    for number in range(1, 6):
        add("fake.email", {"to": f"customer-{number}@example.com"}, queue="mail")
    for number in range(1, 7):
        add("fake.sleep", {"seconds": number * 1.5}, delay=number * 0.7)
    for number in (1, 2):
        add("fake.flaky", {"fail_times": number}, max_retries=3, queue="mail")
    add("fake.flaky", {"fail_times": 1}, max_retries=1)  # an operator's retry makes it good
    add("fake.fail", {"reason": "to see a failure"}, max_retries=2)
    add("fake.report", {"month": 11}, delay="10m")
    return new_jobs


def has_fake_handlers(visit: PageRequest) -> bool:
    """Return True if a worker of this process runs any type, as with --fake-handlers."""
    return visit.app.handlers.types() is None


def by_status(counts: list[Count]) -> dict[str, int]:
    """Jobs by status, all five, in their order."""
    found: dict[str, int] = dict.fromkeys(Status, 0)
    for count in counts:
        found[count.status] += count.jobs
    return found
