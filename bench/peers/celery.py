"""Celery on Redis: late acknowledgement, results off, one prefork child a node, prefetch of 64.

No gossip, mingle, heartbeat, events or rate limits. Two worker processes are two such nodes. Jobs
go back to the queue when their child dies, or after the visibility timeout of an hour.
"""

import os

from celery import Celery

from bench.adapter import PLACE
from bench.workload import FirstAttempt, payload, perform

app = Celery("bench", broker=PLACE)
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=64,
    worker_hijack_root_logger=False,
    worker_send_task_events=False,
    worker_disable_rate_limits=True,
    task_send_sent_event=False,
    broker_connection_retry_on_startup=True,
)


@app.task(bind=True, name="send", max_retries=3)
def send(self, n: int, to: str, subject: str, note: str) -> None:
    try:
        perform(n)
    except FirstAttempt as error:
        raise self.retry(countdown=0) from error


class Sender:
    def one(self, n: int) -> None:
        send.apply_async(kwargs=payload(n))


def open_sender(callers: int) -> Sender:
    return Sender()


def work() -> None:
    app.worker_main(
        [
            *("worker", "--loglevel=ERROR", "--pool=prefork", "--concurrency=1"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
            *("-n", f"bench-{os.getpid()}@localhost"),
        ]
    )
