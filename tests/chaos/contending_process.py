"""One of the processes that contend for jobs: a worker that sends every report twice, or a sweeper.

    python -m tests.chaos.contending_process worker|sweeper URL LOG

The job's number decides what its handler would do (`outcome_of`): nothing is left to chance. Each
lease is logged before the work on it begins, and each answer when it has come.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from tenure.rules.reports import ClaimRequest, Lease, Outcome, Report
from tenure.rules.search import Query
from tenure.store import Store, open_store

LEASE_SECONDS = 0.5
BATCH = 60
FORGOTTEN = 40
"""One lease in so many is never reported, as if its worker had died."""
LATE = 15
"""One lease in so many is reported only when it has long run out."""
GIVE_UP_SECONDS = 90.0
WAITING = ("pending", "processing")


def limit_of(number: int) -> int:
    """max_retries of job `number`: 0 to 4."""
    return number % 5


def outcome_of(number: int, attempt: int) -> Outcome:
    """A third of all jobs fail: half of those always, the others at the first attempt."""
    if number % 3 == 0 and (number % 2 == 0 or attempt == 1):
        return Outcome.FAILED
    if number % 7 == 0 and attempt == 1 and number % 3:
        return Outcome.RELEASED if number % 2 else Outcome.COMPLETED
    return Outcome.COMPLETED


def report_of(lease: Lease) -> Report:
    number = json.loads(lease.payload)["number"]
    # A job that is handed back has its attempt back, so the token tells the first claim.
    outcome = outcome_of(number, lease.attempts)
    if outcome is Outcome.RELEASED and lease.token > 1:
        outcome = Outcome.COMPLETED
    result = '"done"' if outcome is Outcome.COMPLETED else None
    return Report(lease.id, lease.lease_id, outcome, result, error=f"attempt {lease.attempts}")


def work(store: Store, log: TextIO) -> None:
    """Claim, run, report, report again, until nothing is left."""
    name = Path(log.name).stem
    give_up = time.monotonic() + GIVE_UP_SECONDS
    seen = itertools.count(1)
    again: list[Report] = []
    late: list[tuple[float, Report]] = []
    fresh: list[Report] = []
    while True:
        now = time.monotonic()
        if now > give_up:
            raise SystemExit("the jobs do not come to an end")
        overdue = [report for at, report in late if now > at]
        late = [(at, report) for at, report in late if now <= at]
        reports = [*fresh, *again, *overdue]
        request = ClaimRequest(worker=name, limit=BATCH, lease_seconds=LEASE_SECONDS)
        exchange = store.exchange(reports, request).result()
        for report, verdict in zip(reports, exchange.verdicts, strict=True):
            write(log, "answer", report.job_id, report.lease_id, report.outcome, verdict.answer)
        again, fresh = [*fresh, *overdue], []
        for lease in exchange.leases:
            write(log, "run", lease.id, lease.lease_id, lease.attempts, lease.token)
            number = next(seen)
            if number % FORGOTTEN == 0:
                continue
            if number % LATE == 0:
                late.append((now + 2 * LEASE_SECONDS, report_of(lease)))
            else:
                fresh.append(report_of(lease))
        if not reports and not exchange.leases and not late and all_settled(store):
            return


def all_settled(store: Store) -> bool:
    """Whether all jobs are settled, at one moment: one can be retried between two looks."""
    time.sleep(0.01)  # an idle worker polls, it does not spin
    if any(store.read.find(Query(status=status, limit=1)) for status in WAITING):
        return False  # which is cheaper to see
    return not any(count.status in WAITING for count in store.read.stats.counts())


def sweep(store: Store) -> None:
    """End leases as fast as they run out, until nothing is left."""
    give_up = time.monotonic() + GIVE_UP_SECONDS
    while not all_settled(store):
        if time.monotonic() > give_up:
            raise SystemExit("the jobs do not come to an end")
        store.sweep(limit=100).result()


def write(log: TextIO, *words: object) -> None:
    log.write(" ".join(map(str, words)) + "\n")


def read(logs: list[Path], kind: str) -> Iterator[list[str]]:
    """The lines of one kind in all logs, without the kind."""
    for path in logs:
        for line in path.read_text().splitlines():
            found, *words = line.split()
            if found == kind:
                yield words


def main() -> None:
    role, url, path = sys.argv[1:]
    store = open_store(url)
    with Path(path).open("w", buffering=1) as log:
        if role == "sweeper":
            sweep(store)
        else:
            work(store, log)
    store.close()


if __name__ == "__main__":
    main()
