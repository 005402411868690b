"""PgQueuer on PostgreSQL: asyncpg and uvloop, `batch_size` 500.

It takes and settles jobs in batches of that size; the default of 10 is several times slower. Where
a worker has few slots, they are its `max_concurrent_tasks`, and a batch is half of that: its most.
`durability` stays at its default, with every table logged.
"""

import asyncio
import json
from collections.abc import Callable, Iterable
from datetime import timedelta

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.errors import RetryRequested
from pgqueuer.queries import Queries

from bench.adapter import PLACE, until_terminated
from bench.workload import FirstAttempt, concurrency, hold, payload, perform_async

BATCH = 500
SLOTS = concurrency(0)


def encoded(n: int) -> bytes:
    return json.dumps(payload(n), separators=(",", ":")).encode()


async def prepare() -> None:
    connection = await asyncpg.connect(PLACE)
    await Queries(AsyncpgDriver(connection)).install()
    await connection.close()


class Sender:
    """A connection for each caller: a pool would reset its connection after each call."""

    def __init__(self, connections: list[asyncpg.Connection]) -> None:
        self.connections = connections
        self.free = [Queries(AsyncpgDriver(connection)) for connection in connections]

    async def one(self, n: int) -> None:
        queries = self.free.pop()
        await queries.enqueue("send", encoded(n))
        self.free.append(queries)

    async def many(self, numbers: Iterable[int]) -> None:
        payloads = [encoded(n) for n in numbers]
        await self.free[0].enqueue(["send"] * len(payloads), payloads, [0] * len(payloads))

    async def within(self, n: int, note: Callable[[], None]) -> None:
        transaction = self.connections[0].transaction()
        await transaction.start()
        await self.free[0].enqueue("send", encoded(n))
        note()
        await transaction.commit()

    async def hold(self, n: int) -> int:
        (job,) = await self.free[0].enqueue("hold", str(n).encode())
        return job

    async def cancel(self, job: int) -> None:
        await self.free[0].mark_job_as_cancelled([job])

    async def close(self) -> None:
        for connection in self.connections:
            await connection.close()


async def open_sender(callers: int) -> Sender:
    return Sender([await asyncpg.connect(PLACE) for _ in range(callers)])


async def work() -> None:
    stop = until_terminated()
    async with asyncpg.create_pool(PLACE, min_size=2, max_size=4) as pool:
        queue = PgQueuer.from_asyncpg_pool(pool)

        @queue.entrypoint("send")
        async def send(job):
            try:
                await perform_async(json.loads(job.payload)["n"])
            except FirstAttempt as error:
                raise RetryRequested(delay=timedelta(0)) from error

        @queue.entrypoint("hold", accepts_context=True)
        async def hold_on(job, context):
            with context.cancellation:
                await hold(int(job.payload))

        asyncio.get_running_loop().create_task(stop.wait()).add_done_callback(
            lambda _: queue.shutdown.set()
        )
        if SLOTS:
            await queue.run(batch_size=max(SLOTS // 2, 1), max_concurrent_tasks=SLOTS)
        else:
            await queue.run(batch_size=BATCH)
