"""Dramatiq on Redis: one process, 8 threads (its default), 1,000 messages fetched ahead.

Without the Prometheus middleware. A message is acknowledged after its actor ran. The shortest
delay of a retry is 1 ms; its default is 15 s.
"""

import logging
import os
import signal
import threading

os.environ.setdefault("dramatiq_queue_prefetch", "1000")

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from bench.adapter import PLACE
from bench.workload import concurrency, payload, perform

logging.disable(logging.CRITICAL)
broker = RedisBroker(url=PLACE)
dramatiq.set_broker(broker)


@dramatiq.actor(max_retries=3, min_backoff=1, max_backoff=1)
def send(n: int, to: str, subject: str, note: str) -> None:
    perform(n)


class Sender:
    def one(self, n: int) -> None:
        send.send(**payload(n))


def open_sender(callers: int) -> Sender:
    return Sender()


def work() -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    worker = dramatiq.Worker(broker, worker_threads=concurrency(8))
    worker.start()
    stop.wait()
    worker.stop(timeout=2000)
