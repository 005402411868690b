"""A process in which operators act on the jobs that its workers run, until its time is over.

    python -m tests.chaos.operating URL SECONDS SEED

Workers send every report twice, in any order and many in one request. Operators pause and limit
the queue, and cancel, retry, amend and hasten jobs, one by one and all that match. With 0 seconds
nobody operates, and the process ends when every job is settled.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress

from tenure import IllegalTransition, InvalidInput, NewJob, PerPartition, StoreUnavailable, Tenure
from tenure.app.bulk import run_batches
from tenure.errors import LimitConflict
from tenure.rules.jobs import Options
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tenure.rules.search import Filter
from tests.support.raw_sql import RawSql

QUEUE = "q"
LEASE_SECONDS = 0.5
DRAIN_SECONDS = 60.0
NEWEST = 60
"""Operators and workers meet at so many of the newest jobs."""
UNSETTLED = "SELECT count(*) FROM {job} WHERE finished_at IS NULL"
OUTCOMES = (Outcome.COMPLETED,) * 4 + (Outcome.FAILED,) * 3 + (Outcome.RELEASED, Outcome.SNOOZED)


def new_jobs(chance: random.Random, count: int) -> list[NewJob]:
    common: Options = {"queue": QUEUE, "backoff": 0, "max_retries": 3, "tags": ["one"]}
    return [
        NewJob("work", {}, {**common, "partition": one}) for one in chance.choices("abc", k=count)
    ]


def work(app: Tenure, chance: random.Random) -> None:
    """Claim jobs, add as many, and report most, each twice in one request or the next."""
    request = ClaimRequest(worker="w", limit=chance.randrange(1, 30), lease_seconds=LEASE_SECONDS)
    leases = app.core.claim(request).leases
    time.sleep(chance.random() / 50)
    said = [
        Report(lease.id, lease.lease_id, chance.choice(OUTCOMES), error="boom", delay=0)
        for lease in leases
        if chance.random() < 0.95
    ]
    reports = [*said, *said]
    chance.shuffle(reports)
    half = len(reports) // 2
    app.core.report(reports[:half])
    app.core.report(reports[half:])


def operate(app: Tenure, chance: random.Random) -> None:
    """One act of an operator."""
    act = chance.choice((cancel, retry, retry, amend, act_on_all, pause, limit, limit))
    with suppress(IllegalTransition, InvalidInput):
        act(app, chance)


def one_of(app: Tenure, chance: random.Random, status: str | None = None) -> str:
    found = app.find(status=status, limit=NEWEST)
    return chance.choice(found).id if found else ""


def cancel(app: Tenure, chance: random.Random) -> None:
    if id := one_of(app, chance):
        app.cancel(id)


def retry(app: Tenure, chance: random.Random) -> None:
    if id := one_of(app, chance, "failed"):
        app.retry(id)


def amend(app: Tenure, chance: random.Random) -> None:
    if id := one_of(app, chance, "pending"):
        app.amend(id, priority=chance.randrange(3), max_retries=5, delay=chance.choice((0, 0.2)))


def act_on_all(app: Tenure, chance: random.Random) -> None:
    action = chance.choice(("retry", "run_now", "cancel")) if chance.random() < 0.3 else "retry"
    app.bulk.start(action, Filter(tag="one", queue=QUEUE))
    run_batches(app.core)


def pause(app: Tenure, chance: random.Random) -> None:
    app.queues.pause(QUEUE)
    time.sleep(chance.random() / 20)
    app.queues.resume(QUEUE)


def limit(app: Tenure, chance: random.Random) -> None:
    """Without limits, so that several operators set the first ones at once; or with others."""
    if chance.random() < 0.3:
        app.queues.limit(QUEUE, max_running=None, per_partition=None)
        return
    rate = chance.choice((None, "500/1s"))
    per = PerPartition(max_running=chance.choice((None, 5, 20)), rate=rate)
    app.queues.limit(QUEUE, max_running=chance.choice((None, 10, 40)), per_partition=per)
    with suppress(LimitConflict):  # another operator has removed the turns since
        app.queues.limit_partition(QUEUE, "a", weight=chance.choice((None, 3)))


def main() -> None:
    url, seconds, seed = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    over = time.monotonic() + (seconds or DRAIN_SECONDS)
    drained, broken = threading.Event(), list[str]()

    def repeat(turn: Callable[[Tenure, random.Random], None], pause: float, name: str) -> None:
        chance = random.Random(f"{seed} {name}")
        try:
            with Tenure(url) as app, closing(RawSql(url)) as raw:
                while time.monotonic() < over and not drained.is_set():
                    with suppress(StoreUnavailable):
                        turn(app, chance)
                    time.sleep(pause)
                    if not seconds and not raw.value(UNSETTLED):
                        drained.set()
        except BaseException as error:
            broken.append(f"{name}: {error!r}")
            raise

    turns = [(work, 0.002)] * 3 + [(lambda app, _: app.core.sweep(), 0.02)]
    if seconds:
        turns += [(lambda app, chance: app.enqueue_many(new_jobs(chance, 20)), 0.05)]
        turns += [(operate, 0.01)] * 3
    threads = [
        threading.Thread(target=repeat, args=(turn, pause, f"thread {number}"))
        for number, (turn, pause) in enumerate(turns)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(*broken, sep="\n")
    sys.exit(bool(broken) or (not seconds and not drained.is_set()))


if __name__ == "__main__":
    main()
