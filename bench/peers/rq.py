"""RQ on Redis: SimpleWorker, which does not fork for each job, JSON, jobs deleted when done.

Bulk is `enqueue_many` in a pipeline. With the default `result_ttl` a job would stay 500 s.
"""

import logging
from collections.abc import Iterable

import redis
from rq import Queue, Retry, SimpleWorker
from rq.serializers import JSONSerializer

from bench.adapter import PLACE
from bench.workload import payload, perform

logging.disable(logging.CRITICAL)
connection = redis.Redis.from_url(PLACE)
queue = Queue("default", connection=connection, serializer=JSONSerializer)
OPTIONS = {"result_ttl": 0, "retry": Retry(max=3)}


def send(n: int, to: str, subject: str, note: str) -> None:
    perform(n)


class Sender:
    def one(self, n: int) -> None:
        queue.enqueue(send, kwargs=payload(n), **OPTIONS)

    def many(self, numbers: Iterable[int]) -> None:
        jobs = [Queue.prepare_data(send, kwargs=payload(n), **OPTIONS) for n in numbers]
        with connection.pipeline() as pipeline:
            queue.enqueue_many(jobs, pipeline=pipeline)
            pipeline.execute()


def open_sender(callers: int) -> Sender:
    return Sender()


def work() -> None:
    worker = SimpleWorker([queue], connection=connection, serializer=JSONSerializer)
    worker.work(logging_level="CRITICAL")
