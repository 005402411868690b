"""What a test can rely on when it runs jobs; no other test saw these lines of `runs.py` broken."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import Any, cast

import pytest

from tenure import Failure, InvalidInput, JobContext, Tenure, testing
from tenure.demo import add_fake_handlers
from tenure.errors import ScheduleNotFound
from tests.testing import handlers
from tests.testing.conftest import Enter


def test_what_is_no_application_is_refused() -> None:
    with pytest.raises(InvalidInput, match="a Tenure application"):
        testing.Jobs(cast(Any, "shop"))


def test_a_drain_makes_the_schedules_known_once(enter: Enter, nowhere: Tenure) -> None:
    """As a worker does when it starts: what the test deletes stays away, until it clears all."""

    @nowhere.schedule(every="1h")
    @nowhere.job
    def report() -> None: ...

    jobs = enter(nowhere)
    jobs.drain()
    assert nowhere.schedules.get("report").when.every == 3_600
    jobs.clear()
    with pytest.raises(ScheduleNotFound):
        nowhere.schedules.get("report")
    jobs.travel("1h")
    jobs.assert_enqueued(report, count=1)


def test_a_clock_that_did_not_travel_is_left_alone(nowhere: Tenure, sqlite_url: str) -> None:
    """To set it changes the schema, which not every role may."""
    with Tenure(sqlite_url) as app:
        app.open()

    def version() -> int:
        with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as connection:
            return int(connection.execute("PRAGMA schema_version").fetchone()[0])

    before = version()
    with testing.on(nowhere, sqlite_url) as jobs:
        jobs.drain()
        assert version() == before
        jobs.clear()
    assert version() == before


def test_a_drain_shows_who_asks_for_jobs(enter: Enter, nowhere: Tenure) -> None:
    jobs = enter(nowhere)
    jobs.drain()
    assert [worker.label for worker in nowhere.workers.list()] == ["test"]


def test_an_error_names_the_argument(enter: Enter, nowhere: Tenure) -> None:
    jobs = enter(nowhere)
    with pytest.raises(InvalidInput) as refused:
        jobs.drain(until="soon")
    assert refused.value.path == "$.until"


def test_inline_runs_by_priority(enter: Enter, nowhere: Tenure) -> None:
    ran: list[int] = []

    @nowhere.job
    def note(number: int) -> None:
        ran.append(number)

    enter(nowhere)
    with testing.inline(nowhere):
        nowhere.enqueue_many(
            [note.options(priority=number).new_job(number) for number in (3, 1, 2)]
        )
    assert ran == [1, 2, 3]


@pytest.mark.anyio
async def test_on_failure_is_called_where_a_coroutine_drains(nowhere: Tenure) -> None:
    seen: list[str] = []

    @nowhere.on_failure
    async def coroutine(failure: Failure) -> None:
        seen.append(failure.type)

    @nowhere.job
    def bad() -> None:
        raise ValueError("no")

    with testing.on(nowhere) as jobs:
        await bad.enqueue_async()
        await jobs.drain_async(raise_errors=False)
    assert seen == ["bad"]


@pytest.mark.anyio
async def test_one_job_runs_in_the_process_of_the_test(nowhere: Tenure) -> None:
    nowhere.core.take_over(handlers.app.core)
    with testing.on(nowhere) as jobs:
        assert jobs.run(nowhere.enqueue("process")).result == os.getpid()
        job = await jobs.run_async(await nowhere.enqueue_async("process"))
        assert job.result == os.getpid()


def test_a_lease_lasts_while_a_handler_lets_time_pass(enter: Enter, nowhere: Tenure) -> None:
    @nowhere.job
    def waits(context: JobContext) -> int:
        jobs.travel("2h")
        return context.attempt

    jobs = enter(nowhere)
    job = waits.enqueue()
    assert jobs.drain().completed == 1
    assert nowhere.get(job.id).result == 1


def test_a_drain_makes_a_deleted_schedule_no_more(enter: Enter, nowhere: Tenure) -> None:
    @nowhere.schedule(every="1h")
    @nowhere.job
    def report() -> None: ...

    jobs = enter(nowhere)
    jobs.drain()
    nowhere.schedules.delete("report")
    jobs.travel("1h")
    assert jobs.drain().runs == []


def test_what_is_due_at_the_very_end_runs(enter: Enter, nowhere: Tenure) -> None:
    @nowhere.job
    def note() -> None: ...

    jobs = enter(nowhere)
    job = note.options(delay="1h").enqueue()
    later = note.options(delay="2h").enqueue()
    assert [run.job.id for run in jobs.drain(until=job.run_at).runs] == [job.id]
    assert nowhere.get(later.id).status == "pending"


def test_what_is_left_is_of_the_queues_and_types_that_were_asked_for(
    enter: Enter, nowhere: Tenure
) -> None:
    @nowhere.job
    def note() -> None: ...

    @nowhere.job(queue="mail")
    def send() -> None: ...

    jobs = enter(nowhere)
    for one in (note, send, send):
        one.options(delay="1h").enqueue()
    assert jobs.drain(queues=["mail"]).left == 2
    assert jobs.drain(types=["note"]).left == 1
    assert jobs.drain().left == 3


def test_handlers_for_any_type_run_in_a_test_too(enter: Enter, nowhere: Tenure) -> None:
    add_fake_handlers(nowhere.core.handlers)
    jobs = enter(nowhere)
    with testing.inline(nowhere):
        job = nowhere.enqueue("whatever")
    assert nowhere.get(job.id).status == "completed"
    nowhere.enqueue("another", delay="1h")
    assert jobs.drain().left == 1
    assert jobs.drain(until="1h").completed == 1


def test_jobs_that_wait_for_others_are_not_too_many(enter: Enter, nowhere: Tenure) -> None:
    @nowhere.job
    def note() -> None: ...

    jobs = enter(nowhere)
    later = note.options(delay="1d").enqueue()
    note.options(depends_on=[later]).enqueue()
    note.enqueue()
    assert jobs.drain(most=1).completed == 1


def test_retries_does_not_bring_forward_what_was_delayed(enter: Enter, nowhere: Tenure) -> None:
    @nowhere.job
    def note() -> None: ...

    jobs = enter(nowhere)
    note.options(delay="1d").enqueue()
    assert jobs.drain(retries=True).runs == []
