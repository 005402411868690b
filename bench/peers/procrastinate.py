"""Procrastinate on PostgreSQL: psycopg's asynchronous connector, `async def` task, concurrency 20.

It fetches and finishes one job a statement, so its concurrency is what overlaps the commits; 20
was faster than 1, 10 and 40. The pool has room for all of them.
"""

import logging
from collections.abc import Callable, Iterable

import psycopg
from procrastinate import App, PsycopgConnector, RetryStrategy

from bench.adapter import PLACE
from bench.workload import concurrency, hold, payload, perform_async

CONCURRENCY = concurrency(20)

app = App(connector=PsycopgConnector(conninfo=PLACE, min_size=2, max_size=CONCURRENCY + 4))


@app.task(name="send", retry=RetryStrategy(max_attempts=3, wait=0))
async def send(n: int, to: str, subject: str, note: str) -> None:
    await perform_async(n)


@app.task(name="hold")
async def hold_on(n: int) -> None:
    await hold(n)


async def prepare() -> None:
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


class Sender:
    def __init__(self, connection: psycopg.AsyncConnection) -> None:
        self.connection = connection  # a caller's own

    async def one(self, n: int) -> None:
        await send.defer_async(**payload(n))

    async def many(self, numbers: Iterable[int]) -> None:
        await send.batch_defer_async(*[payload(n) for n in numbers])

    async def within(self, n: int, note: Callable[[], None]) -> None:
        await send.configure(connection=self.connection).defer_async(**payload(n))
        note()
        await self.connection.commit()

    async def hold(self, n: int) -> int:
        return await hold_on.defer_async(n=n)

    async def cancel(self, job: int) -> None:
        await app.job_manager.cancel_job_by_id_async(job, abort=True)

    async def close(self) -> None:
        await self.connection.close()
        await app.close_async()


async def open_sender(callers: int) -> Sender:
    await app.open_async()
    return Sender(await psycopg.AsyncConnection.connect(PLACE))


async def work() -> None:
    logging.getLogger("procrastinate").setLevel(logging.CRITICAL)
    async with app.open_async():
        await app.run_worker_async(concurrency=CONCURRENCY, shutdown_graceful_timeout=2)
