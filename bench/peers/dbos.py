"""DBOS on PostgreSQL: an `async def` workflow on a queue, 100 at once a worker, polled each 50 ms.

Its queues poll, by default once a second. A workflow without steps writes its start and its end.
The client enqueues one by one: there is no call for many. Retries belong to steps, not to
workflows, so the retry path is not measured.
"""

import os
import signal
import threading
from collections.abc import Callable

import sqlalchemy
from dbos import DBOS, DBOSClient

from bench.adapter import PLACE
from bench.workload import concurrency, payload, perform_async

URL = PLACE.replace("postgresql:", "postgresql+psycopg:", 1)
QUEUE = "default"
VERSION = "1"
POLL_SECONDS = 0.05
ENQUEUE = {"workflow_name": "send", "queue_name": QUEUE, "app_version": VERSION}


@DBOS.workflow(name="send")
async def send(n: int, to: str, subject: str, note: str) -> None:
    await perform_async(n)


def launch() -> None:
    DBOS(
        config={
            "name": "bench",
            "system_database_url": URL,
            "application_version": VERSION,
            "executor_id": f"worker-{os.getpid()}",
            "log_level": "ERROR",
        }
    )
    DBOS.launch()


def prepare() -> None:
    launch()
    DBOS.register_queue(
        QUEUE, worker_concurrency=concurrency(100), polling_interval_sec=POLL_SECONDS
    )
    DBOS.destroy()


class Sender:
    def __init__(self, callers: int) -> None:
        self.engine = sqlalchemy.create_engine(URL)
        self.client = DBOSClient(system_database_url=URL, system_database_pool_size=callers)

    def one(self, n: int) -> None:
        self.client.enqueue(ENQUEUE, **payload(n))

    def within(self, n: int, note: Callable[[], None]) -> None:
        with self.engine.begin() as connection:
            self.client.enqueue_in_transaction(connection, ENQUEUE, **payload(n))
            note()

    def close(self) -> None:
        self.client.destroy()


def open_sender(callers: int) -> Sender:
    return Sender(callers)


def work() -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    launch()
    stop.wait()
    DBOS.destroy()
