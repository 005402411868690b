"""Huey on SQLite: `fsync=True`, without which SQLite's `synchronous` is off; one thread,
or one for each slot.

A job is deleted before it runs, so a killed worker loses it. The consumer polls, from each 10 ms
down to each 200 ms. SQLite has one writer, so that more threads were not faster.
"""

import logging

from huey import SqliteHuey
from huey.consumer_options import ConsumerConfig

from bench.adapter import PLACE
from bench.workload import concurrency, payload, perform

LOCK_SECONDS = 60  # twelve workers start at once

logging.disable(logging.CRITICAL)
queue = SqliteHuey("bench", filename=PLACE, fsync=True, timeout=LOCK_SECONDS)


@queue.task(retries=3, retry_delay=0)
def send(n: int, to: str, subject: str, note: str) -> None:
    perform(n)


class Sender:
    def one(self, n: int) -> None:
        send(**payload(n))


def open_sender(callers: int) -> Sender:
    return Sender()


def work() -> None:
    config = ConsumerConfig(
        workers=concurrency(1),
        worker_type="thread",
        periodic=False,
        initial_delay=0.01,
        backoff=1.15,
        max_delay=0.2,
    )
    config.validate()
    queue.create_consumer(**config.values).run()
