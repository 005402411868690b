"""One process of the soak: a producer or a worker, beside the database or over HTTP.

    python -m tests.chaos.soak_part producer|worker SOURCE FOLDER NAME SEED

SOURCE is a database URL or the address of a server. A producer ends once FOLDER holds a file named
`enough`, a worker at SIGTERM. Whatever is asked, answered and run is on record in FOLDER.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from tenure import JobContext, Tenure
from tenure.client import Client
from tenure.errors import QueueFull, StoreUnavailable
from tenure.worker.process import run_loop, stopped_by_signals
from tenure.worker.worker import Worker
from tests.chaos.history import History, Recorded, record_handlers

LEASE_SECONDS = 2.0
PAUSE_SECONDS = 0.05
TRIES = 200
TYPES = ("ok", "ok", "ok", "ok", "flaky", "flaky", "fails", "slow", "crash")
AT_ONCE = {"base": 0.1, "factor": 1.5, "cap": 2.0}

app = Tenure("sqlite:///not-used.db")


@app.job(name="ok")
async def succeed(number: int) -> int:
    """An honest piece of work."""
    return number


@app.job(name="flaky")
def fail_at_first(context: JobContext, number: int) -> None:
    """Fails in the first attempt."""
    if context.attempt == 1:
        raise ValueError(f"job {number} fails at first")


@app.job(name="fails")
async def fail(number: int) -> None:
    """Fails always."""
    raise ValueError(f"job {number} always fails")


@app.job(name="slow")
def take_a_while(context: JobContext, number: int) -> None:
    """Takes up to twice the lease."""
    threading.Event().wait(LEASE_SECONDS * (number % 5) / 2)


@app.job(name="crash")
def crash(context: JobContext, number: int) -> None:
    """Kills its worker in the first attempt."""
    if context.attempt == 1 and number % 4 == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def produce(source: Any, folder: Path, name: str, chance: random.Random) -> None:
    """Add jobs until it is enough; what may have got lost is sent again under its key."""
    number = 0
    pause = threading.Event()
    while not (folder / "enough").exists():
        number += 1
        type = chance.choice(TYPES)
        key = f"{name}-{os.getpid()}-{number}"
        options = {
            "idempotency_key": key,
            "max_retries": chance.randrange(5),
            "backoff": AT_ONCE,
            "queue": chance.choice(["mail", "reports", "default"]),
            "priority": chance.randrange(3),
        }
        for _ in range(TRIES):
            try:
                source.enqueue(type, {"number": number}, **options)
                break
            except (StoreUnavailable, QueueFull):
                pause.wait(PAUSE_SECONDS)
        pause.wait(PAUSE_SECONDS)


def main() -> None:
    """Play the part."""
    role, url, folder, name, seed = sys.argv[1:]
    logging.basicConfig(level=logging.ERROR, format=f"{name}: %(message)s")
    history = History(Path(folder), name)
    source = Recorded(Client(url, timeout=3) if url.startswith("http") else Tenure(url), history)
    if role == "producer":
        produce(source, Path(folder), name, random.Random(f"{seed} {name}"))
    else:
        handlers = record_handlers(app.core.handlers, history)
        worker = Worker(
            source, handlers, concurrency=8, lease_seconds=LEASE_SECONDS, grace_seconds=1
        )
        with stopped_by_signals(worker.request_stop):
            run_loop(worker.run())


if __name__ == "__main__":
    main()
