"""Procrastinate on PostgreSQL: psycopg's asynchronous connector, `async def` task, concurrency 20.

It fetches and finishes one job a statement, so its concurrency is what overlaps the commits; 20
was faster than 1, 10 and 40. The pool has room for all of them.
"""

import logging
from collections.abc import Iterable

from procrastinate import App, PsycopgConnector, RetryStrategy

from bench.adapter import PLACE
from bench.workload import payload, perform

CONCURRENCY = 20

app = App(connector=PsycopgConnector(conninfo=PLACE, min_size=2, max_size=CONCURRENCY + 4))


@app.task(name="send", retry=RetryStrategy(max_attempts=3, wait=0))
async def send(n: int, to: str, subject: str, note: str) -> None:
    perform(n)


async def prepare() -> None:
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


class Sender:
    async def one(self, n: int) -> None:
        await send.defer_async(**payload(n))

    async def many(self, numbers: Iterable[int]) -> None:
        await send.batch_defer_async(*[payload(n) for n in numbers])

    async def close(self) -> None:
        await app.close_async()


async def open_sender(callers: int) -> Sender:
    await app.open_async()
    return Sender()


async def work() -> None:
    logging.getLogger("procrastinate").setLevel(logging.CRITICAL)
    async with app.open_async():
        await app.run_worker_async(concurrency=CONCURRENCY, shutdown_graceful_timeout=2)
