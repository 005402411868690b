"""honker, a Rust extension of SQLite: claims and acknowledges by batches of 500.

It sets WAL and `synchronous=NORMAL` itself, with which a commit survives the end of the process and
not of the machine, and has no option for it. It does hand out its one writing connection, which
takes `synchronous=FULL` between two transactions, so that is what is measured.
`BENCH_SYNCHRONOUS=NORMAL` leaves it as it comes, to show what the difference is.

When there is nothing to claim the loop waits for its `update_events`, which look each millisecond.
Its `async for job in queue.claim()` costs two transactions a job and is a hundred times slower.
Where a worker has few slots, a batch has that size, and its jobs run side by side.
"""

import asyncio
import os
from collections.abc import Callable, Iterable
from contextlib import suppress

import honker

from bench.adapter import PLACE
from bench.workload import JOB_SECONDS, FirstAttempt, concurrency, payload, perform, perform_async

BATCH = concurrency(500)
SYNCHRONOUS = os.environ.get("BENCH_SYNCHRONOUS", "FULL")
LEVELS = {"NORMAL": 1, "FULL": 2}


def open_queue():
    database = honker.open(PLACE)
    with database.transaction() as transaction:
        # SQLite refuses to change it inside a transaction, and honker has begun one.
        transaction.execute("COMMIT")
        transaction.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
        transaction.execute("BEGIN IMMEDIATE")
        (found,) = transaction.query("PRAGMA synchronous")
    if found["synchronous"] != LEVELS[SYNCHRONOUS]:
        raise RuntimeError(f"honker does not take synchronous={SYNCHRONOUS}")
    return database, database.queue("default", max_attempts=3)


def open_when_free():
    """Opening it writes, for which it does not wait long."""
    while True:
        try:
            return open_queue()
        except RuntimeError as error:
            if "locked" not in str(error):
                raise


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

    def within(self, n: int, note: Callable[[], None]) -> None:
        with self.database.transaction() as transaction:
            self.queue.enqueue(payload(n), tx=transaction)
            note()


def open_sender(callers: int) -> Sender:
    return Sender()


async def work() -> None:
    database, queue = open_when_free()
    worker = f"worker-{os.getpid()}"
    updates = database.update_events()
    while True:
        jobs = queue.claim_batch(worker, BATCH)
        if not jobs:
            with suppress(TimeoutError):
                await asyncio.wait_for(updates.__anext__(), 1.0)
            continue
        if JOB_SECONDS:
            await asyncio.gather(*(perform_async(job.payload["n"]) for job in jobs))
            queue.ack_batch([job.id for job in jobs], worker)
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
