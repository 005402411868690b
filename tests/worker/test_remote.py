"""Workers that reach the store through a server: the same worker, a source that can hold claims."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import httpx2
import pytest

import tenure.worker.exchanges
import tenure.worker.worker
from tenure import Failure, Job, JobContext, Tenure
from tenure.client import Client
from tenure.rules.reports import ClaimRequest
from tenure.telemetry import logs
from tests.support.http import ServerProcess
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.support.workers import (
    running_worker,
    transitions,
    wait_until_completed,
    wait_until_failed,
)


@pytest.fixture
def server(app: Tenure) -> Iterator[ServerProcess]:
    with ServerProcess(app.database) as served:
        yield served


def test_outcomes_of_every_kind(app: Tenure, server: ServerProcess) -> None:
    @app.job
    async def coroutine(number: int) -> int:
        return number

    @app.job
    def function(number: int) -> int:
        return number

    @app.job(max_retries=2, backoff=0)
    async def flaky(context: JobContext) -> int:
        if context.attempt == 1:
            raise ValueError("the first time")
        return context.attempt

    @app.job(max_retries=1, timeout=0.05)
    async def hang() -> None:
        await asyncio.Event().wait()

    jobs = [kind.enqueue(n) for kind in (coroutine, function) for n in range(20)]
    trying, overstaying = flaky.enqueue(), hang.enqueue()
    unfit = app.enqueue("function", {"number": "one"})
    with Client(server.url) as client, running_worker(app, client):
        results = [wait_until_completed(app, job).result_json for job in jobs]
        assert wait_until_completed(app, trying).result_json == "2"
        assert wait_until_failed(app, overstaying) == "timed out after 0.05 s"
        assert "at `$.number`" in wait_until_failed(app, unfit)
    assert results == 2 * [str(n) for n in range(20)]
    assert app.verify() == []


def test_hooks_are_called_as_beside_the_database(app: Tenure, server: ServerProcess) -> None:
    entered, failures = list[str](), list[Failure]()
    app.on_failure(failures.append)

    @app.around
    @contextmanager
    def note(context: JobContext) -> Iterator[None]:
        entered.append(f"{context.type} {context.attempt}")
        yield

    @app.job(max_retries=2, backoff=0)
    def fail() -> None:
        raise ValueError("no")

    with Client(server.url) as client, running_worker(app, client):
        job = fail.enqueue()
        wait_until_failed(app, job)
    assert entered == ["fail 1", "fail 2"]
    assert [(one.id, one.attempt, one.final, one.retry_in) for one in failures] == [
        *((job.id, 1, False, 0.0), (job.id, 2, True, None))
    ]
    assert all(isinstance(one.exception, ValueError) for one in failures)


def test_a_cancelled_job_tells_its_handler(app: Tenure, server: ServerProcess) -> None:
    started = threading.Event()
    told = threading.Event()

    @app.job
    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            told.set()

    with Client(server.url) as client, running_worker(app, client, lease_seconds=1):
        job = work.enqueue()
        assert started.wait(WAIT_SECONDS)
        app.cancel(job.id)
        assert told.wait(WAIT_SECONDS)
    assert transitions(app, job) == ["enqueued", "claimed", "cancelled"]


def four_held_jobs(app: Tenure) -> tuple[list[Job], threading.Semaphore, threading.Event]:
    """Return jobs, the semaphore that each releases when it runs, and the event that ends them."""
    go_on = threading.Event()
    running = threading.Semaphore(0)

    @app.job
    def work(number: int) -> int:
        running.release()
        go_on.wait(WAIT_SECONDS)
        return number

    jobs = app.enqueue_many([work.new_job(n) for n in range(4)])
    return jobs, running, go_on


@pytest.mark.scenario(42)
def test_outcomes_are_kept_while_the_server_is_away(app: Tenure, server: ServerProcess) -> None:
    jobs, running, go_on = four_held_jobs(app)
    with Client(server.url) as client, running_worker(app, client) as worker:
        for _ in jobs:
            assert running.acquire(timeout=WAIT_SECONDS)
        server.process.kill()
        server.process.wait()
        go_on.set()
        wait_until(lambda: worker._leases.unreported == 4, "every outcome to be kept")
        with ServerProcess(app.database, "--port", str(server.address[1])):
            for job in jobs:
                assert wait_until_completed(app, job).attempts == 1


@pytest.mark.scenario(42)
def test_a_server_that_was_away_for_a_lease_lets_workers_renew_first(
    app: Tenure, server: ServerProcess
) -> None:
    """It swept at once, so that a deploy of the server charged what ran, and ran it twice."""
    jobs, running, go_on = four_held_jobs(app)
    with Client(server.url) as client, running_worker(app, client, lease_seconds=2):
        for _ in jobs:
            assert running.acquire(timeout=WAIT_SECONDS)
        server.process.kill()
        server.process.wait()
        app.enqueue("of_a_dead_worker")
        app.core.claim(ClaimRequest(worker="dead", limit=1, lease_seconds=0.1))
        ends = [app.get(job.id).lease_expires_at for job in jobs]
        wait_until(lambda: all(end and datetime.now(UTC) > end for end in ends), "leases to end")
        with ServerProcess(app.database, "--port", str(server.address[1])):
            wait_until(lambda: app.find(type="of_a_dead_worker", status="pending"), "a sweep")
            go_on.set()
            for job in jobs:
                assert wait_until_completed(app, job).attempts == 1


class Gateway(httpx2.BaseTransport):
    """Answers some reports by itself, as one that is set up wrongly, and passes on the others."""

    def __init__(self, behind: httpx2.BaseTransport, status: int, body: bytes) -> None:
        self._behind, self._answer, self.times = behind, (status, body), 3

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path != "/reports" or not self.times:
            return self._behind.handle_request(request)
        self.times -= 1
        status, body = self._answer
        return httpx2.Response(status, content=body)


PAGE = b"<html>Please sign in</html>"


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, PAGE), (302, b""), (401, PAGE), (404, PAGE), (429, PAGE), (200, b"[]")],
)
def test_outcomes_are_kept_while_something_else_answers(
    app: Tenure, server: ServerProcess, status: int, body: bytes
) -> None:
    """The worker blamed its report: it said that the job failed, and then dropped that too."""

    @app.job
    def work() -> str:
        return "done"

    job = work.enqueue()
    with Client(server.url) as client:
        gateway = Gateway(client._to.http._transport, status, body)
        client._to.http._transport = gateway
        with running_worker(app, client):
            assert wait_until_completed(app, job).result_json == '"done"'
    assert gateway.times == 0
    assert [entry.event for entry in app.history(job.id)] == ["enqueued", "claimed", "completed"]


def test_an_outcome_is_kept_while_the_token_is_refused(
    app: Tenure,
    server: ServerProcess,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The refusal is about the caller: it says nothing against the outcome."""
    monkeypatch.setattr(logs, "REPEAT_SECONDS", 0)
    runs, ends = threading.Event(), threading.Event()

    @app.job
    def work() -> str:
        runs.set()
        assert ends.wait(WAIT_SECONDS)
        return "done"

    secret, _ = app.tokens.create("worker", ["work"])
    with Client(server.url, secret) as client, running_worker(app, client):
        job = work.enqueue()
        assert runs.wait(WAIT_SECONDS)
        sent = client._to.http.headers
        sent["Authorization"] = "Bearer of another server"
        ends.set()
        refused = "the server refused this worker: it keeps 1 outcome and"
        wait_until(lambda: caplog.text.count(refused) > 2, "the outcome to be refused")
        assert "Traceback" not in caplog.text
        sent["Authorization"] = f"Bearer {secret}"
        assert wait_until_completed(app, job).result == "done"
    assert transitions(app, job) == ["enqueued", "claimed", "completed"]


def test_a_handler_stops_when_its_lease_ends_while_the_token_is_refused(
    app: Tenure, server: ServerProcess
) -> None:
    """It went on until the worker stopped, and was told of a shutdown."""
    runs, told = threading.Event(), list[str | None]()

    @app.job
    async def work(context: JobContext) -> None:
        runs.set()
        try:
            await asyncio.Event().wait()
        finally:
            told.append(context.stopped)

    secret, _ = app.tokens.create("worker", ["work"])
    with (
        Client(server.url, secret) as client,
        running_worker(app, client, lease_seconds=1, grace_seconds=0),
    ):
        work.enqueue()
        assert runs.wait(WAIT_SECONDS)
        client._to.http.headers["Authorization"] = "Bearer of another server"
        wait_until(lambda: told, "the handler to be stopped")
    assert told == ["lost"]


def test_a_worker_whose_claim_is_held_stops_at_once(
    app: Tenure, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenure.worker.worker, "FINAL_REPORT_SECONDS", 1_000)
    monkeypatch.setattr(tenure.worker.exchanges, "LONG_POLL_SECONDS", 1_000)

    @app.job
    async def work() -> None: ...

    with Client(server.url) as client, running_worker(app, client) as worker:
        wait_until(lambda: worker._exchanges.under_way, "the worker to ask")
