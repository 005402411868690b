"""The `_async` forms of the verbs: the same answers and errors, off the event loop."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from concurrent.futures import Future
from contextlib import closing
from inspect import iscoroutinefunction

import pytest

from tenure import JobNotFound, Tenure
from tenure.app.twins import answer_of, twin

WAITING_VERBS = (
    *("open", "close", "get", "find", "count", "history", "explain"),
    *("cancel", "retry", "check", "verify"),
)


@pytest.mark.parametrize("verb", WAITING_VERBS)
def test_each_verb_that_waits_for_the_database_has_a_twin(verb: str) -> None:
    made = vars(Tenure)[f"{verb}_async"]
    assert iscoroutinefunction(made)
    assert made.__wrapped__ is vars(Tenure)[verb]
    assert made.__name__ == f"{verb}_async"


def test_twins_answer_and_raise_what_their_verbs_do(app: Tenure) -> None:
    async def use() -> None:
        job = await app.enqueue_async("work")
        assert await app.get_async(job.id) == job == (await app.find_async(type="work"))[0]
        assert (await app.cancel_async(job.id, actor="ann")).status == "cancelled"
        assert [each.event for each in await app.history_async(job.id)] == ["enqueued", "cancelled"]
        with pytest.raises(JobNotFound):
            await app.get_async("none")

    asyncio.run(use())


def test_nothing_is_added_that_another_event_loop_could_not_wait_for(app: Tenure) -> None:
    """On Trio, the job was stored and its caller got "no running event loop"."""

    @app.job
    def work() -> None: ...

    with app:  # open, so that nothing has to wait for that
        for verb in (work.enqueue_async(), work.submit_async(), app.enqueue_many_async([])):
            with pytest.raises(RuntimeError, match=r"asyncio .* without _async"):
                verb.send(None)
        with pytest.raises(RuntimeError, match=r"asyncio .* without _async"):
            app.find_async().send(None)
        assert app.find() == []


def test_the_first_enqueue_opens_the_database_off_the_loop(sqlite_url: str) -> None:
    """A newcomer's loop stood still while the database was opened."""
    app = Tenure(sqlite_url)
    path = sqlite_url.removeprefix("sqlite:///")

    async def use() -> None:
        with closing(sqlite3.connect(path)) as other:
            other.execute("BEGIN IMMEDIATE")  # so that the schema cannot be made
            adding = asyncio.create_task(app.enqueue_async("work"))
            for _ in range(3):
                await asyncio.sleep(0)
            other.rollback()
        assert (await adding).status == "pending"

    with closing(app):
        began = time.monotonic()
        asyncio.run(use())
        assert time.monotonic() - began < 8, "the loop went on and ended what opening waited for"


def test_a_twin_leaves_the_loop_free() -> None:
    """The verb ends only after a coroutine of the same loop has gone on."""
    went_on = threading.Event()

    async def use() -> bool:
        running = asyncio.create_task(twin(went_on.wait)(10))
        await asyncio.sleep(0)
        went_on.set()
        return await running

    assert asyncio.run(use())


def test_work_is_dropped_with_the_coroutine_that_waits_for_it() -> None:
    async def use(future: Future[int]) -> None:
        waiting = asyncio.create_task(answer_of(future))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert future.cancelled(), "its job would be added although nobody waits"

    asyncio.run(use(Future()))


def test_an_answer_may_come_after_the_end_of_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    async def leave(future: Future[int]) -> None:
        future.set_running_or_notify_cancel()  # a commit has begun
        waiting = asyncio.create_task(answer_of(future))
        await asyncio.sleep(0)
        waiting.cancel()

    future: Future[int] = Future()
    asyncio.run(leave(future))
    future.set_result(1)
    assert not caplog.records, "the committing thread had an error of its caller"
