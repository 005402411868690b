"""Leases: kept while a worker lives, lost when it does not, and never held by two at once."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tenure import JobContext, NewJob, Status, Tenure
from tenure.rules.reports import ClaimRequest
from tenure.worker.worker import Worker
from tests.support.clock import Clock
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.support.worker_scripts import WorkerScript, freeze, wait_for_exit
from tests.support.workers import (
    running_sweeper,
    running_worker,
    transitions,
    wait_until_completed,
    wait_until_failed,
    wait_until_settled,
)

TAKEN_OVER = ["enqueued", "claimed", "lease_expired", "retried", "claimed"]
LEASE = 1.0  # seconds; there is a heartbeat every third of it


def pass_some_leases(app: Tenure, clock: Clock) -> None:
    """Let the store's time go on, as far as heartbeats keep up with it."""
    for _ in range(4):
        clock.advance(LEASE - 0.1)
        renewed = clock.now + timedelta(seconds=LEASE)
        wait_until(
            lambda renewed=renewed: all(  # type: ignore[misc]
                job.lease_expires_at is None or job.lease_expires_at >= renewed
                for job in app.find(status="processing", limit=500)
            ),
            "every lease to be renewed",
        )


@pytest.mark.scenario(9, 10)
def test_handlers_that_take_longer_than_a_lease_run_once(
    app_on_each_engine: Tenure, clock: Clock
) -> None:
    """One blocks the loop, one a thread; heartbeats come from elsewhere."""
    app = app_on_each_engine
    runs: list[str] = []
    running = threading.Semaphore(0)
    let_go = threading.Event()

    @app.job
    async def block() -> None:
        runs.append("block")
        running.release()
        let_go.wait(WAIT_SECONDS)

    @app.job
    def stay() -> None:
        runs.append("stay")
        running.release()
        let_go.wait(WAIT_SECONDS)

    with running_sweeper(app), running_worker(app, lease_seconds=LEASE):
        jobs = app.enqueue_many([stay.new_job(), block.new_job()])
        for _ in jobs:
            assert running.acquire(timeout=WAIT_SECONDS)
        pass_some_leases(app, clock)
        let_go.set()
        for job in jobs:
            assert wait_until_completed(app, job).attempts == 1
    assert sorted(runs) == ["block", "stay"]
    assert [transitions(app, job) for job in jobs] == 2 * [["enqueued", "claimed", "completed"]]


def test_the_first_heartbeat_comes_before_the_first_lease_ends(
    app_on_each_engine: Tenure, clock: Clock
) -> None:
    """A third of a lease after the start, also if nothing else asks for it. That is real time."""
    app = app_on_each_engine
    let_go, watched = threading.Event(), threading.Event()
    lease = 6.0
    app.core.on_end("an earlier worker", watched.set)
    assert watched.wait(WAIT_SECONDS)  # the watch asks all workers of its process as it begins

    @app.job
    def stay() -> None:
        let_go.wait(WAIT_SECONDS)

    job = stay.enqueue()
    with running_worker(app, lease_seconds=lease):
        wait_until(lambda: app.get(job.id).status is Status.PROCESSING, "the job to be claimed")
        renewed = clock.advance(1) + timedelta(seconds=lease)
        wait_until(
            lambda: app.get(job.id).lease_expires_at == renewed, "a heartbeat", seconds=lease
        )
        let_go.set()


def test_jobs_that_wait_in_a_worker_keep_their_leases_too(
    app_on_each_engine: Tenure, clock: Clock
) -> None:
    """While the loop is blocked, jobs claimed ahead cannot be handed back; they are not lost."""
    app = app_on_each_engine
    runs: list[int] = []
    blocking = threading.Event()
    let_go = threading.Event()

    @app.job
    async def note(number: int) -> None:
        runs.append(number)

    @app.job
    async def block() -> None:
        blocking.set()
        let_go.wait(WAIT_SECONDS)

    new_jobs = [note.new_job(n) for n in range(300)]
    with running_sweeper(app), running_worker(app, lease_seconds=LEASE, concurrency=1):
        jobs = app.enqueue_many([*new_jobs[:250], block.new_job(), *new_jobs[250:]])
        assert blocking.wait(WAIT_SECONDS)
        assert len(app.find(status="processing")) > 1
        pass_some_leases(app, clock)
        let_go.set()
        for job in jobs:
            assert wait_until_completed(app, job).attempts == 1
    assert sorted(runs) == list(range(300))
    assert not any("lease_expired" in transitions(app, job) for job in jobs)


def test_a_heartbeat_notes_which_leases_were_lost(app_on_each_engine: Tenure) -> None:
    app = app_on_each_engine
    app.enqueue_many([NewJob("work", {}, {}) for _ in range(2)])
    lost, kept = app.core.claim(ClaimRequest(worker="w", limit=2, lease_seconds=30)).leases
    app.cancel(lost.id)
    worker = Worker(app.core, app.core.handlers)  # it does not run: this is its heartbeat
    worker._leases.hold([lost, kept])
    worker._leases.admit()
    worker._heart._renew(blocked=False)
    assert [(one.lease, event) for one, event in worker._leases.take_lost()] == [
        (lost, "cancelled")
    ]


def test_a_cancelled_job_tells_its_handler_by_the_next_heartbeat(
    app_on_each_engine: Tenure,
) -> None:
    app = app_on_each_engine
    started = threading.Barrier(3)
    told: list[str] = []

    @app.job
    async def coroutine(context: JobContext) -> None:
        await asyncio.to_thread(started.wait, WAIT_SECONDS)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            assert context.stopped == "cancelled"
            told.append("coroutine")
            raise

    @app.job
    def function(context: JobContext) -> None:
        started.wait(WAIT_SECONDS)
        wait_until(lambda: context.stopped == "cancelled", "the context to say so")
        told.append("function")

    with running_worker(app, lease_seconds=LEASE):
        jobs = [coroutine.enqueue(), function.enqueue()]
        started.wait(WAIT_SECONDS)
        for job in jobs:
            assert app.cancel(job.id).status is Status.CANCELLED
        wait_until(lambda: len(told) == 2, "both handlers to be told")
        assert [transitions(app, job) for job in jobs] == 2 * [["enqueued", "claimed", "cancelled"]]


def test_a_report_for_a_cancelled_job_changes_nothing(app: Tenure) -> None:
    started = threading.Event()
    go_on = threading.Event()

    @app.job
    def work() -> str:
        started.set()
        go_on.wait(WAIT_SECONDS)
        return "late"

    @app.job
    async def quick() -> None: ...

    job = work.enqueue()
    with running_worker(app, concurrency=1):
        assert started.wait(WAIT_SECONDS)
        app.cancel(job.id)
        go_on.set()
        wait_until_completed(app, quick.enqueue())  # reported together with the other, or after it
    end = app.get(job.id)
    assert (end.status, end.result_json) == (Status.CANCELLED, None)
    assert transitions(app, job) == ["enqueued", "claimed", "cancelled"]


def test_a_job_cancelled_before_its_turn_is_not_started(app: Tenure) -> None:
    runs: list[str] = []

    @app.job
    async def work(context: JobContext) -> None:
        runs.append(context.id)

    jobs = [work.enqueue() for _ in range(10)]
    for job in jobs[::2]:
        app.cancel(job.id)
    with running_worker(app):
        for job in jobs:
            wait_until_settled(app, job)
    assert runs == [job.id for job in jobs[1::2]]


# --- frozen workers ----------------------------------------------------------------------------

FREEZABLE = """
@app.job
async def coroutine(context: JobContext):
    log(f"start coroutine {context.token}")
    try:
        while not (FOLDER / "go on").exists():
            await asyncio.sleep(0.003)
    except asyncio.CancelledError:
        log(f"told coroutine {context.stopped}")
        raise
    return "frozen"


@app.job
def function(context: JobContext):
    log(f"start function {context.token}")
    while not (FOLDER / "go on").exists() and not context.stopped:
        time.sleep(0.003)
    if context.stopped:
        log(f"told function {context.stopped}")
    return "frozen"
"""


@pytest.fixture
def frozen(app_on_each_engine: Tenure, clock: Clock, tmp_path: Path) -> Iterator[WorkerScript]:
    with WorkerScript(
        tmp_path / "meet", app_on_each_engine.database, FREEZABLE, lease=LEASE
    ) as script:
        yield script


@pytest.mark.scenario(6)
def test_what_a_frozen_worker_held_is_taken_over_and_its_handlers_are_told(
    app_on_each_engine: Tenure, clock: Clock, frozen: WorkerScript
) -> None:
    app = app_on_each_engine

    @app.job(name="coroutine")
    async def coroutine() -> str:
        return "taken over"

    @app.job(name="function")
    def function() -> str:
        return "taken over"

    jobs = [app.enqueue(name, max_retries=2, backoff=0) for name in ("coroutine", "function")]
    worker = frozen.start()
    frozen.wait_for_lines(2)
    freeze(worker, app)
    clock.advance(2 * LEASE)
    with running_sweeper(app), running_worker(app):
        ends = [wait_until_completed(app, job) for job in jobs]
        os.kill(worker.pid, signal.SIGCONT)
        lines = frozen.wait_for_lines(4)

    assert sorted(lines[2:]) == ["told coroutine lost", "told function lost"]
    worker.terminate()
    assert wait_for_exit(worker) == 0
    for job, end in zip(jobs, ends, strict=True):
        assert app.get(job.id) == end
        assert (end.result_json, end.attempts, end.token) == ('"taken over"', 2, 2)
        assert transitions(app, job) == [*TAKEN_OVER, "completed"]
    assert app.verify() == []


@pytest.mark.scenario(7)
def test_a_report_of_a_thawed_worker_cannot_change_a_final_failure(
    app_on_each_engine: Tenure, clock: Clock, frozen: WorkerScript
) -> None:
    app = app_on_each_engine

    @app.job(name="function")
    def function() -> None:
        raise ValueError("the last attempt")

    job = app.enqueue("function", max_retries=2, backoff=0)
    worker = frozen.start()
    frozen.wait_for_lines(1)
    freeze(worker, app)
    clock.advance(2 * LEASE)
    with running_sweeper(app), running_worker(app):
        assert "the last attempt" in wait_until_failed(app, job)
    frozen.mark("go on")  # its handler succeeds as soon as it can
    os.kill(worker.pid, signal.SIGCONT)
    worker.terminate()

    assert wait_for_exit(worker) == 0
    assert app.get(job.id).status is Status.FAILED
    assert transitions(app, job) == [*TAKEN_OVER, "failed"]


STANDS_STILL_BEFORE_ITS_REPORT = """
from tenure import failpoints


def hit(name, really=failpoints.hit):
    if name == "worker.before_report":
        mark("has its outcome")
        wait_for("go on")
    really(name)


failpoints.hit = hit
"""


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param(Status.COMPLETED, marks=pytest.mark.scenario(6)),
        pytest.param(Status.FAILED, marks=pytest.mark.scenario(7)),
    ],
)
@pytest.mark.parametrize("said", ["completed", "failed"])
def test_the_report_of_a_thawed_worker_is_refused(
    app_on_each_engine: Tenure, clock: Clock, tmp_path: Path, ending: Status, said: str
) -> None:
    """It has its outcome, and stands still until the job has been run and settled elsewhere."""
    app = app_on_each_engine
    handler = f"""
@app.job
def work():
    assert {said!r} == "completed"
"""

    @app.job
    async def work() -> str:
        assert ending is Status.COMPLETED
        return "taken over"

    job = work.options(max_retries=2, backoff=0).enqueue()
    code = STANDS_STILL_BEFORE_ITS_REPORT + handler
    with WorkerScript(tmp_path / "meet", app.database, code, lease=600) as script:
        worker = script.start()
        script.wait_for_mark("has its outcome")
        freeze(worker, app)
        clock.advance(601)
        with running_sweeper(app), running_worker(app):
            end = wait_until_settled(app, job)
        script.mark("go on")
        os.kill(worker.pid, signal.SIGCONT)
        worker.terminate()
        assert wait_for_exit(worker) == 0
        assert worker.stdout is not None
        late = f"the report of {said} for job {job.id} came too late: lost lease_expired"
        assert late in worker.stdout.read()
    assert end.status is ending
    assert app.get(job.id) == end
    assert transitions(app, job) == [*TAKEN_OVER, ending]
    assert app.verify() == []
