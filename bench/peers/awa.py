"""awa on PostgreSQL: its queue storage engine, 500 workers, two claimers with batches of 500.

Handlers are `async def`, bulk goes through its COPY call. A plain `migrate()` leaves the older
engine in place until a worker starts, so the storage is installed first.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import awa
from awa import AsyncClient

from bench.adapter import PLACE, until_terminated
from bench.workload import FirstAttempt, payload, perform

WORKERS = 500
QUEUE = {"name": "default", "max_workers": WORKERS, "claim_batch_size": 500, "claimers": 2}


@dataclass
class Send:
    n: int
    to: str
    subject: str
    note: str


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
            perform(job.args.n)
        except FirstAttempt:
            return awa.RetryAfter(seconds=0)

    await client.start([QUEUE])
    await stop.wait()
    await client.shutdown()
