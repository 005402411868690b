"""litequeue on SQLite: a bare queue, with the obvious loop of pop, run and done around it.

It sets WAL and `synchronous=NORMAL` itself; each connection is set to FULL after it, so that a
commit is on disk. It has no worker, no retry and no lease; the loop sleeps 10 ms when there is
nothing.
"""

import json
import threading
import time
from collections.abc import Callable, Iterable

from litequeue import LiteQueue

from bench.adapter import PLACE
from bench.workload import payload, perform

LOCK_SECONDS = 60  # workers start while the bench holds the file


def opened_queue() -> LiteQueue:
    queue = LiteQueue(PLACE, timeout=LOCK_SECONDS)
    queue.conn.execute("PRAGMA synchronous = FULL")
    return queue


def prepare() -> None:
    opened_queue()


class Sender:
    """A connection for each calling thread."""

    def __init__(self) -> None:
        self.mine = threading.local()

    def opened(self) -> LiteQueue:
        if not hasattr(self.mine, "queue"):
            self.mine.queue = opened_queue()
        return self.mine.queue

    def one(self, n: int) -> None:
        self.opened().put(json.dumps(payload(n), separators=(",", ":")))

    def many(self, numbers: Iterable[int]) -> None:
        with self.opened().transaction():
            for n in numbers:
                self.one(n)

    def within(self, n: int, note: Callable[[], None]) -> None:
        with self.opened().transaction():
            self.one(n)
            note()


def open_sender(callers: int) -> Sender:
    return Sender()


def work() -> None:
    queue = opened_queue()
    while True:
        message = queue.pop()
        if message is None:
            time.sleep(0.01)
            continue
        perform(json.loads(message.data)["n"])
        queue.done(message.message_id)
