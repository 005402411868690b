"""honker, a Rust extension of SQLite: claims and acknowledges by batches of 500.

It sets WAL and `synchronous=NORMAL` itself: a commit survives the end of the process, not of the
machine. When there is nothing to claim the loop waits for its `update_events`, which look each
millisecond. Its `async for job in queue.claim()` costs two transactions a job and is a hundred
times slower.
"""

import asyncio
import os
from collections.abc import Iterable
from contextlib import suppress

import honker

from bench.adapter import PLACE
from bench.workload import FirstAttempt, payload, perform

BATCH = 500


def open_queue():
    database = honker.open(PLACE)
    return database, database.queue("default", max_attempts=3)


def prepare() -> None:
    open_queue()


class Sender:
    """One opened database for all callers: it hands its writing connection from one to the next."""

    def __init__(self) -> None:
        self.database, self.queue = open_queue()

    def one(self, n: int) -> None:
        self.queue.enqueue(payload(n))

    def many(self, numbers: Iterable[int]) -> None:
        with self.database.transaction() as transaction:
            for n in numbers:
                self.queue.enqueue(payload(n), tx=transaction)


def open_sender(callers: int) -> Sender:
    return Sender()


async def work() -> None:
    database, queue = open_queue()
    worker = f"worker-{os.getpid()}"
    updates = database.update_events()
    while True:
        jobs = queue.claim_batch(worker, BATCH)
        if not jobs:
            with suppress(TimeoutError):
                await asyncio.wait_for(updates.__anext__(), 1.0)
            continue
        done = []
        for job in jobs:
            try:
                perform(job.payload["n"])
            except FirstAttempt as error:
                job.retry(delay_s=0, error=str(error))
            else:
                done.append(job.id)
        if done:
            queue.ack_batch(done, worker)
