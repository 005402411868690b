"""A cancel stops the handler at once, wherever it comes from, and what waits does not start.

Heartbeats are far apart here: none comes in time by itself.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tenure import Job, JobContext, Status, Tenure
from tenure.client import Client
from tenure.rules.reports import WorkSource
from tenure.rules.search import Filter
from tests.support.http import ServerProcess
from tests.support.raw_sql import RawSql
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.support.workers import SlowAnswers, running_worker, transitions, wait_until_completed
from tests.worker import children

LEASE = 3_000.0


@pytest.fixture(params=["beside the database", "over HTTP"])
def source(request: pytest.FixtureRequest, app_on_each_engine: Tenure) -> Iterator[WorkSource]:
    """Where a worker gets its jobs from."""
    if request.param == "beside the database":
        yield app_on_each_engine.core
        return
    with ServerProcess(app_on_each_engine.database) as server, Client(server.url) as client:
        yield client


def cancel_by_verb(app: Tenure, ids: Sequence[str]) -> None:
    for id in ids:
        assert app.cancel(id).status is Status.CANCELLED


def cancel_in_bulk(app: Tenure, ids: Sequence[str]) -> None:
    app.bulk.step(app.bulk.start("cancel", Filter(status="processing")).id)


def cancel_by_sql(app: Tenure, ids: Sequence[str]) -> None:
    raw = RawSql(app.database)
    for id in ids:
        raw.run(
            "UPDATE {job} SET status = 'cancelled', lease_id = NULL, lease_expires_at = NULL,"
            " finished_at = {now} WHERE id = ?",
            id,
        )
    raw.close()


def test_a_cancel_stops_its_handler_at_once(
    app_on_each_engine: Tenure, source: WorkSource, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    app = app_on_each_engine
    caplog.set_level(logging.INFO)
    started, told = threading.Barrier(3), list[str]()

    @app.job
    async def coroutine(context: JobContext) -> None:
        await asyncio.to_thread(started.wait, WAIT_SECONDS)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.append(f"coroutine {context.stopped}")
            raise

    @app.job
    def function(context: JobContext) -> None:
        started.wait(WAIT_SECONDS)
        wait_until(lambda: context.stopped, "the context to say so")
        told.append(f"function {context.stopped}")

    app.job(name="hang", process=True)(children.hang.handler.function)
    jobs = list[Job]()
    with running_worker(app, source, lease_seconds=LEASE) as worker, Tenure(app.database) as other:
        for cancel in (cancel_by_verb, cancel_in_bulk, cancel_by_sql):
            hang = app.enqueue("hang", {"path": str(tmp_path / "pid")})
            new = [coroutine.enqueue(), function.enqueue(), hang]
            started.wait(WAIT_SECONDS)
            wait_until(lambda: worker._leases.running == 3, "all to run")
            cancel(other, [job.id for job in new])
            wait_until(lambda: worker._leases.count == 0, "all to be stopped")
            jobs += new
        wait_until(lambda: len(told) == 6, "the handlers to be told")
    assert sorted(told) == 3 * ["coroutine cancelled"] + 3 * ["function cancelled"]
    assert [transitions(app, job) for job in jobs] == 9 * [["enqueued", "claimed", "cancelled"]]
    said = [record.getMessage() for record in caplog.records]
    assert all(f"job {job.id} was cancelled: its handler is stopped" in said for job in jobs)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_was_claimed_ahead_does_not_start_after_a_cancel(
    app_on_each_engine: Tenure, source: WorkSource
) -> None:
    """Up to twenty of 200 did (newcomer.md, B9)."""
    app = app_on_each_engine
    runs, blocking, let_go = list[int](), threading.Event(), threading.Event()

    @app.job
    async def note(number: int) -> None:
        runs.append(number)

    @app.job
    def block() -> None:
        blocking.set()
        let_go.wait(WAIT_SECONDS)

    new_jobs = [note.new_job(n) for n in range(300)]
    with running_worker(app, source, lease_seconds=LEASE, concurrency=2) as worker:
        jobs = app.enqueue_many(
            [*new_jobs[:250], block.new_job(), block.new_job(), *new_jobs[250:]]
        )
        assert blocking.wait(WAIT_SECONDS)
        app.bulk.step(app.bulk.start("cancel", Filter(type="note")).id)
        wait_until(lambda: worker._leases.ready == 0, "what was claimed ahead to be taken out")
        ran = len(runs)
        let_go.set()
        wait_until_completed(app, jobs[250])
        wait_until_completed(app, note.enqueue(300))
    assert runs[ran:] == [300]


@pytest.mark.parametrize("holds_caller", [False, True])
def test_a_job_that_is_cancelled_while_its_claim_is_answered_is_stopped(
    app_on_each_engine: Tenure, holds_caller: bool
) -> None:
    app = app_on_each_engine
    ran = threading.Event()

    @app.job
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ran.set()

    source = SlowAnswers(app, holds_caller=holds_caller)
    with running_worker(app, source, lease_seconds=LEASE) as worker:
        job = work.enqueue()
        assert source.claimed.wait(WAIT_SECONDS)
        asked = worker._heart.asked_at
        app.cancel(job.id)
        wait_until(lambda: worker._heart.asked_at > asked, "the worker to hear of it")
        source.let_through.set()
        wait_until(lambda: not worker._exchanges.under_way, "the claim to be answered")
        wait_until(lambda: worker._leases.count == 0, "the job to be stopped")
    assert transitions(app, job) == ["enqueued", "claimed", "cancelled"]


def test_a_remote_worker_hears_of_cancels_again_once_its_server_is_back(app: Tenure) -> None:
    stopped = threading.Event()

    @app.job
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    with (
        ServerProcess(app.database) as server,
        Client(server.url) as client,
        running_worker(app, client, lease_seconds=LEASE) as worker,
    ):
        job = work.enqueue()
        wait_until(lambda: worker._leases.running, "it to run")
        code, _ = server.stop(timeout=10)  # the stream does not hold it up
        assert code == 0
        asked = worker._heart.asked_at
        with ServerProcess(app.database, "--port", str(server.address[1])):
            wait_until(lambda: worker._heart.asked_at > asked, "the worker to listen again")
            app.cancel(job.id)
            assert stopped.wait(WAIT_SECONDS)
            wait_until(lambda: worker._leases.count == 0, "the job to be stopped")
