"""A producer or a worker of the cluster's battery, a process on machine 0, at work until told.

    python -m tests.chaos.cluster_part producer|worker URL FOLDER NAME SEED

It ends when its standard input does, a worker once it has drained. Whatever is asked, answered and
run is on record in FOLDER. Nobody starts it again: it lives through every fault.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import threading
from pathlib import Path

from tenure import JobContext, NewJob, Tenure, Unique
from tenure.errors import StoreUnavailable
from tenure.rules.jobs import Options
from tenure.worker.process import run_loop
from tenure.worker.worker import Worker
from tests.chaos.history import History, Recorded, record_handlers
from tests.support.workers import running_sweeper

LEASE_SECONDS = 5.0
BATCH = 25
PAUSE_SECONDS = 0.5
PATIENCE_SECONDS = 0.1
TYPES = ("quick", "quick", "quick", "flaky")
RETRIES = 20


def handlers(app: Tenure) -> None:
    """What the jobs do."""

    @app.job(name="quick")
    async def succeed(number: int) -> int:
        await asyncio.sleep(number % 5 / 200)
        return number

    @app.job(name="flaky")
    def fail_at_first(context: JobContext, number: int) -> None:
        if context.attempt == 1:
            raise ValueError(f"job {number} fails at first")

    @app.job(name="single")
    async def be_single(number: int) -> int:
        await asyncio.sleep(0.02)
        return number


def jobs(chance: random.Random, name: str, number: int) -> list[NewJob]:
    """What a producer adds at once: jobs with keys, or one that is unique."""
    chosen = chance.random()
    if chosen < 0.1:
        unique: Options = {"unique": Unique(), "max_retries": RETRIES}
        return [NewJob("single", {"number": chance.randrange(5)}, unique)]
    limited = chosen < 0.3
    batch = list[NewJob]()
    for each in range(BATCH // 5 if limited else BATCH):
        options: Options = {
            "max_retries": RETRIES,
            "backoff": 0.1,
            "queue": "limited" if limited else "default",
            "partition": chance.choice("abcd"),
            "idempotency_key": f"{name}-{number}-{each}",
        }
        batch.append(NewJob(chance.choice(TYPES), {"number": each}, options))
    return batch


def produce(source: Recorded, name: str, chance: random.Random, enough: threading.Event) -> None:
    """Add jobs; what may not have been accepted is sent again, with the same keys."""
    number = 0
    while not enough.is_set():
        number += 1
        batch = jobs(chance, name, number)
        while not enough.is_set():
            try:
                if len(batch) == 1:
                    (one,) = batch
                    source.enqueue(one.type, one.payload, **one.options)
                else:
                    source.enqueue_many(batch)
                break
            except StoreUnavailable:
                enough.wait(PATIENCE_SECONDS)
        enough.wait(PAUSE_SECONDS)


def main() -> None:
    """Play the part."""
    role, url, folder, name, seed = sys.argv[1:]
    logging.basicConfig(level=logging.ERROR, format=f"%(asctime)s {name}: %(message)s")
    app = Tenure(url)
    handlers(app)
    history = History(Path(folder), name)
    source = Recorded(app, history)
    enough = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        enough.set()
        if worker is not None:
            worker.request_stop()

    worker = None
    if role == "producer":
        threading.Thread(target=listen, daemon=True).start()
        produce(source, name, random.Random(f"{seed} {name}"), enough)
        return
    kinds = record_handlers(app.core.handlers, history)

    async def work() -> None:
        nonlocal worker
        worker = Worker(source, kinds, concurrency=8, lease_seconds=LEASE_SECONDS)
        threading.Thread(target=listen, daemon=True).start()
        await worker.run()

    with running_sweeper(app, interval=1.0):
        run_loop(work())


if __name__ == "__main__":
    main()
