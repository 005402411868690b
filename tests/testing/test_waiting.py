"""A handler in a test that waits for another job, which only the same test could run."""

from __future__ import annotations

import gc
import time

import pytest

from tenure import JobContext, JobFailed, Tenure, testing
from tenure.app import waiting
from tenure.store import waits
from tests.support.waiting import wait_until
from tests.support.workers import running_worker
from tests.testing import handlers

WAITS = ["wait", "wait_async", "result", "result_async", "as_completed", "as_completed_async"]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "DOUBT_SECONDS", 0.05)


@pytest.fixture
def app(nowhere: Tenure) -> Tenure:
    """An application with a handler for each way to wait, named after it."""

    @nowhere.job
    def other(number: int = 1) -> int:
        return number

    @nowhere.job
    def wait() -> None:
        nowhere.wait(other.enqueue())

    @nowhere.job
    async def wait_async() -> None:
        await nowhere.wait_async(await other.enqueue_async())

    @nowhere.job
    def result() -> None:
        other.submit().result()

    @nowhere.job
    async def result_async() -> None:
        await other.submit()

    @nowhere.job
    def as_completed() -> None:
        for handle in nowhere.as_completed([other.submit() for _ in range(2)]):
            handle.result()

    @nowhere.job
    async def as_completed_async() -> None:
        async for handle in nowhere.as_completed([other.submit() for _ in range(2)]):
            await handle

    return nowhere


@pytest.mark.parametrize("way", WAITS)
def test_a_wait_for_a_job_that_the_same_drain_runs_ends(app: Tenure, way: str) -> None:
    """It hung for ever. The other job runs in the next drain."""
    with testing.on(app) as jobs:
        app.enqueue(way)
        with pytest.raises(RuntimeError, match=r"\(other\) cannot run.*one job after the other"):
            jobs.drain()
        assert jobs.drain().left == 1


@pytest.mark.parametrize("way", WAITS)
@pytest.mark.anyio
async def test_it_ends_on_the_loop_of_the_test_too(app: Tenure, way: str) -> None:
    with testing.on(app) as jobs:
        job = await app.enqueue_async(way)
        with pytest.raises(RuntimeError, match="one job after the other"):
            await jobs.run_async(job)


def test_a_wait_for_a_settled_job_is_no_wait(app: Tenure) -> None:
    @app.job
    def sees(job_id: str) -> str:
        return app.wait(job_id).status

    with testing.on(app) as jobs:
        job = jobs.run(app.enqueue("other"))
        assert jobs.run(sees.enqueue(job.id)).result == "completed"


def test_a_job_that_is_settled_or_gone_after_the_look_is_left_to_the_next(app: Tenure) -> None:
    with testing.on(app) as jobs:
        job = jobs.run(app.enqueue("other"))
        waiter = app.enqueue("wait")
        assert waiting._stuck(app.core, job.id, waiter.id) is None
        assert waiting._stuck(app.core, app.enqueue("other").id, waiter.id) is not None
        jobs.clear()
        assert waiting._stuck(app.core, job.id, app.enqueue("wait").id) is None


def test_what_the_handler_has_raised_is_not_logged_by_asyncio_too(
    app: Tenure, caplog: pytest.LogCaptureFixture
) -> None:
    with testing.on(app) as jobs:
        app.enqueue("as_completed_async")
        jobs.drain(raise_errors=False)
    gc.collect()
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


def test_a_handler_does_not_wait_for_itself(app: Tenure) -> None:
    """It is running, but by the test."""

    @app.job
    def itself(context: JobContext) -> None:
        app.wait(context.id)

    with testing.on(app) as jobs, pytest.raises(RuntimeError, match="cannot run while"):
        jobs.run(itself.enqueue())


def test_a_wait_for_what_a_worker_beside_the_test_runs_continues(app: Tenure) -> None:
    """However long that takes."""

    @app.job(queue="slow")
    def slow() -> int:
        time.sleep(0.5)  # several looks
        return 7

    @app.job
    def sums() -> int:
        return app.wait(job.id).result + 1

    with testing.on(app) as jobs, running_worker(app, queues=["slow"]):
        job = slow.enqueue()
        wait_until(lambda: app.get(job.id).status == "processing", "the worker runs it")
        assert jobs.run(sums.enqueue()).result == 8


def test_a_wait_for_a_job_of_another_database_is_not_judged(app: Tenure, sqlite_url: str) -> None:
    """Others may run it."""
    elsewhere = Tenure(sqlite_url)

    @app.job
    def asks() -> str:
        try:
            elsewhere.wait(elsewhere.enqueue("other"), timeout=0.5)
        except TimeoutError:
            return "late"
        return "settled"

    with testing.on(app) as jobs, elsewhere:
        assert jobs.run(asks.enqueue()).result == "late"


def test_a_short_wait_ends_as_it_was_asked(app: Tenure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    @app.job
    def looks() -> str:
        try:
            app.wait(app.enqueue("other"), timeout=0.1)
        except TimeoutError:
            return "late"
        return "settled"

    with testing.on(app) as jobs:
        assert jobs.run(looks.enqueue()).result == "late"


def test_a_wait_in_a_child_process_ends_too(nowhere: Tenure) -> None:
    nowhere.core.take_over(handlers.app.core)
    with testing.on(nowhere) as jobs:
        other = nowhere.enqueue("plain", delay="1h")
        nowhere.enqueue("waits_there", {"database": nowhere.database, "job_id": other.id})
        with pytest.raises(JobFailed, match="one job after the other"):
            jobs.drain(real_processes=True)
