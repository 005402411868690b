"""A report that the store cannot digest fails alone, and the worker gets on with the others."""

from __future__ import annotations

import _sqlite3
import contextlib
import ctypes
import re
import sqlite3

import psycopg
import pytest

from tenure import Status, StoreUnavailable, Tenure
from tenure.worker.health import Health
from tests.support.clock import Clock
from tests.support.waiting import wait_until
from tests.support.workers import (
    running_sweeper,
    running_worker,
    transitions,
    wait_until_all_settled,
    wait_until_completed,
    wait_until_settled,
)

SQLITE = """
CREATE TRIGGER test_refuse BEFORE UPDATE ON tenure_job WHEN {refused}
BEGIN SELECT RAISE(ABORT, 'test: indigestible'); END;
"""
POSTGRES = """
CREATE FUNCTION tenure.test_refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'test: indigestible'; END $$;
CREATE TRIGGER test_refuse BEFORE UPDATE ON tenure.job FOR EACH ROW WHEN ({refused})
EXECUTE FUNCTION tenure.test_refuse();
"""


def refuse(app: Tenure, refused: str) -> None:
    """Have the database refuse some changes, as a full disk or a broken page would."""
    if app.database.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(app.database.removeprefix("sqlite:///"))) as file:
            file.execute(SQLITE.format(refused=refused))
    else:
        with psycopg.connect(app.database) as server:
            server.execute(POSTGRES.format(refused=refused).encode())


@pytest.fixture
def ready(app_on_each_engine: Tenure) -> Tenure:
    """An application with a handler whose every tenth result is poison."""

    @app_on_each_engine.job(max_retries=1)
    async def work(number: int) -> str:
        return "poison" if number % 10 == 0 else "food"

    app_on_each_engine.open()
    return app_on_each_engine


def test_a_result_that_cannot_be_recorded_fails_its_job_and_no_other(ready: Tenure) -> None:
    app = ready
    refuse(app, """NEW.result = '"poison"'""")
    jobs = [app.enqueue("work", {"number": n}, max_retries=1) for n in range(30)]
    with running_worker(app, concurrency=30):
        ends = wait_until_all_settled(app, jobs)

    for number, end in enumerate(ends):
        assert end.attempts == 1
        if number % 10 == 0:
            assert end.status is Status.FAILED
            assert re.match("the store could not record.*indigestible$", end.last_error or "")
        else:
            assert end.status is Status.COMPLETED
    assert app.verify() == []


def test_an_outcome_that_cannot_be_recorded_at_all_is_left_to_the_lease(
    ready: Tenure, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    app = ready
    refuse(app, "NEW.event IN ('completed', 'failed') AND OLD.priority = 7")
    poison = app.enqueue("work", {"number": 0}, priority=7, max_retries=1)
    jobs = [app.enqueue("work", {"number": n}) for n in range(1, 10)]
    with running_sweeper(app), running_worker(app, concurrency=30) as worker:
        for job in jobs:
            assert wait_until_completed(app, job).attempts == 1
        wait_until(lambda: "cannot be recorded" in caplog.text, "the worker to give it up")
        clock.advance(31)
        assert wait_until_settled(app, poison).status is Status.FAILED
        assert wait_until_completed(app, app.enqueue("work", {"number": 1})).attempts == 1
        wait_until(lambda: not worker._leases.to_renew(), "it to answer for no lease any more")
        assert Health(worker).ready() == []
    assert transitions(app, poison) == ["enqueued", "claimed", "lease_expired"]


def test_an_outcome_that_the_store_did_not_take_is_kept(
    ready: Tenure, caplog: pytest.LogCaptureFixture
) -> None:
    app = ready
    refuse(app, "NEW.event IN ('completed', 'failed')")  # so only an outcome is not taken
    app.enqueue("work", {"number": 0})
    with running_worker(app):
        wait_until(
            lambda: "the store refused an outcome" in caplog.text, "an outcome to be refused"
        )
    kept = re.findall(r"it keeps (\d+) outcomes? and", caplog.text)
    assert kept[0] == "1"
    assert {record.name.partition(".")[0] for record in caplog.records} == {"tenure"}


def test_an_outcome_is_kept_while_memory_is_short(app: Tenure) -> None:
    """The job had done its work, and was recorded as failed for good."""
    limit_heap = ctypes.CDLL(_sqlite3.__file__).sqlite3_hard_heap_limit64
    limit_heap.argtypes, limit_heap.restype = [ctypes.c_int64], ctypes.c_int64

    @app.job(max_retries=1)
    def work() -> str:
        limit_heap(1)  # in bytes, for all of SQLite in this process
        return "done"

    job = work.enqueue()
    with running_worker(app) as worker:
        try:
            wait_until(lambda: worker._exchanges.backoff.seconds > 0.5, "four exchanges to fail")
            with pytest.raises(StoreUnavailable, match="MemoryError"):
                app.get(job.id)
            with pytest.raises(StoreUnavailable, match="MemoryError"):
                app.enqueue("work")
        finally:
            limit_heap(0)  # none
        assert wait_until_completed(app, job).result_json == '"done"'


def test_a_worker_that_stops_does_not_wait_for_what_cannot_be_recorded(ready: Tenure) -> None:
    app = ready
    refuse(app, "NEW.event IN ('completed', 'failed') AND OLD.priority = 7")
    poison = app.enqueue("work", {"number": 0}, priority=7)
    with running_worker(app) as worker:
        wait_until(lambda: worker._leases.unreported, "the outcome to be kept")
        job = app.enqueue("work", {"number": 1})
        wait_until_completed(app, job)
    assert app.get(poison.id).status is Status.PROCESSING
