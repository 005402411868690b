"""A process that passes every failpoint but the server's, and what it needs to go on after one.

    export TENURE_FAILPOINTS=claim.after_commit=kill
    python -m tests.chaos.every_failpoint URL FOLDER FAILPOINT

It opens the database (and migrates), adds jobs, pauses and resumes a queue, cancels one and many,
makes a schedule, signals a job and skips one, lets a lease run out and sweeps, works off
everything, retries by hand and prunes, all on record in FOLDER. What fails is tried again, as an
application would.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tenure import Job, JobContext, NewJob, Tenure, failpoints
from tenure.app.bulk import run_batches
from tenure.errors import IllegalTransition
from tenure.rules.reports import ClaimRequest
from tenure.rules.search import Filter
from tenure.store.sqlite import connection as sqlite_connection
from tests.chaos.history import History, Recorded, record_handlers
from tests.support.waiting import wait_until
from tests.support.workers import running_sweeper, running_worker

T = TypeVar("T")

LEASE_SECONDS = 0.4
TRIES = 5
NOT_REACHED = 3
"""The exit code of a process that did not reach its failpoint."""
WAITING = ("waiting", "pending", "processing")
UNWANTED: Any = {"queue": "unwanted", "delay": 1}
"""Jobs that are cancelled all at once."""


def add_handlers(app: Tenure) -> None:
    """Jobs that succeed, that always fail, and one long enough for a heartbeat."""

    @app.job(backoff=0)
    async def succeed(number: int) -> int:
        return number

    @app.job(backoff=0)
    def fail(number: int) -> None:
        raise ValueError(f"number {number} fails")

    @app.job(backoff=0, max_retries=9)
    def last(context: JobContext, number: int) -> None:
        context.step("nap", time.sleep, LEASE_SECONDS * 0.7)

    @app.job(backoff=0, max_retries=2)
    async def abandoned(number: int) -> None:
        return None


@contextlib.contextmanager
def taking_part(url: str, folder: Path, who: str) -> Iterator[Recorded]:
    """An application with the handlers above, on record."""
    history = History(folder, who)
    app = Tenure(url)
    record_handlers(app, history)
    add_handlers(app)
    try:
        yield Recorded(app, history)
    finally:
        app.close()


@contextlib.contextmanager
def serving(app: Recorded) -> Iterator[None]:
    """A worker with short leases, and a sweeper."""
    sweeper: Any = app
    with (
        running_worker(app.source, app, concurrency=4, lease_seconds=LEASE_SECONDS),
        running_sweeper(sweeper),
    ):
        yield


def again(act: Callable[[], T]) -> T | None:
    """Do it, again if it fails; None if it cannot be done (any more)."""
    for _ in range(TRIES - 1):
        try:
            return act()
        except IllegalTransition:
            return None
        except Exception as error:
            print(f"again, after {type(error).__name__}: {error}", flush=True)
    return act()


def add_jobs(app: Recorded, first: int) -> list[Job]:
    """Jobs of every kind, one by one and together, limits 0 to 3."""
    jobs = []
    for number in range(first, first + 8):
        kind = "fail" if number % 2 else "succeed"

        def add(kind: str = kind, number: int = number) -> Job:
            options: Any = {"max_retries": number % 4, "idempotency_key": f"key-{number}"}
            return app.enqueue(kind, {"number": number}, **options)

        jobs.append(again(add))
    new_jobs = [NewJob("succeed", {"number": first + number}, {}) for number in range(10, 14)]
    jobs += again(lambda: app.enqueue_many(new_jobs)) or []
    return [job for job in jobs if job is not None]


def walk(app: Recorded) -> None:
    """Everything that an application, a worker, a sweeper and an operator do."""
    again(app.open)
    jobs = add_jobs(app, first=0)
    again(lambda: app.queues.pause("elsewhere"))
    again(lambda: app.queues.resume("elsewhere"))
    cancelled = again(lambda: app.enqueue("succeed", {"number": 100}, delay=1))
    if cancelled:
        again(lambda: app.cancel(cancelled.id))
    for number in range(101, 104):
        again(lambda number=number: app.enqueue("succeed", {"number": number}, **UNWANTED))  # type: ignore[misc]
    again(lambda: app.bulk.start("cancel", Filter(queue=UNWANTED["queue"])))
    wait_until(lambda: again(lambda: run_batches(app.core) == 0), "the bulk action to end")
    again(lambda: app.enqueue("abandoned", {"number": 200}))
    again(lambda: app.enqueue("last", {"number": 300}))
    again(lambda: follow(app))
    again(lambda: schedule(app))
    again(lambda: depend(app))
    request = ClaimRequest(worker="x", limit=1, lease_seconds=0.001, types=("abandoned",))
    again(lambda: app.claim(request))
    wait_until(lambda: again(lambda: swept(app)), "the abandoned lease to be swept")
    with serving(app):
        wait_until(lambda: again(lambda: all_settled(app)), "everything to settle")
        for job in jobs[1::4]:
            again(lambda job=job: app.retry(job.id))  # type: ignore[misc]
        wait_until(lambda: again(lambda: all_settled(app)), "what was retried to settle")
    wait_until(lambda: again(lambda: measured(app)), "the moves to be measured")
    wait_until(lambda: again(lambda: pruned(app)), "the cancelled job to be pruned")


def follow(app: Recorded) -> None:
    """Read the ledger for a webhook that matches no transition, so that no receiver is needed."""
    if app.webhooks.list() == []:
        app.webhooks.create("deaf", "https://example.com", ["failed"], types=["unheard-of"])
        app.enqueue("succeed", {"number": 400})
    while app.core.forward_to_webhooks():
        pass


def schedule(app: Recorded) -> None:
    """Add a schedule that is not due for long, and pause it."""
    if app.schedules.list() == []:
        app.schedules.create("yearly", NewJob("unheard-of", {}, {}), cron="@yearly")
    app.schedules.pause("yearly")


def depend(app: Recorded) -> None:
    """Signal a job, then cancel it, and skip the one that depends on it."""
    first = app.enqueue("succeed", {"number": 500}, delay=1)
    app.enqueue("succeed", {"number": 501}, depends_on=[first])
    app.signal(first.id, "go", key="once")
    app.cancel(first.id)
    while app.core.follow():
        pass


def swept(app: Recorded) -> bool:
    """Sweep; whether no lease is left, whoever ended it."""
    app.core.sweep()
    return not app.find(status="processing", type="abandoned", limit=1)


def measured(app: Recorded) -> bool:
    """Measure; whether all there is has been measured, whoever did it."""
    app.core.measure()
    return app.stats.totals() != [] and app.core.measure() == 0


def pruned(app: Recorded) -> bool:
    """Prune; whether no cancelled job is left."""
    app.core.prune({"cancelled": 0})
    return not app.find(status="cancelled", limit=1)


def all_settled(app: Recorded) -> bool:
    """Whether nothing waits or runs, at one moment."""
    return not any(count.status in WAITING for count in app.stats.counts())


def main() -> None:
    url, folder, failpoint = sys.argv[1:]
    sqlite_connection.CHECKPOINT_PAGES = 1  # as often as can be
    with taking_part(url, Path(folder), "failpoints") as app:
        walk(app)
    if not failpoints._visits[failpoint]:
        raise SystemExit(NOT_REACHED)


if __name__ == "__main__":
    main()
