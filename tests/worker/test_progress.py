"""Handlers say how far they have come; others see it about a second later."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tenure import JobContext, Status, Tenure
from tenure.errors import InvalidInput, StoreUnavailable
from tenure.rules.reports import ClaimRequest, Lease
from tenure.rules.steps import MAX_MESSAGE, JobProgress
from tenure.worker import note_writer
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.support.workers import (
    running_worker,
    wait_until_completed,
    wait_until_failed,
    wait_until_settled,
)
from tests.worker import children


@pytest.fixture
def app(app_on_each_engine: Tenure) -> Tenure:
    return app_on_each_engine


def said(app: Tenure, job_id: str) -> tuple[float, float | None, str] | None:
    found = app.progress(job_id)
    return None if found is None else (found.done, found.total, found.message)


def claimed(app: Tenure) -> Lease:
    (lease,) = app.core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=60)).leases
    return lease


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(note_writer, "PAUSE_SECONDS", 0.05)


def test_progress_is_seen_while_a_job_runs_and_after_it(app: Tenure) -> None:
    go = threading.Event()

    @app.job
    def function(context: JobContext) -> None:
        context.progress(1, 4, "first")
        assert go.wait(WAIT_SECONDS)
        for done in range(2, 5):
            context.progress(done, total=4)

    @app.job
    async def coroutine(context: JobContext) -> None:
        context.progress(7)

    handle = coroutine.submit()
    jobs = [function.enqueue(), app.get(handle.id)]
    assert said(app, jobs[0].id) is None
    with running_worker(app):
        wait_until(lambda: said(app, jobs[0].id) == (1, 4, "first"), "the first progress")
        go.set()
        for job in jobs:
            wait_until_completed(app, job)
    assert [said(app, job.id) for job in jobs] == [(4, 4, ""), (7, None, "")]
    found = handle.progress()
    assert found == app.progress(handle.id)
    assert found is not None
    assert found.at is not None


def test_progress_of_a_failed_attempt_stays_until_the_next_one_begins(app: Tenure) -> None:

    @app.job(max_retries=2, backoff=0)
    def work(context: JobContext) -> None:
        context.progress(63, 100, f"attempt {context.attempt}")
        raise ValueError("no")

    job = work.enqueue()
    with running_worker(app):
        wait_until_failed(app, job)
    assert said(app, job.id) == (63, 100, "attempt 2")
    app.retry(job.id)
    assert said(app, job.id) == (63, 100, "attempt 2")
    claimed(app)
    assert said(app, job.id) is None


def test_only_the_holder_of_the_lease_moves_the_bar(app: Tenure) -> None:
    jobs = [app.enqueue("work"), app.enqueue("work")]
    leases = [claimed(app), claimed(app)]
    stale = "0" * 32 if "sqlite" in app.database else "00000000-0000-4000-8000-000000000000"
    entries = [(one.id, one.lease_id, JobProgress(9, 10)) for one in leases]
    assert app.core.record_progress([entries[0], (leases[1].id, stale, JobProgress(1))]) == 1
    assert app.core.record_progress([(leases[1].id, "nonsense", JobProgress(1))]) == 0
    assert [said(app, one.id) for one in leases] == [(9, 10, ""), None]
    app.cancel(leases[0].id)
    assert app.core.record_progress([(leases[0].id, leases[0].lease_id, JobProgress(10))]) == 0
    assert said(app, leases[0].id) == (9, 10, "")
    assert {job.id for job in jobs} == {lease.id for lease in leases}


@pytest.mark.each_engine
def test_of_an_attempt_that_is_there_twice_the_last_entry_counts(app: Tenure) -> None:
    """PostgreSQL refuses to change a row twice in a statement: over HTTP that was a 500."""
    app.enqueue("work")
    lease = claimed(app)
    entries = [(lease.id, lease.lease_id, JobProgress(done)) for done in (8, 7)]
    assert app.core.record_progress(entries) == 1
    assert said(app, lease.id) == (7, None, "")


def test_progress_goes_with_its_job(app: Tenure) -> None:
    job = app.enqueue("work")
    lease = claimed(app)
    app.core.record_progress([(job.id, lease.lease_id, JobProgress(1))])
    app.cancel(job.id)
    assert said(app, job.id) is not None
    while app.core.measure():
        pass
    assert app.core.prune({"cancelled": 0}) == 1
    prefix = "tenure_" if "sqlite" in app.database else "tenure."
    left = app.core.store.read.rows(f"SELECT count(*) FROM {prefix}progress")
    assert left[0][0] == 0


@pytest.mark.parametrize(
    "numbers", [(math.nan,), (1, math.inf), ("many",), (-(2.0**53),), (10**400,)]
)
def test_what_is_no_number_of_this_size_is_refused(numbers: Any) -> None:
    context = JobContext("", "work", "default", 1, 1, token=1, deadline=None)
    with pytest.raises(InvalidInput, match="not a valid progress"):
        context.progress(*numbers)


def test_any_message_can_be_stored(app: Tenure) -> None:

    @app.job
    def work(context: JobContext) -> None:
        context.progress(1, message="\0\udcff" + "ä" * 1_000)

    with running_worker(app):
        job = wait_until_completed(app, work.enqueue())
    found = said(app, job.id)
    assert found is not None
    assert found[2].startswith("\N{SYMBOL FOR NULL}\\udcffää")
    assert len(found[2]) == MAX_MESSAGE


def test_calls_at_any_rate_cost_one_write_a_second(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(note_writer, "PAUSE_SECONDS", 60)
    writes: list[int] = []
    record = app.core.record_progress

    def count(entries: Any) -> int:
        writes.append(len(entries))
        return record(entries)

    monkeypatch.setattr(app.core, "record_progress", count)

    @app.job
    def work(context: JobContext) -> None:
        for done in range(20_000):
            context.progress(done, 20_000)

    with running_worker(app):
        job = wait_until_completed(app, work.enqueue())
    assert said(app, job.id) == (19_999, 20_000, "")
    assert writes in ([], [1]), "the report has what was said last"


def test_a_store_that_is_away_loses_no_progress(
    app: Tenure, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tenure")
    go = threading.Event()
    record: Callable[[Any], int] = app.core.record_progress
    away = iter([True, True, False])

    def flaky(entries: Any) -> int:
        if next(away, False):
            raise StoreUnavailable("away")
        return record(entries)

    monkeypatch.setattr(app.core, "record_progress", flaky)

    @app.job
    def work(context: JobContext) -> None:
        context.progress(5)
        assert go.wait(WAIT_SECONDS)

    job = work.enqueue()
    with running_worker(app):
        wait_until(lambda: said(app, job.id) == (5, None, ""), "the progress")
        go.set()
        wait_until_completed(app, job)
    assert caplog.text.count("notes could not be written") == 1  # and no second line for 30 s


def test_an_interrupted_attempt_keeps_what_it_said_last(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(note_writer, "PAUSE_SECONDS", 60)
    began = threading.Event()

    @app.job
    async def work(context: JobContext) -> None:
        context.progress(1)
        while said(app, context.id) != (1, None, ""):  # noqa: ASYNC110 a thread's
            await asyncio.sleep(0.01)
        context.progress(2)
        began.set()
        await asyncio.Event().wait()

    job = work.enqueue()
    with running_worker(app, grace_seconds=0):
        assert began.wait(WAIT_SECONDS)
    assert app.get(job.id).event == "interrupted"
    assert said(app, job.id) == (2, None, "")


def test_child_processes_send_progress(app: Tenure, tmp_path: Path) -> None:
    app.core.take_over(children.hooked.core)
    go = tmp_path / "go"
    job = app.enqueue("count_up", {"to": 5_000, "go": str(go)})
    with running_worker(app):
        wait_until(lambda: said(app, job.id) == (1, 5_000, "counting"), "progress of a child")
        go.touch()
        assert wait_until_settled(app, job).status is Status.COMPLETED
    assert said(app, job.id) == (5_000, 5_000, "counting")
