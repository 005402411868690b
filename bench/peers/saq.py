"""SAQ on Redis: 50 jobs at once, three attempts without delay, results for its default time."""

import logging

from saq import Queue, Worker

from bench.adapter import PLACE
from bench.workload import concurrency, payload, perform_async

logging.disable(logging.CRITICAL)
queue = Queue.from_url(PLACE)


async def send(context, *, n: int, to: str, subject: str, note: str) -> None:
    await perform_async(n)


class Sender:
    async def one(self, n: int) -> None:
        await queue.enqueue("send", retries=3, **payload(n))

    async def close(self) -> None:
        await queue.disconnect()


async def open_sender(callers: int) -> Sender:
    await queue.connect()
    return Sender()


async def work() -> None:
    await queue.connect()
    await Worker(queue, functions=[send], concurrency=concurrency(50)).start()  # until SIGTERM
