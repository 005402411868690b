"""streaQ over Redis streams: `async def` task, 16 at once (its best here), 1,000 fetched ahead.

Silent logs, `enqueue_many` for bulk, results for its default of five minutes.
"""

import logging
from collections.abc import Iterable

from streaq import Worker
from streaq.types import StreaqRetry

from bench.adapter import PLACE
from bench.workload import FirstAttempt, concurrency, payload, perform_async

logging.disable(logging.CRITICAL)
worker = Worker(redis_url=PLACE, queue_name="bench", concurrency=concurrency(16), prefetch=1000)


@worker.task(silent=True, name="send")
async def send(n: int, to: str, subject: str, note: str) -> None:
    try:
        await perform_async(n)
    except FirstAttempt as error:
        raise StreaqRetry("once more", delay=0) from error


class Sender:
    async def one(self, n: int) -> None:
        await send.enqueue(**payload(n))

    async def many(self, numbers: Iterable[int]) -> None:
        await worker.enqueue_many([send.enqueue(**payload(n)) for n in numbers])

    async def close(self) -> None:
        await worker.__aexit__(None, None, None)


async def open_sender(callers: int) -> Sender:
    await worker.__aenter__()
    return Sender()


def work() -> None:
    worker.run_sync()
