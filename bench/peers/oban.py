"""Oban for Python on PostgreSQL: a queue with a limit of 100, psycopg's pool, uvloop.

It fetches up to its limit and acknowledges what has finished in one transaction; 100 was faster
than 20 and 500. Its retries wait for a stager that looks once a second; the delay itself is 0.
"""

from collections.abc import Callable, Iterable

from oban import Oban
from oban import worker as oban_worker
from oban.schema import install

from bench.adapter import PLACE, until_terminated
from bench.workload import concurrency, hold_until, payload, perform_async

LIMIT = concurrency(100)


@oban_worker(queue="default", max_attempts=3)
class Send:
    async def process(self, job):
        await perform_async(job.args["n"])

    def backoff(self, job):
        return 0


@oban_worker(queue="default", max_attempts=1)
class Hold:
    async def process(self, job):
        await hold_until(job.args["n"], job.cancelled)


async def prepare() -> None:
    pool = await Oban.create_pool(PLACE, min_size=1, max_size=2)
    await install(pool)
    await pool.close()


class Sender:
    def __init__(self, pool, oban: Oban) -> None:
        self.pool = pool
        self.oban = oban

    async def one(self, n: int) -> None:
        await self.oban.enqueue(Send.new(payload(n)))

    async def many(self, numbers: Iterable[int]) -> None:
        await self.oban.enqueue_many([Send.new(payload(n)) for n in numbers])

    async def within(self, n: int, note: Callable[[], None]) -> None:
        async with self.pool.connection() as connection, connection.transaction():
            await self.oban.enqueue(Send.new(payload(n)), conn=connection)
            note()

    async def hold(self, n: int) -> int:
        return (await self.oban.enqueue(Hold.new({"n": n}))).id

    async def cancel(self, job: int) -> None:
        await self.oban.cancel_job(job)

    async def close(self) -> None:
        await self.oban.stop()
        await self.pool.close()


async def open_sender(callers: int) -> Sender:
    pool = await Oban.create_pool(PLACE, min_size=1, max_size=max(2, callers))
    oban = Oban(pool=pool)
    await oban.start()
    return Sender(pool, oban)


async def work() -> None:
    stop = until_terminated()
    pool = await Oban.create_pool(PLACE, min_size=2, max_size=6)
    async with Oban(pool=pool, queues={"default": LIMIT}):
        await stop.wait()
    await pool.close()
