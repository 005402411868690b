"""What runs in a coroutine uses the loop of the test: handlers, lifespans and `on_failure`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tenure import Failure, Tenure, testing


@pytest.mark.anyio
async def test_all_coroutines_run_on_the_loop_of_the_test(app: Tenure) -> None:
    """A pool of connections belongs to one loop."""
    loops: list[asyncio.AbstractEventLoop] = []

    @app.lifespan
    @asynccontextmanager
    async def pool() -> AsyncIterator[None]:
        loops.append(asyncio.get_running_loop())
        yield

    @app.on_failure
    async def report(failure: Failure) -> None:
        loops.append(asyncio.get_running_loop())

    @app.job(max_retries=1)
    async def pay() -> None:
        loops.append(asyncio.get_running_loop())
        raise ValueError("no")

    with testing.on(app) as jobs:
        await pay.enqueue_async()
        assert (await jobs.drain_async(raise_errors=False)).failed == 1
    assert loops == [asyncio.get_running_loop()] * 3


@pytest.mark.anyio
async def test_run_returns_the_job_to_a_coroutine_too(app: Tenure) -> None:
    @app.job
    async def add(a: int, b: int) -> int:
        return a + b

    with testing.on(app) as jobs:
        assert (await jobs.run_async(await add.enqueue_async(1, 2))).result == 3


@pytest.mark.anyio
async def test_an_error_says_how_a_coroutine_runs_jobs(app: Tenure) -> None:
    """Django refuses a query on the thread of a loop, and says nothing of jobs."""

    @app.job
    def pay() -> None:
        if asyncio.get_running_loop():
            raise RuntimeError("no query here")

    with testing.on(app) as jobs:
        pay.enqueue()
        with pytest.raises(RuntimeError) as raised:
            jobs.drain()
    assert "write `await jobs.drain_async()`" in raised.value.__notes__[-1]
