"""Jobs that are cancelled if they have not started in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tenure import IllegalTransition, InvalidInput, Job, KeyConflict, NewJob, Tenure
from tenure.client import Client
from tenure.rules.reports import ClaimRequest, Duty, Outcome, Report
from tenure.rules.search import Filter
from tenure.store.borrowed.connections import opened
from tests.support.cli import cli_json
from tests.support.clock import START, TICK, Clock
from tests.support.http import ServerProcess
from tests.support.store import StoreHarness
from tests.support.workers import running_sweeper, transitions, wait_until_settled

HOUR = timedelta(hours=1)


@pytest.fixture
def app(app_on_each_engine: Tenure, clock: Clock) -> Iterator[Tenure]:
    yield app_on_each_engine
    assert app_on_each_engine.verify() == []


def claim(app: Tenure) -> list[Any]:
    return [*app.core.claim(ClaimRequest(worker="w", limit=9, lease_seconds=60)).leases]


@pytest.mark.parametrize("start_by", ["1h", HOUR, START + HOUR, "2026-01-01T01:00:00Z"], ids=repr)
def test_a_job_that_has_not_started_in_time_is_cancelled(
    app: Tenure, clock: Clock, start_by: Any
) -> None:
    job = app.enqueue("mail", start_by=start_by)
    (same, *_) = app.enqueue_many([NewJob("mail", {}, {"start_by": start_by}), NewJob("a", {}, {})])
    assert job.start_by == same.start_by == START + HOUR
    assert job == app.get(job.id)
    assert "cancelled if it has not started by 2026-01-01 01:00:00" in app.explain(job.id).text
    clock.advance(3600 - TICK)
    assert Duty.STARTS not in app.core.look()
    assert app.core.store.expire().result() == []
    clock.advance(TICK)
    assert [lease.type for lease in claim(app)] == ["a"]
    assert Duty.STARTS in app.core.look()
    with running_sweeper(app):
        assert wait_until_settled(app, job).status == "cancelled"
        assert transitions(app, same) == ["enqueued", "expired"]
    assert app.history(job.id)[-1].actor == "sweep"
    assert app.explain(job.id).reason == "expired"
    app.core.store.expire().result()
    assert Duty.STARTS not in app.core.look()


def test_no_retry_starts_after_that_time(app: Tenure, clock: Clock) -> None:
    job = app.enqueue("mail", start_by="1h", backoff="30m")
    (lease,) = claim(app)
    clock.advance(3600)
    assert app.core.store.expire().result() == []  # what runs goes on
    app.core.report([Report(job.id, lease.lease_id, Outcome.FAILED, error="away")])
    app.core.store.expire().result()
    assert transitions(app, job) == ["enqueued", "claimed", "failed", "retried", "expired"]


def retry_within(app: Tenure, job_id: str) -> None:
    with opened(app.database) as connection:
        app.within(connection).retry(job_id)


def retry_many(app: Tenure, job_id: str) -> None:
    bulk = app.bulk.step(app.bulk.start("retry", Filter(type="mail")).id)
    assert (bulk.changed, bulk.refused) == (0, 1)
    app.retry(job_id)


@pytest.mark.parametrize("retry", [Tenure.retry, retry_within, retry_many])
def test_a_retry_that_comes_too_late_does_not_cancel_the_job(
    app: Tenure, clock: Clock, retry: Callable[[Tenure, str], object]
) -> None:
    """It was accepted, and a second later the sweep had cancelled the job, for good."""
    job = app.enqueue("mail", start_by="1h", max_retries=1)
    (lease,) = claim(app)
    app.core.report([Report(job.id, lease.lease_id, Outcome.FAILED, error="away")])
    clock.advance(3600)
    with pytest.raises(IllegalTransition, match="had to start before 2026-01-01T01:00:00"):
        retry(app, job.id)
    app.core.store.expire().result()
    assert app.get(job.id).status == "failed"
    told = app.explain(job.id)
    assert "cannot be retried: it had to start before 2026" in told.text
    assert told.legal_events == ()  # no page and no command offers a retry
    assert app.run_again(job.id).start_by is None


def test_a_job_that_waits_expires_too(harness: StoreHarness) -> None:
    insert = "INSERT INTO {job} (id, type, run_at, created_at, start_by, status, need)"
    for number, start_by in enumerate(["{later}", "{later}", "NULL"]):
        id = f"01a20e38-9c21-74ab-b468-bccbb24dbff{number}"
        harness.sql.run(f"{insert} VALUES (?, 'a', {{now}}, {{now}}, {start_by}, 'waiting', 1)", id)
    assert Duty.STARTS not in harness.store.look()
    harness.clock.advance(100 * 86_400)
    assert Duty.STARTS in harness.store.look()
    assert len(harness.store.expire(1).result()) == 1
    assert len(harness.store.expire(9).result()) == 1
    assert harness.store.expire().result() == []
    assert Duty.STARTS not in harness.store.look()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"start_by": 0}, "above 0"),
        ({"start_by": "soon"}, "not a duration"),
        ({"start_by": datetime(2027, 1, 1)}, "zone"),  # noqa: DTZ001 that is the mistake
        ({"start_by": "2027-01-01T00:00:00"}, "zone"),
        ({"start_by": datetime(9999, 1, 1, tzinfo=UTC)}, "out of range"),
        ({"start_by": "5m", "delay": "5m"}, "before it is due"),
        ({"start_by": START, "run_at": START}, "before it is due"),
    ],
)
def test_what_cannot_be_a_last_start_is_refused(
    sqlite_url: str, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidInput, match=problem) as refused:
        Tenure(sqlite_url).enqueue("a", **options)
    assert refused.value.path == "$.start_by"


def test_it_is_a_part_of_the_request_of_a_key(app: Tenure) -> None:
    first = app.enqueue("a", start_by="1h", idempotency_key="k")
    assert app.enqueue("a", start_by=3600, idempotency_key="k") == first
    for other in ({}, {"start_by": "2h"}, {"start_by": START + HOUR}):
        with pytest.raises(KeyConflict):
            app.enqueue("a", idempotency_key="k", **other)  # type: ignore[arg-type]
    app.enqueue("a", start_by=START + HOUR, idempotency_key="at")
    with pytest.raises(KeyConflict):
        app.enqueue("a", start_by=START + 2 * HOUR, idempotency_key="at")


def by_client(url: str) -> Job:
    with ServerProcess(url) as server, Client(server.url) as client:
        return client.enqueue("a", start_by=HOUR)


def by_command(url: str) -> Job:
    body = cli_json("enqueue", "a", "--start-by", "1h", "--database", url)
    with Tenure(url) as app:
        return app.get(body["id"])


@pytest.mark.parametrize("add", [by_client, by_command])
def test_every_door_takes_it(add: Callable[[str], Job], sqlite_url: str) -> None:
    job = add(sqlite_url)
    assert job.start_by is not None
    assert abs(job.start_by - job.created_at - HOUR) <= timedelta(milliseconds=1)
