"""Unique jobs in the caller's transaction, and beside it on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tenure import DuplicateJob, NewJob, QueueFull, Tenure, Unique
from tenure.lifecycle import Job
from tests.support.lenders import DRIVERS, Lender
from tests.support.store import claim_request
from tests.support.waiting import wait_until

pytest_plugins = ["tests.support.lent_app"]
ONE = Unique(("doc",))
STARTED = Unique(("doc",), until="started")
WAITS = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE wait_event_type = 'Lock' AND datname = current_database()"
)


@pytest.fixture
def app(app_for_kind: Tenure) -> Tenure:
    return app_for_kind


def new(doc: int = 1, rule: Unique = ONE, **payload: Any) -> NewJob:
    return NewJob("index", {"doc": doc, **payload}, {"unique": rule})


@pytest.mark.parametrize("kind", DRIVERS, indirect=True)
def test_a_conflict_leaves_the_transaction_usable(app: Tenure, lender: Lender) -> None:
    """oban#1087, #1093: nobody is told of a job that is rolled back."""
    replace = Unique(("doc",), on_conflict="replace")
    error = Unique(("doc",), on_conflict="error")
    soon = Unique(("doc",), within="1h")
    app.queues.limit("small", max_pending=1)
    first = app.enqueue("index", {"doc": 1}, unique=ONE)
    lender.begin()
    many = [new(), new(2), new(2), new(1, replace, n=1), new(9, soon), new(9, soon)]
    jobs = lender.call(app, "enqueue_many", many)
    assert [job.id for job in jobs[:4]] == [first.id, jobs[1].id, jobs[1].id, first.id]
    assert jobs[4].id == jobs[5].id != jobs[1].id
    with pytest.raises(DuplicateJob):
        lender.call(app, "enqueue_many", [new(3), new(1, error)])
    small = {"queue": "small", "unique": replace}
    with pytest.raises(QueueFull):
        lender.call(
            app,
            "enqueue_many",
            [NewJob("index", {"doc": n, "n": 9}, small) for n in (1, 4, 5)],  # type: ignore[arg-type]
        )
    assert lender.call(app, "get", first.id).payload == {"doc": 1, "n": 1}
    lender.commit()
    assert app.count().jobs == 3
    assert app.get(first.id).payload == {"doc": 1, "n": 1}
    assert app.history(first.id)[-1].event == "amended"
    assert app.enqueue("index", {"doc": 9}, unique=soon).id == jobs[4].id
    lender.begin()
    gone = lender.call(app, "enqueue_many", [new(7), new(8, soon)])
    lender.rollback()
    kept = app.enqueue_many([new(7), new(8, soon)])
    assert {job.id for job in kept}.isdisjoint(job.id for job in gone)


@pytest.fixture
def both(postgres_url: str) -> Iterator[tuple[Tenure, psycopg.Connection[Any]]]:
    with Tenure(postgres_url) as app, psycopg.connect(postgres_url) as connection:
        app.open()
        yield app, connection
        connection.rollback()
        assert app.verify() == []


def meanwhile(app: Tenure, connection: Any, act: Callable[[], Job]) -> Future[Job]:
    """Start what has to wait for the transaction on the connection."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(act)
    pool.shutdown(wait=False)
    with psycopg.connect(app.database, autocommit=True) as other:
        wait_until(lambda: other.execute(WAITS).fetchone() == (1,), "somebody waits for a lock")
    assert not future.done()
    return future


@pytest.mark.postgres
@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("rule", [ONE, Unique(("doc",), within="1h")])
def test_an_enqueue_waits_for_who_is_adding_the_same(both: Any, end: str, rule: Unique) -> None:
    """F19: oban#1087, #1093 answered "exists" for a job that was then rolled back."""
    app, connection = both
    (first,) = app.within(connection).enqueue_many([new(1, rule)])
    future = meanwhile(app, connection, lambda: app.enqueue_many([new(1, rule)])[0])
    getattr(connection, end)()
    assert (future.result(10).id == first.id) is (end == "commit")
    assert app.count().jobs == 1


@pytest.mark.postgres
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_an_enqueue_waits_for_who_takes_the_key_back(both: Any, end: str) -> None:
    """An operator's retry: its end is known before the caller's transaction writes anything."""
    app, connection = both
    first = app.enqueue_many([new()])[0]
    failed = (
        "status = 'failed', event = 'gave_up', lease_id = NULL, lease_expires_at = NULL,"
        " finished_at = now(), last_error = 'x'"
    )
    retried = "status = 'pending', event = 'retried', finished_at = NULL"
    for change in (CLAIMED, failed):
        connection.execute(f"UPDATE tenure.job SET {change}")
        connection.commit()
    connection.execute(f"UPDATE tenure.job SET {retried}")
    with psycopg.connect(app.database) as caller:
        add = app.within(caller).enqueue_many
        future = meanwhile(app, connection, lambda: add([new()])[0])
        getattr(connection, end)()
        assert (future.result(10).id == first.id) is (end == "commit")
        caller.execute("SELECT 1")


CLAIMED = (
    "status = 'processing', attempts = 1, token = 1, event = 'claimed', worker = 'w',"
    " lease_id = gen_random_uuid(), lease_expires_at = now() + interval '1 h',"
    " started_at = now()"
)


@pytest.mark.postgres
@pytest.mark.parametrize("within", [None, "1h"])
def test_a_job_that_is_being_claimed_is_not_replaced(both: Any, within: str | None) -> None:
    app, connection = both
    rule = Unique(("doc",), within=within, on_conflict="replace")
    first = app.enqueue_many([new(1, rule, n=1)])[0]
    connection.execute(f"UPDATE tenure.job SET {CLAIMED}")
    future = meanwhile(app, connection, lambda: app.enqueue_many([new(1, rule, n=2)])[0])
    connection.commit()
    job = future.result(10)
    assert (job.id, job.status, job.payload["n"]) == (first.id, "processing", 1)


@pytest.mark.postgres
def test_an_enqueue_between_a_failure_and_its_retry_finds_the_holder(both: Any) -> None:
    """F16: river PR 619."""
    app, connection = both
    first = app.enqueue_many([new()])[0]
    steps = (
        CLAIMED,
        "status = 'failed', event = 'failed', lease_id = NULL, lease_expires_at = NULL,"
        " finished_at = now(), last_error = 'x'",
        "status = 'pending', event = 'retried', finished_at = NULL",
    )
    connection.execute(f"UPDATE tenure.job SET {steps[0]}")
    connection.commit()
    connection.execute(f"UPDATE tenure.job SET {steps[1]}")
    assert app.enqueue_many([new()])[0].id == first.id
    connection.execute(f"UPDATE tenure.job SET {steps[2]}")
    assert app.enqueue_many([new()])[0].id == first.id
    connection.commit()
    assert app.enqueue_many([new()])[0].id == first.id


@pytest.mark.postgres
def test_a_job_that_was_answered_does_not_start_before_the_commit(both: Any) -> None:
    """Its handler would not see what the transaction has written."""
    app, connection = both
    first = app.enqueue_many([new(1, STARTED)])[0]
    assert app.within(connection).enqueue_many([new(1, STARTED)])[0].id == first.id
    core = app.core
    assert core.store.exchange((), claim_request()).result().leases == []
    connection.commit()
    (lease,) = core.store.exchange((), claim_request()).result().leases
    assert lease.id == first.id


@pytest.mark.postgres
@pytest.mark.parametrize("rule", [ONE, STARTED])
def test_a_snapshot_that_is_too_old_is_a_serialization_failure(both: Any, rule: Unique) -> None:
    app, connection = both
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.execute("SELECT 1")
    app.enqueue_many([new(1, rule)])
    with pytest.raises(psycopg.errors.SerializationFailure):
        app.within(connection).enqueue_many([new(1, rule)])
    connection.rollback()
    assert app.within(connection).enqueue_many([new(1, rule)])
    connection.commit()
    assert app.count().jobs == 1


@pytest.mark.postgres
def test_transactions_with_keys_crosswise_do_not_deadlock(both: Any) -> None:
    """Within one call keys are locked in order, whatever the order of the jobs."""
    app, _ = both
    orders = [list(range(20)), list(reversed(range(20)))]

    def add(number: int) -> list[str]:
        with psycopg.connect(app.database) as connection:
            jobs = app.within(connection).enqueue_many([new(doc) for doc in orders[number % 2]])
            return sorted(job.id for job in jobs)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(add, range(12)))
    assert all(answer == answers[0] for answer in answers)
    assert app.count().jobs == 20
