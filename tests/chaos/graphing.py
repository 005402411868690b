"""A process that works on a graph of jobs which grows meanwhile, until its time is over.

    python -m tests.chaos.graphing URL SECONDS SEED

Workers that complete, fail, give up and forget jobs; a sweeper; an application that adds jobs
behind those that are just ending; an operator who cancels and retries. With 0 seconds nobody adds
or operates, and the process ends when every job is settled.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress

from tenure import Dependency, IllegalTransition, JobNotFound, NewJob, StoreUnavailable, Tenure
from tenure.dependency import Meets
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tests.support.raw_sql import RawSql

WORKERS = 3
LEASE_SECONDS = 0.4
DRAIN_SECONDS = 60.0
MEETS: tuple[Meets, ...] = ("completed", "completed", "settled", "failed")
OUTCOMES = ("completed",) * 12 + ("failed",) * 4 + ("gave up",) * 2 + ("forgotten",)
OPERATOR = "operator"
RECENT = "SELECT id FROM {job} WHERE {only} ORDER BY id DESC LIMIT 40"
UNSETTLED = "SELECT count(*) FROM {job} WHERE finished_at IS NULL"


def work(app: Tenure, chance: random.Random) -> None:
    """Claim a few jobs and end most of them, some twice."""
    request = ClaimRequest(worker="w", limit=chance.randrange(1, 8), lease_seconds=LEASE_SECONDS)
    leases = app.core.claim(request).leases
    time.sleep(chance.random() / 50)
    reports = list[Report]()
    for lease in leases:
        said = chance.choice(OUTCOMES)
        if said != "forgotten":
            outcome = Outcome.COMPLETED if said == "completed" else Outcome.FAILED
            again = said != "gave up"
            report = Report(lease.id, lease.lease_id, outcome, error="boom", retryable=again)
            reports.append(report)
    app.core.report([*reports, *reports[:1]])


def grow(app: Tenure, raw: RawSql, chance: random.Random) -> None:
    """Add jobs behind some that run, or have just ended, and behind each other."""
    there = [str(id) for (id,) in raw.run(RECENT.replace("{only}", "1 = 1"))]
    new = list[NewJob]()
    for _ in range(chance.choice((1, 1, 5))):
        parents = chance.sample(there, min(len(there), chance.choice((0, 1, 2, 6, 20))))
        on = [Dependency(id, chance.choice(MEETS)) for id in parents]
        needs = chance.choice(("all", "all", "any", max(1, len(on) // 2))) if on else "all"
        options = {"backoff": 0, "max_retries": 3, "depends_on": on, "needs": needs}
        new.append(NewJob("node", {}, options))  # type: ignore[arg-type]
    app.enqueue_many(new)


def operate(app: Tenure, raw: RawSql, chance: random.Random) -> None:
    """Cancel or retry one of the newest."""
    failed = chance.random() < 0.6
    only = "status = 'failed'" if failed else "finished_at IS NULL"
    found = raw.run(RECENT.replace("{only}", only))
    if found:
        ((id,),) = chance.sample(found, 1)
        with suppress(IllegalTransition, JobNotFound):
            act = app.retry if failed else app.cancel
            act(str(id), actor=OPERATOR)


def sweep(app: Tenure) -> None:
    app.core.sweep()
    while app.core.follow():
        pass


def main() -> None:
    url, seconds, seed = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    over = time.monotonic() + (seconds or DRAIN_SECONDS)
    drained, broken = threading.Event(), list[str]()

    def repeat(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        with Tenure(url) as app, closing(RawSql(url)) as raw:
            turns: list[tuple[Callable[[], None], float]] = [
                *[(lambda: work(app, chance), 0.002)] * WORKERS,
                (lambda: sweep(app), 0.02),
                (lambda: grow(app, raw, chance), 0.02),
                (lambda: operate(app, raw, chance), 0.05),
            ]
            turn, pause = turns[number]
            while time.monotonic() < over and not drained.is_set():
                with suppress(StoreUnavailable):
                    turn()
                time.sleep(pause)
                if not seconds and number == WORKERS and not raw.value(UNSETTLED):
                    drained.set()

    def guarded(number: int) -> None:
        try:
            repeat(number)
        except BaseException as error:
            broken.append(repr(error))
            raise

    numbers = range(WORKERS + (3 if seconds else 1))
    threads = [threading.Thread(target=guarded, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.exit(bool(broken) or (not seconds and not drained.is_set()))


if __name__ == "__main__":
    main()
