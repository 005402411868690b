"""The variables of `contextvars` that a handler sees: of the worker's life, and of no other job."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tenure import Tenure
from tests.support.workers import running_worker, wait_until_completed

TENANT: ContextVar[str] = ContextVar("TENANT", default="-")
POOL: ContextVar[str] = ContextVar("POOL", default="-")


def test_a_coroutine_sees_no_variable_that_another_job_has_set(app: Tenure) -> None:
    """With one slot, the second job starts where the first has ended."""

    @app.job
    async def act_for(tenant: str) -> None:
        TENANT.set(tenant)
        await asyncio.sleep(0.1)  # the worker claims the others meanwhile

    @app.job
    async def seen() -> str:
        return TENANT.get()

    act_for.enqueue("acme")
    jobs = app.enqueue_many([seen.new_job() for _ in range(10)])
    with running_worker(app, concurrency=1):
        assert {wait_until_completed(app, job).result for job in jobs} == {"-"}


def test_coroutines_see_what_a_lifespan_has_set(app: Tenure) -> None:
    @app.lifespan
    @contextmanager
    def pool() -> Iterator[None]:
        POOL.set("open")
        yield

    @app.job
    async def seen() -> str:
        return POOL.get()

    jobs = [seen.enqueue() for _ in range(2)]
    with running_worker(app, concurrency=1):
        assert [wait_until_completed(app, job).result for job in jobs] == ["open", "open"]
