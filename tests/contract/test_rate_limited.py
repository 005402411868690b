"""A job that met a rate limit outside: it runs again later, and others wait with it."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta

import pytest

from tenure import RetryPolicy, Tenure, lifecycle
from tenure.rules.reports import Lease, Report
from tests.support.http import api_client, claim_jobs
from tests.support.raw_sql import EPOCH
from tests.support.store import ALREADY, RECORDED, StoreHarness, report_failed, report_snoozed


def pauses(harness: StoreHarness) -> dict[tuple[str, ...], float]:
    """Queue, and partition -> for how many seconds more they wait."""
    now, found = harness.clock.now, dict[tuple[str, ...], float]()
    for table, key in (("{queue_limit}", "queue"), ("{partition_limit}", "queue, partition")):
        where = f"FROM {table} WHERE resume_at IS NOT NULL"
        for *name, until in harness.sql.run(f"SELECT {key}, resume_at {where}"):
            at = until if isinstance(until, datetime) else EPOCH + timedelta(milliseconds=until)
            found[tuple(name)] = round((at - now).total_seconds(), 3)
    return found


def divide(harness: StoreHarness, queue: str = "default") -> None:
    harness.sql.run("INSERT INTO {queue_limit} (queue, partitioned) VALUES (?, ?)", queue, True)


def rate_limited(lease: Lease, delay: float, pause: str | None = "partition") -> Report:
    return report_snoozed(lease, delay=delay, pause=pause)


def test_what_waits_as_long_as_the_job(harness: StoreHarness, subtests: pytest.Subtests) -> None:
    """bullmq#2193: without that, each other job goes and fetches a 429 of its own."""
    for number, case in enumerate(
        itertools.product(["queue", "partition", None], [True, False], ["acme", None])
    ):
        with subtests.test(str(case)):
            pause_after(harness, f"queue-{number}", *case)


def pause_after(
    harness: StoreHarness, queue: str, pause: str | None, divided: bool, partition: str | None
) -> None:
    if divided:
        divide(harness, queue)
    before = pauses(harness)
    lease = harness.take(queue=queue, partition=partition)
    assert harness.report(rate_limited(lease, 30, pause)) == [RECORDED]
    job = harness.get(lease.id)
    assert (job.status, job.event, job.attempts, job.snoozes) == ("pending", "snoozed", 0, 1)
    whole = pause == "queue" or not divided
    waits = {(queue,) if whole else (queue, partition or ""): 30.0}
    assert pauses(harness) == before | (waits if pause else {})
    if pause:
        table = "{queue_limit}" if whole else "{partition_limit}"
        query = f"SELECT paused_for FROM {table} WHERE queue = ? AND resume_at IS NOT NULL"
        assert str(harness.sql.value(query, queue)) == job.id


def test_a_queue_that_waited_counts_no_running_jobs_without_limits(
    harness: StoreHarness, app: Tenure
) -> None:
    """Its row stays for a while. SQLite counted jobs by it, and PostgreSQL said that none runs."""
    harness.report(rate_limited(harness.take(), 30, "queue"))
    harness.clock.advance(30)
    assert len(harness.claim()) == 1
    (queue,) = app.queues.list()
    assert (queue.processing, queue.running) == (1, None)
    assert app.queues.partitions("default") == []


@pytest.mark.parametrize("divided", [True, False])
def test_the_longest_pause_counts(harness: StoreHarness, app: Tenure, divided: bool) -> None:
    key = ("default", "") if divided else ("default",)
    if divided:
        divide(harness)
    for _ in range(5):
        harness.add()
    leases = harness.claim(limit=5)
    harness.report(
        *(rate_limited(lease, n) for lease, n in zip(leases, (10, 30, 20), strict=False))
    )
    assert pauses(harness) == {key: 30.0}
    harness.report(rate_limited(leases[3], 5))
    assert pauses(harness) == {key: 30.0}
    harness.clock.advance(20)
    assert pauses(harness) == {key: 10.0}
    harness.report(rate_limited(leases[4], 40))
    assert pauses(harness) == {key: 40.0}


def test_only_a_report_that_counts_lets_others_wait(harness: StoreHarness, app: Tenure) -> None:
    lease = harness.take(queue="a")
    app.cancel(lease.id)
    assert harness.report(rate_limited(lease, 30))[0].answer == "lost"
    harness.report(report_failed(harness.take(queue="a"), delay=30.0, pause="queue"))
    assert pauses(harness) == {}
    lease = harness.take(queue="b")
    report = rate_limited(lease, 30)
    assert harness.report(report, report) == [RECORDED, ALREADY]
    harness.clock.advance(20)
    assert harness.report(report) == [ALREADY]
    assert pauses(harness) == {("b",): 10.0}


def test_it_costs_no_attempt_however_often_and_is_bounded(
    harness: StoreHarness, app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bullmq#1571, sidekiq#6010, bullmq PR 2403: attempts, 20 times at most, a delay of 0."""
    monkeypatch.setattr(lifecycle, "MAX_SNOOZES", 201)
    job = harness.add(max_retries=1)
    for number in range(1, 202):
        (lease,) = harness.claim()
        assert (lease.attempts, lease.token) == (1, number)
        assert harness.report(rate_limited(lease, 0)) == [RECORDED]
    assert (harness.get(job.id).attempts, harness.get(job.id).snoozes) == (0, 201)
    (lease,) = harness.claim()
    harness.report(rate_limited(lease, 0))
    end = harness.get(job.id)
    assert (end.status, end.attempts) == ("failed", 1)
    assert end.last_error == "it cannot be snoozed: it was snoozed or suspended 201 times"


def test_it_leaves_the_backoff_and_the_attempts_as_they_were(
    harness: StoreHarness, app: Tenure
) -> None:
    """oban#245, river#720: a backoff that counts snoozes grows without end."""
    policy = RetryPolicy(base=100, factor=3, cap=10_000)
    waits = []
    for snoozes in (0, 20):
        job = harness.add(max_retries=3, backoff=policy)
        for _ in range(snoozes):
            (lease,) = harness.claim()
            harness.report(rate_limited(lease, 0))
        (lease,) = harness.claim()
        harness.report(report_failed(lease))
        after = harness.get(job.id)
        waits.append((after.run_at - harness.clock.now).total_seconds())
        assert (after.status, after.attempts) == ("pending", 1)
        app.cancel(job.id)
    assert waits == [pytest.approx(100, rel=0.1)] * 2


def test_a_report_over_http_lets_others_wait(harness: StoreHarness, app: Tenure) -> None:
    divide(harness, "llm")
    with api_client(app) as api:
        for _ in range(3):
            api.post("/jobs", json={"type": "ask", "queue": "llm", "partition": "acme"})
        leases = claim_jobs(api, limit=3)
        for lease, pause in zip(leases, ("partition", "queue", "all"), strict=True):
            entry = {"lease_id": lease["lease_id"], "outcome": "snoozed", "delay": 7}
            answer = api.post("/reports", json=[{**entry, "pause": pause}])
            assert answer.status_code == (400 if pause == "all" else 200), answer.text
        app.cancel(leases[2]["id"])
    assert pauses(harness) == {("llm",): 7.0, ("llm", "acme"): 7.0}


def test_explain_names_the_job_for_which_a_queue_waits(harness: StoreHarness, app: Tenure) -> None:
    lease, other = harness.take(), harness.add()
    harness.report(rate_limited(lease, 30, "queue"))
    explained = app.explain(other.id)
    assert (explained.reason, explained.jobs) == ("queue_waits", (lease.id,))
