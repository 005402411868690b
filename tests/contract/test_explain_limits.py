"""Why limits keep a due job from starting: each reason, with names and numbers, on both engines."""

from __future__ import annotations

from typing import Any

import pytest

from tenure import PerPartition, Tenure
from tenure.lifecycle import Job
from tenure.rules.reports import ClaimRequest, Lease, Outcome, Pause, Report, Wait
from tests.support.clock import Clock


@pytest.fixture
def app(app_on_each_engine: Tenure) -> Tenure:
    return app_on_each_engine


def add(app: Tenure, partition: str | None = None, **options: Any) -> Job:
    if partition is not None:
        options["partition"] = partition
    return app.enqueue("a", queue="sync", **options)


def take(app: Tenure, limit: int = 1) -> list[Lease]:
    return app.core.claim(ClaimRequest(worker="w", limit=limit, lease_seconds=900)).leases


def check(app: Tenure, job: Job, reason: str, *words: str) -> None:
    told = app.explain(job.id)
    assert told.reason == reason, told.text
    assert [word for word in words if word not in told.text] == [], told.text


def test_a_full_queue_names_the_oldest_job(app: Tenure, clock: Clock) -> None:
    app.queues.limit("sync", max_running=1)
    running, job = add(app), add(app)
    take(app, 2)
    clock.advance(120)
    check(app, job, "queue_full", "Queue sync is full: 1 of 1 jobs run", "for 2m", running.id)
    app.queues.limit("sync", max_running=0)
    check(app, job, "queue_full", "its limit is 0")
    app.queues.limit("sync", max_running=None)
    check(app, job, "next")


def test_a_rate_says_when_the_next_job_can_start(app: Tenure, clock: Clock) -> None:
    app.queues.limit("sync", rate="6/1m", burst=1)
    add(app), take(app)
    job = add(app)
    clock.advance(4)
    check(app, job, "queue_rate", "starts 6/1m at most", "in 6")
    clock.advance(6)
    check(app, job, "next")


def test_partitions_are_full_paused_and_rated(app: Tenure, clock: Clock) -> None:
    app.queues.limit("sync", per_partition=PerPartition(max_running=1, rate="6/1m", burst=1))
    running, job, other = add(app, "acme"), add(app, "acme"), add(app)
    take(app, 1) if running.partition else None
    take(app, 5)
    check(app, job, "partition_full", "Partition acme of queue sync is full", running.id)
    more = add(app)
    check(app, more, "partition_full", "The partition without a name of queue sync", other.id)
    app.queues.pause_partition("sync", "acme", actor="eve", reason="they asked")
    check(app, job, "partition_paused", "is paused by eve: they asked")
    clock.raw.run("UPDATE {partition_limit} SET paused_by = NULL, pause_reason = NULL")
    check(app, job, "partition_paused", "is paused; resume it")
    app.queues.resume_partition("sync", "acme")
    app.queues.limit_partition("sync", "acme", max_running=2)
    check(app, job, "partition_rate", "Partition acme of queue sync starts 6/1m at most")
    clock.advance(10)
    check(app, job, "next")


def test_a_partition_in_order_names_the_job_before(app: Tenure, clock: Clock) -> None:
    app.queues.limit("sync", ordered="halt")
    take(app)  # so that a worker is alive
    first, job = add(app, "acme", max_retries=2), add(app, "acme")
    check(app, job, "behind_in_order", f"job {first.id} is before it (pending")
    for wait in (0, 10):
        clock.advance(wait)
        (lease,) = take(app)
        check(app, job, "behind_in_order", f"job {first.id} is before it (processing)")
        report = Report(lease.id, lease.lease_id, Outcome.FAILED, error="no")
        app.core.exchange([report], None).result()
    check(app, job, "halted", f"since job {first.id} failed for good", "pass over it")
    app.queues.pass_over("sync", "acme")
    check(app, job, "next")


def test_a_worker_is_no_help_where_a_partition_stands_still(app: Tenure, clock: Clock) -> None:
    app.queues.limit("sync", ordered="halt")
    add(app, "acme", max_retries=1)
    job = add(app, "acme")
    (lease,) = take(app)
    report = Report(lease.id, lease.lease_id, Outcome.FAILED, error="no")
    app.core.exchange([report], None).result()
    clock.advance(61)  # no worker is alive
    check(app, job, "halted", "pass over it")
    app.queues.pause_partition("sync", "acme")
    check(app, job, "partition_paused", "resume it to continue")
    app.queues.resume_partition("sync", "acme")
    app.queues.pass_over("sync", "acme")
    check(app, job, "no_worker")
    app.queues.limit("sync", max_running=0)
    check(app, job, "queue_full", "its limit is 0")
    app.queues.limit("sync", max_running=None)
    app.queues.limit_partition("sync", "acme", max_running=0)
    check(app, job, "partition_full", "its limit is 0")


@pytest.mark.parametrize("outcome", [Outcome.SUSPENDED, Outcome.SNOOZED])
def test_a_worker_is_no_help_behind_a_job_that_waits(
    app: Tenure, clock: Clock, outcome: Outcome
) -> None:
    app.queues.limit("sync", ordered="halt")
    first, job = add(app, "acme"), add(app, "acme")
    (lease,) = take(app)
    wait = Wait("go", 1) if outcome is Outcome.SUSPENDED else None
    delay = None if wait else 600.0
    report = Report(lease.id, lease.lease_id, outcome, delay=delay, wait=wait)
    app.core.exchange([report], None).result()
    clock.advance(61)  # no worker is alive
    check(app, job, "behind_in_order", first.id)


def test_a_rate_limit_outside_names_the_job_that_met_it(app: Tenure, clock: Clock) -> None:
    app.queues.limit("sync", per_partition=PerPartition())
    jobs = [add(app, "acme"), add(app, "acme")]
    where: tuple[tuple[Pause, str, str], ...] = (
        ("partition", "partition_waits", "Partition acme"),
        ("queue", "queue_waits", "Queue sync"),
    )
    for pause, reason, named in where:
        (lease,) = take(app)
        (other,) = [job for job in jobs if job.id != lease.id]
        clock.advance(11)  # the other one has come back
        report = Report(lease.id, lease.lease_id, Outcome.SNOOZED, delay=5, pause=pause)
        app.core.exchange([report], None).result()
        check(app, other, reason, named, "for 5", f"job {lease.id} met a rate limit")
        clock.advance(6)


def test_the_place_is_counted_in_the_partition(app: Tenure) -> None:
    app.queues.limit("sync", per_partition=PerPartition())
    take(app)  # so that a worker is alive
    for _ in range(5):
        add(app, "busy")
    add(app, "acme")
    job = add(app, "acme")
    check(app, job, "behind_others", "1 job of its partition goes first")
