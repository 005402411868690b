"""Chancy on PostgreSQL: its asyncio executor, 100 jobs at once, eager polling, `push_many`.

Eager polling asks again as soon as there is room; the plain interval is at its least of 1 s.
Completions are written in batches about once a second. The pruner is not enabled.
"""

import logging
from collections.abc import Callable, Iterable

from chancy import Chancy, Queue, Worker, job
from psycopg.rows import dict_row

from bench.adapter import PLACE
from bench.workload import concurrency, payload, perform_async

logging.disable(logging.CRITICAL)


@job(queue="default", max_attempts=3)
async def send(*, n: int, to: str, subject: str, note: str):
    await perform_async(n)


async def prepare() -> None:
    async with Chancy(PLACE) as chancy:
        await chancy.migrate()
        await chancy.declare(
            Queue(
                "default",
                concurrency=concurrency(100),
                executor="chancy.executors.asyncex.AsyncExecutor",
                polling_interval=1,
                eager_polling=True,
            )
        )


class Sender:
    def __init__(self, chancy: Chancy) -> None:
        self.chancy = chancy

    async def one(self, n: int) -> None:
        await self.chancy.push(send.job.with_kwargs(**payload(n)))

    async def many(self, numbers: Iterable[int]) -> None:
        jobs = [send.job.with_kwargs(**payload(n)) for n in numbers]
        async for _ in self.chancy.push_many(jobs):
            pass

    async def within(self, n: int, note: Callable[[], None]) -> None:
        pool = self.chancy.pool
        async with pool.connection() as connection, connection.transaction():
            async with connection.cursor(row_factory=dict_row) as cursor:
                await self.chancy.push_ex(cursor, send.job.with_kwargs(**payload(n)))
            note()

    async def close(self) -> None:
        await self.chancy.__aexit__(None, None, None)


async def open_sender(callers: int) -> Sender:
    return Sender(await Chancy(PLACE).__aenter__())


async def work() -> None:
    async with Chancy(PLACE) as chancy, Worker(chancy, shutdown_timeout=2) as worker:
        await worker.wait_for_shutdown()
