"""awa on PostgreSQL: its queue storage engine, 500 workers, two claimers with batches of 500.

Handlers are `async def`, bulk goes through its COPY call. A plain `migrate()` leaves the older
engine in place until a worker starts, so the storage is installed first.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import awa
from awa import AsyncClient

from bench.adapter import PLACE, until_terminated
from bench.workload import FirstAttempt, concurrency, hold_until, payload, perform_async

WORKERS = concurrency(500)
QUEUE = {"name": "default", "max_workers": WORKERS, "claim_batch_size": WORKERS, "claimers": 2}


@dataclass
class Send:
    n: int
    to: str
    subject: str
    note: str


@dataclass
class Hold:
    n: int


async def prepare() -> None:
    client = AsyncClient(PLACE)
    await client.migrate()
    await client.install_queue_storage()
    await client.close()


class Sender:
    def __init__(self, client: AsyncClient) -> None:
        self.client = client

    async def one(self, n: int) -> None:
        await self.client.insert(Send(**payload(n)), queue="default")

    async def many(self, numbers: Iterable[int]) -> None:
        jobs = [Send(**payload(n)) for n in numbers]
        await self.client.enqueue_many_copy(jobs, queue="default")

    async def within(self, n: int, note: Callable[[], None]) -> None:
        transaction = await self.client.transaction()
        await transaction.insert(Send(**payload(n)), queue="default")
        note()
        await transaction.commit()

    async def hold(self, n: int) -> int:
        return (await self.client.insert(Hold(n), queue="default")).id

    async def cancel(self, job: int) -> None:
        await self.client.cancel(job)

    async def close(self) -> None:
        await self.client.close()


async def open_sender(callers: int) -> Sender:
    return Sender(AsyncClient(PLACE))


async def work() -> None:
    stop = until_terminated()
    client = AsyncClient(PLACE)

    @client.task(Send, queue="default")
    async def send(job):
        try:
            await perform_async(job.args.n)
        except FirstAttempt:
            return awa.RetryAfter(seconds=0)

    @client.task(Hold, queue="default")
    async def hold_on(job):
        await hold_until(job.args.n, job.is_cancelled)

    await client.start([QUEUE])
    await stop.wait()
    await client.shutdown()
