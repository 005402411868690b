"""Handlers see the variables of `contextvars` that they see in a worker, and none of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar

import pytest

from tenure import Failure, Tenure, testing
from tenure.testing import Jobs

USER: ContextVar[str] = ContextVar("USER", default="-")
POOL: ContextVar[str] = ContextVar("POOL", default="-")


def drained(jobs: Jobs) -> None:
    jobs.drain(raise_errors=False)


def drained_in_a_loop(jobs: Jobs) -> None:
    async def drain() -> None:
        jobs.drain(raise_errors=False)

    asyncio.run(drain())


def drained_by_await(jobs: Jobs) -> None:
    asyncio.run(jobs.drain_async(raise_errors=False))


def run_by_await(jobs: Jobs) -> None:
    async def run() -> None:
        for job in jobs.enqueued():
            await jobs.run_async(job)

    asyncio.run(run())


@pytest.mark.parametrize("drive", [drained, drained_in_a_loop, drained_by_await, run_by_await])
def test_a_handler_sees_what_a_lifespan_has_set_and_nothing_of_the_test(
    nowhere: Tenure, drive: Callable[[Jobs], None]
) -> None:
    @nowhere.lifespan
    @asynccontextmanager
    async def pool() -> AsyncIterator[None]:
        POOL.set("open")
        yield

    @nowhere.around
    @contextmanager
    def signed_in(_: object) -> Iterator[None]:
        assert USER.get() == "-"
        USER.set("a job")
        yield

    @nowhere.job
    async def coroutine() -> list[str]:
        return [USER.get(), POOL.get()]

    @nowhere.job
    def plain() -> list[str]:
        return [USER.get(), POOL.get()]

    with testing.on(nowhere) as jobs:
        USER.set("a test")
        nowhere.enqueue_many([one.new_job() for one in (coroutine, plain) * 2])
        drive(jobs)
        seen = {(job.type, *job.result) for job in nowhere.find(status="completed")}
    assert seen == {("coroutine", "a job", "open"), ("plain", "a job", "-")}
    assert (USER.get(), POOL.get()) == ("a test", "-")


@pytest.mark.parametrize("drive", [drained, drained_in_a_loop, drained_by_await])
def test_on_failure_sees_nothing_of_the_test(
    nowhere: Tenure, drive: Callable[[Jobs], None]
) -> None:
    seen: list[str] = []

    @nowhere.on_failure
    def plain(failure: Failure) -> None:
        seen.append(USER.get())

    @nowhere.on_failure
    async def coroutine(failure: Failure) -> None:
        seen.append(USER.get())

    @nowhere.job(max_retries=1)
    def bad() -> None:
        raise ValueError("no")

    with testing.on(nowhere) as jobs:
        USER.set("a test")
        bad.enqueue()
        drive(jobs)
    assert seen == ["-", "-"]


@pytest.mark.parametrize("drive", [drained, drained_in_a_loop, drained_by_await])
def test_a_lifespan_that_cannot_be_left_ends_the_test_as_a_worker(
    nowhere: Tenure, drive: Callable[[Jobs], None]
) -> None:
    @nowhere.lifespan
    @contextmanager
    def pool() -> Iterator[None]:
        yield
        raise OSError("the pool is not closed")

    @nowhere.job
    def good() -> None: ...

    with testing.on(nowhere) as jobs:
        job = good.enqueue()
        with pytest.raises(OSError, match="the pool is not closed"):
            drive(jobs)
        assert nowhere.get(job.id).status == "completed"
