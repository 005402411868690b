"""What an application puts around its handlers and workers, and who is called of failures."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest

from tenure import Failure, JobContext, Snooze, Tenure
from tenure.rules.reports import ClaimRequest
from tenure.worker import log as worker_failures
from tenure.worker.worker import Worker
from tests.support.waiting import wait_until
from tests.support.workers import (
    running_sweeper,
    running_worker,
    wait_until_completed,
    wait_until_failed,
    wait_until_settled,
)
from tests.worker import children


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Tenure]:
    with Tenure(f"sqlite:///{tmp_path}/jobs.db") as app:
        yield app


# --- around -------------------------------------------------------------------------------------


def test_context_managers_nest_around_every_handler_where_it_runs(app: Tenure) -> None:
    seen: list[tuple[str, str, int]] = []

    def note(what: str, context: JobContext) -> None:
        seen.append((what, context.type, threading.get_ident()))

    @app.around
    @contextmanager
    def outer(context: JobContext) -> Iterator[None]:
        note("outer in", context)
        yield
        note("outer out", context)

    @app.job
    def function(context: JobContext) -> None:
        note("runs", context)

    @app.job
    async def coroutine() -> None:
        seen.append(("runs", "coroutine", threading.get_ident()))

    @app.around  # also around handlers that are there
    @contextmanager
    def inner(context: JobContext) -> Iterator[None]:
        note("inner in", context)
        yield
        note("inner out", context)

    with running_worker(app):
        wait_until_completed(app, function.enqueue())
        wait_until_completed(app, coroutine.enqueue())
    order = ["outer in", "inner in", "runs", "inner out", "outer out"]
    for type in ("function", "coroutine"):
        assert [what for what, of, _ in seen if of == type] == order
        assert len({thread for _, of, thread in seen if of == type}) == 1


def test_async_context_managers_go_around_coroutines_and_see_their_errors(app: Tenure) -> None:
    seen: list[str] = []

    @app.around
    @asynccontextmanager
    async def connection(context: JobContext) -> AsyncIterator[None]:
        await asyncio.sleep(0)
        try:
            yield
        except ValueError as error:
            seen.append(f"{context.type} {context.attempt}: {error}")
            raise LookupError("said differently") from error

    @app.job(max_retries=1)
    async def fail() -> None:
        raise ValueError("no")

    with running_worker(app):
        error = wait_until_failed(app, fail.enqueue())
    assert seen == ["fail 1: no"]
    assert error.startswith("LookupError: said differently")


def test_an_error_in_a_context_manager_fails_the_attempt_only(app: Tenure) -> None:
    ran: list[str] = []

    @app.around
    @contextmanager
    def refuse(context: JobContext) -> Iterator[None]:
        if context.type == "refused":
            raise OSError("no connection")
        yield

    @app.job(max_retries=1)
    def refused() -> None:
        ran.append("refused")

    @app.job
    def allowed() -> None:
        ran.append("allowed")

    with running_worker(app):
        assert wait_until_failed(app, refused.enqueue()).startswith("OSError: no connection")
        wait_until_completed(app, allowed.enqueue())
    assert ran == ["allowed"]


def test_a_context_manager_that_swallowed_an_error_completed_the_job(app: Tenure) -> None:
    """`except Exception` without `raise` is easily written there, and nothing was left to see."""
    seen: list[str] = []

    @app.around
    @contextmanager
    def outer(_: JobContext) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            seen.append(repr(error))

    @app.around
    @contextmanager
    def inner(context: JobContext) -> Iterator[None]:
        with suppress(Exception):
            yield
        if context.type == "commit":
            raise OSError("not committed")

    @app.job(max_retries=1)
    def function() -> None:
        raise ValueError("no")

    @app.job(max_retries=1)
    async def coroutine() -> None:
        raise ValueError("no")

    @app.job(max_retries=1)
    def commit() -> None:
        pass

    with running_worker(app):
        for job_type in (function, coroutine):
            error = wait_until_failed(app, job_type.enqueue())
            assert error.startswith("ValueError: no"), error
            assert error.splitlines()[2].endswith(job_type.__name__), error
        assert wait_until_failed(app, commit.enqueue()).startswith("OSError: not committed")
    assert seen == ["ValueError('no')"] * 2 + ["OSError('not committed')"]


def test_an_async_context_manager_that_swallowed_a_snooze_completed_the_job(app: Tenure) -> None:
    @app.around
    @asynccontextmanager
    async def logged(_: JobContext) -> AsyncIterator[None]:
        with suppress(Exception):
            yield

    @app.job
    async def later() -> None:
        raise Snooze("1h")

    job = later.enqueue()
    with running_worker(app):
        wait_until(lambda: app.get(job.id).snoozes, "the snooze")
    assert app.get(job.id).status == "pending"


def test_context_managers_go_around_handlers_in_child_processes(app: Tenure) -> None:
    app.core.take_over(children.hooked.core)
    with running_worker(app):
        around, here = wait_until_completed(app, app.enqueue("around_here")).result
    assert around == here


def test_a_traceback_begins_in_the_handler_whatever_is_around(app: Tenure) -> None:
    @app.around
    @contextmanager
    def nothing(_: JobContext) -> Iterator[None]:
        yield

    @app.job(max_retries=1)
    def function() -> None:
        raise ValueError("no")

    @app.job(max_retries=1)
    async def coroutine(_: JobContext) -> None:
        raise ValueError("no")

    with running_worker(app):
        for job_type in (function, coroutine):
            error = wait_until_failed(app, job_type.enqueue())
            assert error.splitlines()[2].endswith(job_type.__name__), error


# --- lifespan -----------------------------------------------------------------------------------


def test_a_lifespan_holds_from_before_the_first_job_until_after_the_last(app: Tenure) -> None:
    seen: list[str] = []
    entered = threading.Event()

    @app.lifespan
    @asynccontextmanager
    async def pool() -> AsyncIterator[None]:
        seen.append(f"pool opens on {id(asyncio.get_running_loop())}")
        yield
        seen.append("pool closes")

    @app.lifespan
    @contextmanager
    def model() -> Iterator[None]:
        seen.append("model opens")
        yield
        seen.append("model closes")

    @app.job
    async def work() -> None:
        entered.set()
        await asyncio.sleep(0.05)
        seen.append(f"job runs on {id(asyncio.get_running_loop())}")

    job = work.enqueue()
    with running_worker(app):
        assert entered.wait(10)
    wait_until_completed(app, job)
    loop = seen[0].rpartition(" ")[2]
    assert seen == [
        f"pool opens on {loop}",
        "model opens",
        f"job runs on {loop}",
        "model closes",
        "pool closes",
    ]


def test_a_lifespan_that_fails_ends_the_worker_before_it_takes_a_job(app: Tenure) -> None:
    @app.lifespan
    @contextmanager
    def pool() -> Iterator[None]:
        raise OSError("no route to the service")
        yield

    @app.job
    def work() -> None: ...

    job = work.enqueue()
    with pytest.raises(OSError, match="no route"):
        app.run_worker()
    assert app.get(job.id).status == "pending"


# --- on_failure ---------------------------------------------------------------------------------


def test_every_kind_of_failure_is_reported_as_the_store_decided(app: Tenure) -> None:
    failures: dict[str, list[Failure]] = {}
    loops: list[asyncio.AbstractEventLoop] = []

    @app.on_failure
    def note(failure: Failure) -> None:
        failures.setdefault(failure.type, []).append(failure)

    @app.on_failure
    async def note_loop(failure: Failure) -> None:
        loops.append(asyncio.get_running_loop())

    @app.job(max_retries=2, backoff=0)
    def raises() -> None:
        raise ValueError("not me")

    @app.job(max_retries=1, timeout=0.05)
    async def hangs() -> None:
        loops.append(asyncio.get_running_loop())
        await asyncio.Event().wait()

    @app.job
    def typed(number: int) -> None: ...

    jobs = [raises.enqueue(), hangs.enqueue(), app.enqueue("typed", {"number": "one"})]
    with running_worker(app):
        ends = [wait_until_settled(app, job) for job in jobs]

    first, second = failures["raises"]
    assert isinstance(first.exception, ValueError)
    assert (first.id, first.queue, first.attempt, first.max_retries) == (
        *(jobs[0].id, "default", 1, 2),
    )
    assert (first.final, first.retry_in) == (False, 0.0)
    assert (second.final, second.retry_in) == (True, None)
    assert second.error == ends[0].last_error
    (timeout,) = failures["hangs"]
    assert (timeout.exception, timeout.error, timeout.final) == (
        *(None, "timed out after 0.05 s", True),
    )
    (unfit,) = failures["typed"]
    assert unfit.final
    assert "the payload does not fit typed" in str(unfit.exception)
    assert len(loops) == 5  # the handler's, and one for each failure
    assert len(set(loops)) == 1


def test_a_lease_that_ran_out_is_reported_by_the_process_that_ended_it(tmp_path: Path) -> None:
    app = Tenure(f"sqlite:///{tmp_path}/jobs.db")
    failures: list[Failure] = []
    app.on_failure(failures.append)

    @app.job(max_retries=1)
    def work() -> None: ...

    with app, running_worker(app, queues=["other"]) as worker:
        job = work.enqueue()
        app.core.claim(ClaimRequest(worker="gone", limit=1, lease_seconds=0.01))
        with running_sweeper(app, failures=worker.failures):
            wait_until(lambda: failures, "the failure to be reported")
        (failure,) = failures
        assert (failure.id, failure.exception, failure.final) == (job.id, None, True)
        assert failure.error == app.get(job.id).last_error


def test_an_error_in_on_failure_is_logged_and_changes_nothing(
    app: Tenure, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[Failure] = []

    @app.on_failure
    def broken(failure: Failure) -> None:
        raise RuntimeError("the monitor is away")

    app.on_failure(called.append)

    @app.job(max_retries=1)
    def work() -> None:
        raise sqlite3.OperationalError("locked")

    job = work.enqueue()
    with caplog.at_level(logging.ERROR), running_worker(app):
        wait_until_failed(app, job)
    assert [failure.id for failure in called] == [job.id]
    assert f"on_failure failed for job {job.id}" in caplog.text
    assert "the monitor is away" in caplog.text


def test_redacted_values_are_cut_out_of_the_text(tmp_path: Path) -> None:
    app = Tenure(f"sqlite:///{tmp_path}/jobs.db", redact=["card"])
    failures: list[Failure] = []
    app.on_failure(failures.append)

    @app.job(max_retries=1)
    def pay(card: str) -> None:
        raise ValueError(f"{card} was refused")

    with app, running_worker(app, redaction=app.core.redaction):
        wait_until_failed(app, pay.enqueue(card="4111-1111"))
    assert [failure.error.partition(" was")[0] for failure in failures] == [
        "ValueError: [redacted]"
    ]


def test_even_an_exit_in_on_failure_costs_no_other_call(app: Tenure) -> None:
    called: list[str] = []

    @app.on_failure
    def leave(failure: Failure) -> None:
        raise SystemExit(3)

    app.on_failure(lambda failure: called.append(failure.id))

    @app.job(max_retries=1)
    def work() -> None:
        raise ValueError("no")

    jobs = [work.enqueue(), work.enqueue()]
    with running_worker(app):
        for job in jobs:
            wait_until_failed(app, job)
    assert sorted(called) == sorted(job.id for job in jobs)


def test_a_function_of_two_applications_is_called_once_for_each_failure(app: Tenure) -> None:
    """Sentry had two events of each failure, if it was installed in both."""
    other, called = Tenure(app.database), list[str]()

    def note(failure: Failure) -> None:
        called.append(failure.type)

    for one in (app, other):
        one.on_failure(note)

    @app.job(max_retries=1)
    def work() -> None:
        raise ValueError("no")

    @other.job(max_retries=1)
    def work_elsewhere() -> None:
        raise ValueError("no")

    app.core.take_over(other.core)
    with other, running_worker(app):
        for job in (work.enqueue(), work_elsewhere.enqueue()):
            wait_until_failed(app, job)
    assert sorted(called) == ["work", "work_elsewhere"]


def test_a_worker_that_stops_waits_for_slow_on_failure(app: Tenure) -> None:
    """With what its lifespan keeps open, and with its loop; but not for ever."""
    seen: list[str] = []
    workers: list[Worker] = []

    @app.lifespan
    @contextmanager
    def pool() -> Iterator[None]:
        yield
        seen.append("the pool closes")

    @app.on_failure
    async def note(_: Failure) -> None:
        while workers[0]._heart.is_alive():  # noqa: ASYNC110 a thread's
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        seen.append("noted")

    @app.job(max_retries=1)
    def work() -> None:
        raise ValueError("no")

    with running_worker(app) as worker:
        workers.append(worker)
        wait_until_failed(app, work.enqueue())
    assert seen == ["noted", "the pool closes"]


def test_a_worker_does_not_wait_for_ever_for_on_failure(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_failures, "FINISH_SECONDS", 0.05)
    go_on = threading.Event()
    app.on_failure(lambda _: go_on.wait(20))

    @app.job(max_retries=1)
    def work() -> None:
        raise ValueError("no")

    try:
        with running_worker(app):
            wait_until_failed(app, work.enqueue())
        assert not go_on.is_set()
    finally:
        go_on.set()


def test_a_worker_that_is_cancelled_leaves_no_thread_behind(app: Tenure) -> None:
    app.on_failure(print)
    worker = Worker(app.core, app.core.handlers)

    async def program() -> None:
        running = asyncio.create_task(worker.run())
        while not worker.failures._thread.is_alive():  # noqa: ASYNC110 a thread's
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait([running])

    asyncio.run(program())
    assert not worker.failures._thread.is_alive()
