"""A handler that overstays its time: its attempt has failed, whatever it does then."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from tenure import JobContext, Status, Tenure
from tenure.worker import attempts
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.support.workers import (
    running_worker,
    transitions,
    wait_until_completed,
    wait_until_failed,
    wait_until_settled,
)


def test_a_coroutine_is_cancelled_and_tried_again(app_on_each_engine: Tenure) -> None:
    app = app_on_each_engine
    cancelled: list[int] = []

    @app.job(timeout=0.4, max_retries=2, backoff=0)
    async def hang(context: JobContext) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            assert context.stopped == "timeout"
            cancelled.append(context.attempt)
            raise

    job = hang.enqueue()
    with running_worker(app):
        assert wait_until_failed(app, job) == "timed out after 0.4 s"

    assert cancelled == [1, 2]
    again = ["claimed", "failed"]
    assert transitions(app, job) == ["enqueued", *again, "retried", *again]


def test_a_job_in_time_is_left_alone(app: Tenure) -> None:
    @app.job(timeout=60)
    async def coroutine() -> str:
        await asyncio.sleep(0.01)
        return "done"

    @app.job(timeout=60)
    def function() -> str:
        return "done"

    jobs = [coroutine.enqueue(), function.enqueue()]
    with running_worker(app):
        assert [wait_until_completed(app, job).result_json for job in jobs] == ['"done"', '"done"']


def test_what_a_cancelled_coroutine_still_says_changes_nothing(app: Tenure) -> None:
    said = threading.Event()

    @app.job(timeout=0.4, max_retries=1)
    async def stubborn(answer: str) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            said.set()
            if answer == "raise":
                raise ValueError("after the end") from None
        return "late"

    jobs = [stubborn.enqueue("return"), stubborn.enqueue("raise")]
    with running_worker(app):
        for job in jobs:
            assert wait_until_failed(app, job) == "timed out after 0.4 s"
    assert said.is_set()
    assert all(app.get(job.id).result_json is None for job in jobs)
    assert all(transitions(app, job) == ["enqueued", "claimed", "failed"] for job in jobs)


@pytest.mark.scenario(13, 20)
def test_a_coroutine_that_swallows_its_cancellation_loses_its_slot(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "UNWIND_SECONDS", 0.05)
    let_go = False

    @app.job(timeout=0.05, max_retries=1)
    async def swallow() -> str:
        while not let_go:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue
        return "late"

    @app.job
    async def quick() -> None: ...

    job = swallow.enqueue()
    with running_worker(app, concurrency=1):
        assert wait_until_failed(app, job) == "timed out after 0.05 s"
        others = [quick.enqueue() for _ in range(3)]
        for other in others:
            wait_until_completed(app, other)
        let_go = True
        wait_until_completed(app, quick.enqueue())
    assert transitions(app, job) == ["enqueued", "claimed", "failed"]


def test_only_a_coroutine_that_does_not_end_is_left_behind(
    app: Tenure, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(attempts, "UNWIND_SECONDS", 0.05)
    let_go = False

    @app.job(timeout=0.05, max_retries=1)
    async def work(*, obey: bool) -> None:
        while not let_go:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                if obey:
                    raise

    with running_worker(app, concurrency=1):
        jobs = [work.enqueue(obey=obey) for obey in (True, False)]
        for job in jobs:
            wait_until_failed(app, job)
        wait_until(lambda: "left behind" in caplog.text, "the second to be left behind")
        let_go = True
    left = [line for line in caplog.text.splitlines() if "left behind" in line]
    assert len(left) == 1
    assert jobs[1].id in left[0]


def test_a_coroutine_that_was_stopped_is_not_interrupted_as_well(
    app: Tenure, caplog: pytest.LogCaptureFixture
) -> None:
    @app.job(timeout=0.05, max_retries=1)
    async def swallow(context: JobContext) -> None:
        while not context.stopping:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    with running_worker(app, grace_seconds=0) as worker:
        job = swallow.enqueue()
        wait_until_failed(app, job)
        wait_until(lambda: not worker._leases.to_renew(), "the answer to its report")
    assert "interrupted" not in caplog.text
    assert transitions(app, job) == ["enqueued", "claimed", "failed"]


@pytest.mark.scenario(13)
def test_a_thread_is_left_behind_and_replaced(app: Tenure) -> None:
    """However many threads hang, as many handlers as before can run at the same time."""
    let_go = threading.Event()
    contexts: list[JobContext] = []
    together = threading.Barrier(2)

    @app.job(timeout=0.05, max_retries=1)
    def hang(context: JobContext) -> str:
        contexts.append(context)
        let_go.wait(WAIT_SECONDS)
        return "late"

    @app.job(max_retries=1)
    def meet() -> None:
        together.wait(WAIT_SECONDS)

    @app.job
    def quick() -> None: ...

    with running_worker(app, concurrency=2):
        # The threads have a past, in which they went from one job straight to the next.
        for job in app.enqueue_many([quick.new_job()] * 200 + [meet.new_job()] * 4):
            wait_until_completed(app, job)
        hanging = [hang.enqueue() for _ in range(5)]
        for job in hanging:
            assert wait_until_failed(app, job) == "timed out after 0.05 s"
        wait_until(lambda: len(contexts) == 5, "each to have a thread")
        assert all(context.stopped == "timeout" for context in contexts)
        for job in [meet.enqueue() for _ in range(6)]:
            wait_until_completed(app, job)
        let_go.set()
        for job in [meet.enqueue() for _ in range(6)]:
            wait_until_completed(app, job)

    for job in hanging:
        assert app.get(job.id).result_json is None
        assert transitions(app, job) == ["enqueued", "claimed", "failed"]


def test_a_slot_is_free_again_though_its_coroutine_was_stopped_before_it_began(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "UNWIND_SECONDS", 1_000)
    together = asyncio.Barrier(2)

    @app.job
    async def quick() -> None: ...

    @app.job
    async def block() -> None:
        time.sleep(0.3)  # noqa: ASYNC251 - it is the fault under test

    @app.job(timeout=0.05, max_retries=1)
    async def late() -> None:
        await asyncio.sleep(0)

    @app.job(max_retries=1)
    async def meet() -> None:
        await together.wait()

    with running_worker(app, concurrency=2):
        # Many quick jobs make the worker claim ahead. Then a quick one makes room for `late`, and
        # before its first step the loop is blocked for longer than it has.
        new_jobs = [quick.new_job()] * 200 + [quick.new_job(), block.new_job(), late.new_job()] * 3
        ends = [wait_until_settled(app, job) for job in app.enqueue_many(new_jobs)]
        assert "timed out after 0.05 s" in {end.last_error for end in ends}
        for job in app.enqueue_many([meet.new_job()] * 4):
            wait_until_completed(app, job)


def test_ends_and_timeouts_at_the_same_moment_give_one_outcome_each(app: Tenure) -> None:
    runs: list[str] = []

    @app.job(timeout=0.05, max_retries=3, backoff=0)
    async def coroutine(context: JobContext, wait: float) -> str:
        runs.append(context.id)
        await asyncio.sleep(wait)
        return "done"

    @app.job(timeout=0.05, max_retries=3, backoff=0)
    def function(context: JobContext, wait: float) -> str:
        runs.append(context.id)
        time.sleep(wait)
        return "done"

    waits = [0.03 + 0.001 * number for number in range(40)]
    new_jobs = [kind.new_job(wait) for kind in (coroutine, function) for wait in waits]
    with running_worker(app, concurrency=20):
        jobs = app.enqueue_many(new_jobs)
        ends = [wait_until_settled(app, job) for job in jobs]

    for end in ends:
        assert runs.count(end.id) <= end.attempts
        outcomes = [e for e in transitions(app, end) if e in ("completed", "failed")]
        assert len(outcomes) == end.attempts
        assert (end.result_json == '"done"') == (end.status is Status.COMPLETED)
    assert app.verify() == []


def test_a_blocked_loop_delays_a_timeout_but_does_not_lose_it(app: Tenure) -> None:
    blocked = threading.Event()

    @app.job(max_retries=1)
    async def block() -> None:
        blocked.set()
        time.sleep(0.3)  # noqa: ASYNC251 - it is the fault under test

    @app.job(timeout=0.1, max_retries=1)
    async def hang() -> None:
        await asyncio.Event().wait()

    job = hang.enqueue()
    with running_worker(app, concurrency=2):
        blocker = block.enqueue()
        assert blocked.wait(WAIT_SECONDS)
        assert wait_until_failed(app, job) == "timed out after 0.1 s"
        wait_until_completed(app, blocker)
        wait_until(lambda: not app.find(status="processing"))


def test_a_job_that_returned_in_time_does_not_time_out_behind_a_blocked_loop(app: Tenure) -> None:
    @app.job(timeout=0.3, max_retries=1)
    def quick() -> None:
        time.sleep(0.15)

    @app.job
    async def blocks() -> None:
        await asyncio.sleep(0.05)
        time.sleep(0.8)  # noqa: ASYNC251 - it blocks the loop

    job = quick.enqueue()
    blocks.enqueue()
    with running_worker(app):
        wait_until_completed(app, job)
