"""Waiting for jobs, and what the handler of one returned, as a value of its type."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import threading
import time
from decimal import Decimal
from itertools import pairwise

import pytest

from tenure import (
    InvalidInput,
    JobCancelled,
    JobContext,
    JobFailed,
    JobNotFound,
    ResultGone,
    ResultTruncated,
    StoreUnavailable,
    Tenure,
)
from tenure.app.waiting import begin
from tenure.store import waits
from tenure.store.reader import Reader
from tests.support.waiting import wait_until
from tests.support.workers import running_sweeper, running_worker

UNKNOWN = "0190163d-8694-739b-aea5-966c26f8ad90"


@dataclasses.dataclass
class Report:
    day: datetime.date
    total: Decimal


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The ids of each query of those who wait."""
    made: list[set[str]] = []
    read = Reader.settled

    def settled(self: Reader, job_ids: set[str]) -> object:
        made.append(set(job_ids))
        return read(self, job_ids)

    monkeypatch.setattr(Reader, "settled", settled)
    return made


def test_a_handle_brings_the_value_that_the_handler_returned(app_on_each_engine: Tenure) -> None:
    app = app_on_each_engine

    @app.job
    def report(day: datetime.date) -> Report:
        return Report(day, Decimal("1.20"))

    @app.job
    async def nothing() -> None: ...

    @app.job
    def fields() -> dict[str, object]:
        return {"any": ["thing", 1, None]}

    with running_worker(app):
        assert fields.submit().result("20s") == {"any": ["thing", 1, None]}
        handle = report.submit(datetime.date(2027, 1, 31))
        assert handle.result(timeout="20s") == Report(datetime.date(2027, 1, 31), Decimal("1.20"))
        assert app.get(handle.id).result == {"day": "2027-01-31", "total": "1.20"}
        assert nothing.submit().result("20s") is None

        async def wait() -> None:
            handle = await report.submit_async(datetime.date(2027, 2, 1))
            assert (await handle).day == datetime.date(2027, 2, 1)
            assert (await app.wait_async(handle.id)).status == "completed"

        asyncio.run(wait())


def test_a_result_that_cannot_be_had_says_why(app: Tenure) -> None:
    @app.job(max_retries=1)
    def fail() -> int:
        raise ValueError("no such order")

    @app.job
    def wrong() -> int:
        return "text"  # type: ignore[return-value]

    @app.job
    def long() -> str:
        return "x" * 100_000

    cancelled = wrong.options(delay="1h").submit()
    skipped = wrong.options(depends_on=[cancelled]).submit()
    app.cancel(cancelled.id, actor="ann")
    with running_worker(app):
        handle = fail.submit()
        for _ in range(2):
            with pytest.raises(JobFailed, match="no such order") as failed:
                handle.result("20s")
        assert failed.value.job_id == handle.id
        with pytest.raises(JobCancelled, match="was cancelled by ann"):
            cancelled.result()
        with (
            running_sweeper(app),
            pytest.raises(JobCancelled, match=f"`tenure explain {skipped.id}` names the job"),
        ):
            skipped.result("20s")
        with pytest.raises(InvalidInput, match="Expected `int`, got `str`"):
            wrong.submit().result("20s")
        with pytest.raises(ResultTruncated, match="100000 bytes as JSON; the limit is"):
            long.submit().result("20s")
        assert app.wait(handle.id).status == "failed"  # `wait` raises for no outcome


def test_a_parent_without_a_whole_result_is_no_reason_to_try_again(
    app_on_each_engine: Tenure,
) -> None:
    app = app_on_each_engine

    @app.job
    def long() -> str:
        return "x" * 100_000

    @app.job(max_retries=5, backoff=0)
    def read(context: JobContext) -> None:
        assert context.results["long"]

    parent = long.enqueue()
    child = read.options(depends_on={"long": parent}).enqueue()
    with running_worker(app):
        ended = app.wait(child.id, "20s")
    assert (ended.status, ended.attempts) == ("failed", 1)
    assert "ResultTruncated" in (ended.last_error or "")


@pytest.mark.parametrize("id", [UNKNOWN, "celery"])
def test_an_unknown_id_is_not_pending_for_ever(app_on_each_engine: Tenure, id: str) -> None:
    """celery#4450: a result backend says PENDING of any id."""
    app = app_on_each_engine
    with pytest.raises(JobNotFound):
        app.wait(id)
    with pytest.raises(JobNotFound):
        asyncio.run(app.wait_async(id))


def test_time_over_leaves_the_job_alone_and_ends_the_wait(app: Tenure) -> None:
    job = app.enqueue("work", delay="1h")
    with pytest.raises(TimeoutError, match=r"is not settled after 0.01 s; it continues"):
        app.wait(job, timeout=0.01)
    with pytest.raises(TimeoutError, match=r"is not settled after 0.01 s; it continues"):
        asyncio.run(app.wait_async(job, timeout=0.01))
    assert app.get(job.id).status == "pending"
    wait_until(lambda: not _waiting(), "the thread to end")


def test_no_time_to_wait_is_one_look(app_on_each_engine: Tenure) -> None:
    app = app_on_each_engine

    @app.job
    def double(n: int) -> int:
        return 2 * n

    handle = double.submit(3)
    for _ in range(2):
        with pytest.raises(TimeoutError, match="is not settled after 0 s; it continues"):
            handle.result(timeout=0)
        with pytest.raises(TimeoutError):
            asyncio.run(handle.result_async(timeout=0))
    with running_worker(app):
        app.wait(handle.id, timeout="20s")
    assert [handle.result(timeout=0), asyncio.run(handle.result_async(timeout=0))] == [6, 6]
    with pytest.raises(JobNotFound):
        app.wait(UNKNOWN, timeout=0)


def test_who_gives_up_at_once_leaves_no_wait_behind(app: Tenure) -> None:
    job = app.enqueue("work", delay="1h")

    async def give_up() -> None:
        waiting = asyncio.create_task(app.wait_async(job))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])

    asyncio.run(give_up())
    wait_until(lambda: not _waiting(), "the thread to end")


def _waiting() -> bool:
    return any(thread.name == "tenure-waits" for thread in threading.enumerate())


def test_nobody_who_waits_asks_nothing(app: Tenure, looks: list[set[str]]) -> None:
    @app.job
    def quick() -> int:
        return 1

    with running_worker(app):
        assert quick.submit().result("20s") == 1
        wait_until(lambda: not _waiting(), "the thread to end")
        looks.clear()
        job = quick.enqueue()
        wait_until(lambda: app.get(job.id).status == "completed", "the job")
    assert looks == []


def test_one_query_serves_all_and_their_own_process_wakes_them(
    app_on_each_engine: Tenure, looks: list[set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """bullmq#644: `waitUntilFinished` missed an ending. A commit wakes who waits for its jobs."""
    monkeypatch.setattr(waits, "MAX_PAUSE_SECONDS", 60.0)
    monkeypatch.setattr(waits, "FIRST_LOOK_SECONDS", 60.0)
    app = app_on_each_engine
    jobs = [app.enqueue("work", delay="1h") for _ in range(5)]
    futures = [begin(app, job.id) for job in jobs]
    wait_until(lambda: set().union(*looks) == {job.id for job in jobs}, "the first look")
    app.cancel(jobs[0].id)
    assert futures[0].result(20).status == "cancelled"
    assert not any(future.done() for future in futures[1:])
    with running_worker(app):
        quick = app.job(name="quick")(lambda: None)
        assert app.wait(quick.enqueue(), timeout="20s").status == "completed"


def test_those_who_wait_are_told_of_other_processes_by_looking(
    app_on_each_engine: Tenure, looks: list[set[str]]
) -> None:
    app = app_on_each_engine
    job = app.enqueue("work", delay="1h")
    future = begin(app, job.id)
    wait_until(lambda: len(looks) >= 5, "looks")
    with Tenure(app.database) as other:
        other.cancel(job.id)
        assert future.result(20).status == "cancelled"


def test_on_sqlite_commits_of_other_processes_wake_who_waits(
    sqlite_url: str, looks: list[set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "MAX_PAUSE_SECONDS", 60.0)
    monkeypatch.setattr(waits, "FIRST_LOOK_SECONDS", 60.0)
    with Tenure(sqlite_url) as app, Tenure(sqlite_url) as other:
        job = app.enqueue("work", delay="1h")
        future = begin(app, job.id)
        wait_until(lambda: looks, "the first look")
        other.cancel(job.id)
        assert future.result(20).status == "cancelled"


def test_a_job_that_is_deleted_while_it_is_waited_for(app: Tenure, looks: list[set[str]]) -> None:
    job = app.enqueue("work", delay="1h")
    future = begin(app, job.id)
    wait_until(lambda: len(looks) >= 2, "looks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "settled", lambda *_: {})
        with pytest.raises(ResultGone):
            future.result(20)


def test_a_store_that_closes_ends_every_wait(app: Tenure) -> None:
    future = begin(app, app.enqueue("work", delay="1h").id)
    app.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        future.result(20)


def test_an_outage_ends_no_wait_that_has_begun(app: Tenure, looks: list[set[str]]) -> None:
    job = app.enqueue("work", delay="1h")
    future = begin(app, job.id)
    wait_until(lambda: len(looks) >= 2, "looks")
    failed = threading.Event()

    def settled(*_: object) -> None:
        failed.set()
        raise StoreUnavailable("away")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "settled", settled)
        assert failed.wait(20)
        with pytest.raises(StoreUnavailable, match="away"):
            app.wait(job)  # who begins in an outage is told at once
    app.cancel(job.id)
    assert future.result(20).status == "cancelled"


def test_each_who_waits_has_an_error_to_raise(app: Tenure, monkeypatch: pytest.MonkeyPatch) -> None:
    """All had the same one: its traceback grew with each, and one changed it for the others."""
    job, both, look = app.enqueue("work", delay="1h"), threading.Event(), waits.Waits._next

    def settled(*_: object) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(Reader, "settled", settled)
    monkeypatch.setattr(waits.Waits, "_next", lambda all: both.wait(20) and look(all))
    futures = [begin(app, job.id) for _ in range(2)]
    both.set()
    first, second = (future.exception(20) for future in futures)
    assert first is not second
    assert str(first) == str(second) == "away"


def test_handles_come_out_as_their_jobs_end(app: Tenure) -> None:
    @app.job
    def double(number: int) -> int:
        return 2 * number

    waiting = double.options(delay="1h").submit(0)
    with running_worker(app):
        handles = [double.submit(number) for number in range(20)]
        assert sorted(handle.result() for handle in app.as_completed(handles)) == list(
            range(0, 40, 2)
        )

        async def iterate() -> list[int]:
            return [await handle async for handle in app.as_completed(handles)]

        assert sorted(asyncio.run(iterate())) == list(range(0, 40, 2))
        in_order = iter(app.as_completed([waiting, handles[0]], timeout=0.5))
        assert next(in_order) is handles[0]
        with pytest.raises(TimeoutError):
            next(in_order)

        async def too_long() -> None:
            async for _ in app.as_completed([waiting], timeout=0.01):
                raise AssertionError

        async def then_wait() -> None:
            with pytest.raises(TimeoutError):
                await too_long()
            if others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others)  # what waited ends, too
            with pytest.raises(TimeoutError, match="it continues"):
                await waiting.result_async(timeout=0.01)

        asyncio.run(then_wait())


def test_a_handle_that_came_out_answers_at_once_and_then_asks_again(
    app: Tenure, looks: list[set[str]]
) -> None:
    outcomes = [ValueError("not yet"), 7]

    @app.job(max_retries=1)
    def work() -> int:
        if isinstance(outcome := outcomes.pop(0), Exception):
            raise outcome
        return outcome

    with running_worker(app):
        (handle,) = app.as_completed([work.submit()])
        looks.clear()
        with pytest.raises(JobFailed, match="not yet"):
            handle.result()
        assert looks == []
        app.retry(handle.id)
        assert handle.result("20s") == 7


def test_a_thread_whose_clock_another_program_moves(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As freezegun does, but not where it finds `threading` among the callers: no look was due."""
    job, here, real = app.enqueue("work"), threading.get_ident(), time.monotonic
    app.cancel(job.id)
    ahead = {here: 1e9}
    monkeypatch.setattr(time, "monotonic", lambda: real() + ahead.get(threading.get_ident(), 0))
    assert app.wait(job.id, "10s").status == "cancelled"


def test_the_looks_grow_apart() -> None:
    wait, at, pauses = waits.Pending("id"), 0.0, []
    while at < 10:
        wait.put_off(at)
        pauses.append(wait.due - at)
        at = wait.due
    assert pauses[0] == waits.FIRST_LOOK_SECONDS
    assert all(pause <= 1.001 * after for pause, after in pairwise(pauses[1:]))
    assert pauses[-1] == pytest.approx(waits.MAX_PAUSE_SECONDS)
    assert len(pauses) < 100
