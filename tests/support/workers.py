"""Run workers and sweepers on threads of the test's process, and wait for jobs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from tenure import Job, Status, Tenure
from tenure.lifecycle import SETTLED
from tenure.rules.reports import ClaimRequest, Exchange, Report, WorkSource
from tenure.worker.maintenance import MaintenanceThread
from tenure.worker.process import run_loop
from tenure.worker.worker import Worker
from tests.support.waiting import WAIT_SECONDS, wait_until


@contextlib.contextmanager
def running_worker(
    app: Tenure,
    source: WorkSource | None = None,
    max_idle_seconds: float | None = None,
    **options: Any,
) -> Iterator[Worker]:
    """Run a worker for the handlers of `app` in the block; drain it at the end."""
    started = threading.Event()
    workers: list[Worker] = []
    failures: list[BaseException] = []

    async def work() -> None:
        workers.append(Worker(source or app.core, app.core.handlers, **options))
        started.set()
        await workers[0].run(max_idle_seconds)

    def run() -> None:
        try:
            run_loop(work())
        except BaseException as error:
            failures.append(error)
            started.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(WAIT_SECONDS)
    try:
        yield workers[0]
    finally:
        workers[0].request_stop()
        thread.join(WAIT_SECONDS)
    assert not thread.is_alive(), "the worker did not end"
    assert not failures, failures


@contextlib.contextmanager
def running_sweeper(app: Tenure, **options: Any) -> Iterator[MaintenanceThread]:
    """Run a sweeper in the block that sweeps every 20 ms."""
    sweeper = MaintenanceThread(app, **{"interval": 0.02, **options})
    sweeper.start()
    try:
        yield sweeper
    finally:
        sweeper.stop()


def wait_until_settled(app: Tenure, job: Job | str) -> Job:
    """Wait until a job has settled, and return it."""
    id = job if isinstance(job, str) else job.id

    def look() -> Job | None:
        now = app.get(id)
        return now if now.status in SETTLED else None

    found = wait_until(look, f"job {id} to settle")
    assert found is not None
    return found


def wait_until_all_settled(app: Tenure, jobs: Sequence[Job]) -> list[Job]:
    """Wait until all jobs have settled, and return them."""
    return [wait_until_settled(app, job) for job in jobs]


def wait_until_completed(app: Tenure, job: Job | str) -> Job:
    """Wait until a job has completed, and return it; fail if it ends otherwise."""
    end = wait_until_settled(app, job)
    assert end.status is Status.COMPLETED, end
    return end


def wait_until_failed(app: Tenure, job: Job | str) -> str:
    """Wait until a job has failed for good, and return its error; fail if it ends otherwise."""
    end = wait_until_settled(app, job)
    assert end.status is Status.FAILED, end
    assert end.last_error
    return end.last_error


def transitions(app: Tenure, job: Job | str) -> list[str]:
    """The events in a job's history, in order."""
    return [transition.event for transition in app.history(job if isinstance(job, str) else job.id)]


class SlowAnswers:
    """The application as a source of work; claims are answered when the test lets them.

    With `holds_caller`, also the call that asks returns only then.
    """

    waits = False
    exchanges = 1
    database = None

    def __init__(self, app: Tenure, *, holds_caller: bool = False) -> None:
        self._app, self._holds_caller = app, holds_caller
        self.claimed, self.let_through = threading.Event(), threading.Event()
        self.declare, self.heartbeat = app.core.declare, app.core.heartbeat
        self.on_work, self.on_end = app.core.on_work, app.core.on_end

    def exchange(self, reports: Sequence[Report], claim: ClaimRequest | None) -> Future[Exchange]:
        real = self._app.core.exchange(reports, claim)
        if not real.result().leases:
            return real
        held: Future[Exchange] = Future()

        def answer() -> None:
            self.claimed.set()
            self.let_through.wait(WAIT_SECONDS)
            held.set_result(real.result())

        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        if self._holds_caller:
            answering.join()
        return held
