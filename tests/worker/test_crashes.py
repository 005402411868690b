"""Workers killed at every point of a job's life: the job is charged and taken over once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tenure import NewJob, Status, Tenure
from tenure.rules.jobs import Options
from tests.support.clock import Clock
from tests.support.waiting import wait_until
from tests.support.worker_scripts import WorkerScript, wait_for_exit
from tests.support.workers import (
    running_sweeper,
    transitions,
    wait_until_completed,
    wait_until_failed,
    wait_until_settled,
)

WORK = """
@app.job
async def work(context: JobContext):
    log(f"{context.id} {context.attempt}")
    if not (FOLDER / "go on").exists():
        await asyncio.Event().wait()
    return "done"
"""

LONGER_THAN_A_LEASE = 31.0
KILLED_ONCE = ["enqueued", "claimed", "lease_expired", "retried", "claimed", "completed"]

# Each stands before or after a turn with the store, and kills its own process there.
BEFORE_THE_CLAIM = """
    store = app.core.store
    real = store.exchange
    def turn(reports, claim):
        os.kill(os.getpid(), signal.SIGKILL)
    store.exchange = turn
"""
BETWEEN_CLAIM_AND_START = """
    store = app.core.store
    real = store.exchange
    def turn(reports, claim):
        future = real(reports, claim)
        if future.result().leases:
            os.kill(os.getpid(), signal.SIGKILL)
        return future
    store.exchange = turn
"""
BEFORE_THE_REPORT = """
    store = app.core.store
    real = store.exchange
    def turn(reports, claim):
        if reports:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(reports, claim)
    store.exchange = turn
"""
BEFORE_THE_ANSWER = """
    store = app.core.store
    real = store.exchange
    def turn(reports, claim):
        future = real(reports, claim)
        if reports:
            future.result()
            os.kill(os.getpid(), signal.SIGKILL)
        return future
    store.exchange = turn
"""


@pytest.fixture
def app(app_on_each_engine: Tenure) -> Tenure:
    return app_on_each_engine


def run_until_killed(folder: Path, url: str, before: str) -> WorkerScript:
    with WorkerScript(folder, url, WORK, before=before.strip()) as script:
        script.mark("go on")
        assert wait_for_exit(script.start()) == -signal.SIGKILL
    return script


def run_to_the_end(folder: Path, app: Tenure, clock: Clock, job_id: str) -> list[str]:
    """When the lease has run out a second worker finishes the job; what all workers logged."""
    clock.advance(LONGER_THAN_A_LEASE)
    with WorkerScript(folder, app.database, WORK) as script, running_sweeper(app):
        script.start()
        assert wait_until_completed(app, job_id).result_json == '"done"'
        return script.lines()


@pytest.mark.scenario(1)
def test_killed_in_the_handler(app: Tenure, clock: Clock, tmp_path: Path) -> None:
    job = app.enqueue("work", backoff=0)
    with WorkerScript(tmp_path / "meet", app.database, WORK) as script:
        worker = script.start()
        script.wait_for_lines(1)
        worker.kill()
        assert wait_for_exit(worker) == -signal.SIGKILL
        assert app.get(job.id).status is Status.PROCESSING
        script.mark("go on")

        lines = run_to_the_end(tmp_path / "meet", app, clock, job.id)

    assert lines == [f"{job.id} 1", f"{job.id} 2"]
    assert transitions(app, job) == KILLED_ONCE
    assert app.get(job.id).last_error is not None
    assert "did not report attempt 1" in (app.history(job.id)[2].detail or "")


@pytest.mark.scenario(3)
def test_killed_before_the_claim_nothing_is_charged(
    app: Tenure, clock: Clock, tmp_path: Path
) -> None:
    job = app.enqueue("work", backoff=0)
    run_until_killed(tmp_path / "meet", app.database, BEFORE_THE_CLAIM)
    now = app.get(job.id)
    assert (now.status, now.attempts, now.token) == (Status.PENDING, 0, 0)

    assert run_to_the_end(tmp_path / "meet", app, clock, job.id) == [f"{job.id} 1"]


@pytest.mark.scenario(2)
def test_killed_between_claim_and_start_the_attempt_is_charged(
    app: Tenure, clock: Clock, tmp_path: Path
) -> None:
    job = app.enqueue("work", backoff=0)
    script = run_until_killed(tmp_path / "meet", app.database, BETWEEN_CLAIM_AND_START)
    assert script.lines() == []
    assert app.get(job.id).attempts == 1

    assert run_to_the_end(tmp_path / "meet", app, clock, job.id) == [f"{job.id} 2"]
    assert transitions(app, job) == KILLED_ONCE


@pytest.mark.scenario(4)
def test_killed_between_success_and_report_the_job_runs_again(
    app: Tenure, clock: Clock, tmp_path: Path
) -> None:
    job = app.enqueue("work", backoff=0)
    run_until_killed(tmp_path / "meet", app.database, BEFORE_THE_REPORT)

    assert run_to_the_end(tmp_path / "meet", app, clock, job.id) == [f"{job.id} 1", f"{job.id} 2"]
    assert transitions(app, job) == KILLED_ONCE


@pytest.mark.scenario(5)
def test_killed_between_report_and_answer_the_job_is_done(
    app: Tenure, clock: Clock, tmp_path: Path
) -> None:
    job = app.enqueue("work", backoff=0)
    run_until_killed(tmp_path / "meet", app.database, BEFORE_THE_ANSWER)

    assert app.get(job.id).status is Status.COMPLETED
    assert run_to_the_end(tmp_path / "meet", app, clock, job.id) == [f"{job.id} 1"]
    assert transitions(app, job) == ["enqueued", "claimed", "completed"]


# A child process cannot import a closure, so its next attempt is not alone.
POISON = """
def make_closure():
    @app.job
    def poison(context: JobContext):
        log(f"poison {context.attempt}")
        os.kill(os.getpid(), signal.SIGKILL)

make_closure()


@app.job
async def honest(number: int):
    return number
"""


@pytest.mark.scenario(16)
def test_a_job_that_kills_every_worker_fails_after_as_many_as_allowed(
    app: Tenure, clock: Clock, tmp_path: Path
) -> None:
    """A supervisor restarts the worker whenever it dies. Other jobs get done all the same."""
    poison = app.enqueue("poison", max_retries=3, backoff=0)
    kills = 0
    with (
        WorkerScript(tmp_path / "meet", app.database, POISON, concurrency=1) as script,
        running_sweeper(app),
    ):
        worker = script.start()

        def over() -> bool:
            nonlocal worker, kills
            if worker.poll() is not None:
                assert worker.returncode == -signal.SIGKILL
                kills += 1
                clock.advance(LONGER_THAN_A_LEASE)
                worker = script.start()
            return app.get(poison.id).status is Status.FAILED

        wait_until(over, "the poison to fail for good")
        honest = [app.enqueue("honest", {"number": n}) for n in range(5)]
        for job in honest:
            wait_until_completed(app, job)

    assert kills == 3
    assert script.lines() == ["poison 1", "poison 2", "poison 3"]
    assert "did not report attempt 3" in wait_until_failed(app, poison)
    assert app.get(poison.id).attempts == 3
    attempt = ["claimed", "lease_expired"]
    assert transitions(app, poison) == [
        "enqueued",
        *attempt,
        "retried",
        *attempt,
        "retried",
        *attempt,
    ]
    assert app.verify() == []


@pytest.mark.scenario(17)
def test_poison_at_its_last_attempt_ends_with_no_worker_left(
    app: Tenure, clock: Clock, tmp_path: Path
) -> None:
    poison = app.enqueue("poison", max_retries=1)
    with WorkerScript(tmp_path / "meet", app.database, POISON) as script:
        assert wait_for_exit(script.start()) == -signal.SIGKILL
    assert app.get(poison.id).status is Status.PROCESSING
    clock.advance(LONGER_THAN_A_LEASE)
    with running_sweeper(app):
        assert "did not report attempt 1" in wait_until_failed(app, poison)


def test_many_killed_workers_lose_nothing(app: Tenure, clock: Clock, tmp_path: Path) -> None:
    handlers = """
@app.job
async def count(number: int):
    log(number)
    await asyncio.sleep(0.002)
"""
    options: Options = {"backoff": 0, "max_retries": 10}
    jobs = app.enqueue_many([NewJob("count", {"number": n}, options) for n in range(300)])
    with WorkerScript(tmp_path / "meet", app.database, handlers) as script, running_sweeper(app):
        for share in (50, 120, 200):
            worker = script.start()
            script.wait_for_lines(share)
            os.kill(worker.pid, signal.SIGKILL)
            wait_for_exit(worker)
            clock.advance(LONGER_THAN_A_LEASE)
        script.start()
        ends = [wait_until_settled(app, job) for job in jobs]

    assert {end.status for end in ends} == {Status.COMPLETED}
    runs = script.lines()
    for number, end in enumerate(ends):
        assert 1 <= runs.count(str(number)) <= end.attempts
    assert app.verify() == []


@pytest.mark.scenario(14)
def test_a_worker_whose_own_loop_fails_ends_with_it(
    app: Tenure, clock: Clock, tmp_path: Path
) -> None:
    """No heartbeat goes on for a worker that is dead, and its supervisor can see that it is."""
    handlers = """
@app.job
def work():
    log("start")
    wait_for("never")


def fail(self):
    if (FOLDER / "log").exists():
        raise RuntimeError("a fault of ours")


from tenure.worker.attempts import Attempts
Attempts.collect = fail
"""
    job = app.enqueue("work", backoff=0)
    with WorkerScript(tmp_path / "meet", app.database, handlers) as script, running_sweeper(app):
        worker = script.start()
        assert wait_for_exit(worker) == 1
        clock.advance(LONGER_THAN_A_LEASE)
        wait_until(lambda: app.get(job.id).status is Status.PENDING, "the lease to run out")
    assert transitions(app, job) == KILLED_ONCE[:4]


@pytest.mark.scenario(18)
@pytest.mark.each_engine
def test_a_handler_that_forks_settles_its_job_once(app: Tenure, tmp_path: Path) -> None:
    """On SQLite the copy cannot enqueue; on PostgreSQL it can. How it ends is its own matter."""
    handlers = """
@app.job
def fork():
    copy = os.fork()
    if copy == 0:
        try:
            app.enqueue("other")
        except Exception as error:
            log(type(error).__name__)
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])


@app.job
async def count(number: int):
    return number
"""
    with WorkerScript(tmp_path / "meet", app.database, handlers) as script:
        script.start()
        for number in range(5):
            assert wait_until_completed(app, app.enqueue("fork")).result_json == "7"
            assert wait_until_completed(app, app.enqueue("count", {"number": number})).attempts == 1
        on_sqlite = app.database.startswith("sqlite:")
        assert script.lines() == (5 * ["StoreUnavailable"] if on_sqlite else [])
    assert len(app.find(type="other")) == (0 if on_sqlite else 5)
    assert len(app.find(status="completed")) == 10
    assert app.verify() == []
