"""Waiting for a job over HTTP and on the command line."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tenure import Tenure
from tenure.app import waiting
from tenure.server import build
from tests.support.cli import run_cli
from tests.support.http import UNKNOWN_ID, Exchange, api_client, assert_problem
from tests.support.waiting import wait_until
from tests.support.workers import running_worker


@pytest.fixture
def app(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tenure]:
    monkeypatch.setenv("TENURE_DATABASE", database_url)
    with Tenure(database_url, actor="test") as made:
        yield made


def asking(app: Tenure, path: str, query: str) -> Exchange:
    return Exchange(build(app), "GET", path, query=query)


async def until_it_waits(app: Tenure) -> None:
    await asyncio.to_thread(wait_until, lambda: app.core.store._waits._waits, "the wait")


@pytest.mark.anyio
async def test_a_request_is_answered_when_the_job_is_settled(app: Tenure) -> None:
    job = await app.enqueue_async("a", delay="1h")
    async with asking(app, f"/jobs/{job.id}", "wait=60") as request:
        await until_it_waits(app)
        assert not request.task.done()
        await app.cancel_async(job.id)
        assert (await request.end())["status"] == "cancelled"


@pytest.mark.anyio
async def test_a_request_waits_no_longer_than_asked_and_holds_nothing(app: Tenure) -> None:
    job = await app.enqueue_async("a", delay="1h")
    built = build(app)
    threads = threading.active_count()
    for query in ("wait=0.05", "wait=0", ""):
        async with Exchange(built, "GET", f"/jobs/{job.id}", query=query) as request:
            assert (await request.end())["status"] == "pending"
    path = f"/jobs/{job.id}"
    requests = [Exchange(built, "GET", path, query="wait=60") for _ in range(100)]
    for request in requests:
        await request.__aenter__()
    await asyncio.to_thread(wait_until, lambda: len(app.core.store._waits._waits) == 100, "waits")
    assert threading.active_count() < threads + 60  # those that read, and one that waits
    for request in requests[:50]:
        await request.hang_up()
        await request.end()
    await asyncio.to_thread(wait_until, lambda: len(app.core.store._waits._waits) == 50, "the rest")
    built.state.notifier.stop()
    for request in requests[50:]:
        assert (await request.end())["status"] == "pending"  # as it stands when the server stops


def test_the_log_says_that_no_worker_takes_what_is_waited_for(
    app: Tenure, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A first program without a worker was silent for ever; many waits are still one line."""
    monkeypatch.setattr(waiting, "UNSERVED_SECONDS", 0.01)
    monkeypatch.setattr(waiting._Unserved, "_next", 0.0)
    jobs = [app.enqueue("lonely") for _ in range(3)]
    with ThreadPoolExecutor() as threads:
        waits = [threads.submit(app.wait, job) for job in jobs]
        try:
            wait_until(lambda: caplog.messages, "a line in the log")
        finally:
            for job in jobs:
                app.cancel(job.id)
        assert [wait.result().status for wait in waits] == ["cancelled"] * 3
    (said,) = caplog.messages
    assert said.startswith("a call waits for job ")
    assert said.endswith(
        ": No worker is alive; start one for jobs of type lonely in queue default."
    )


def test_a_wait_has_bounds_and_a_job(app: Tenure) -> None:
    with api_client(app) as api:
        assert_problem(api.get(f"/jobs/{UNKNOWN_ID}?wait=1"), 404, "job_not_found")
        job = app.enqueue("a", delay="1h")
        for wrong in ("61", "-1", "soon"):
            assert_problem(api.get(f"/jobs/{job.id}?wait={wrong}"), 400, "invalid_input")


def test_commands_exit_with_the_outcome(app: Tenure) -> None:
    @app.job
    def work(number: int) -> dict[str, int]:
        if number < 0:
            raise ValueError("too small")
        return {"number": number}

    once = ("--max-retries", "1")
    with running_worker(app):
        done = run_cli("enqueue", "work", '{"number": 1}', "--wait")
        job_id, result = done.stdout.split()
        assert (done.exit_code, json.loads(result)) == (0, {"number": 1})
        assert run_cli("jobs", "wait", job_id).stdout.strip() == result
        failed = run_cli("enqueue", "work", '{"number": -1}', *once, "--wait", "--json")
        assert (failed.exit_code, json.loads(failed.stdout)["status"]) == (1, "failed")
        said = run_cli("jobs", "wait", json.loads(failed.stdout)["id"])
        assert (said.exit_code, said.stdout) == (1, "")
        assert "failed: ValueError: too small" in said.stderr
    later = work.options(delay="1h").enqueue(1)
    over = run_cli("jobs", "wait", later.id, "--timeout", "0.05")
    assert (over.exit_code, over.stdout) == (5, "")
    assert "it continues" in over.stderr
    app.cancel(later.id)
    assert run_cli("jobs", "wait", later.id).exit_code == 6
    assert run_cli("jobs", "wait", UNKNOWN_ID).exit_code == 3
