"""A store with a clock that the test moves, a plain connection, and short methods."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from tenure.events import Cancelled
from tenure.lifecycle import Job
from tenure.rules.jobs import CheckedJob, Enqueued
from tenure.rules.ledger import Transition
from tenure.rules.reports import Answer, ClaimRequest, Lease, Outcome, Report, Verdict, Wait
from tenure.store import Store
from tenure.store.tables import queues
from tenure.store.work import EnqueueWork
from tenure.values.ids import new_id
from tests.support.clock import Clock
from tests.support.waiting import wait_until

LEASE_SECONDS = 60.0
COUNT_LEDGER = "SELECT count(*) FROM {transition}"


def new_job(type: str = "mail", **fields: Any) -> CheckedJob:
    """An addition with a new id. Three attempts are enough to see the last one."""
    simple = "unique" not in fields
    return CheckedJob(
        **{"id": new_id(), "type": type, "max_retries": 3, "simple": simple, **fields}
    )


def claim_request(limit: int = 1, worker: str = "w1", **fields: Any) -> ClaimRequest:
    """A worker asking for jobs."""
    return ClaimRequest(
        **{"worker": worker, "limit": limit, "lease_seconds": LEASE_SECONDS, **fields}
    )


def report_completed(lease: Lease, result: str | None = None, **fields: Any) -> Report:
    """The report that an attempt succeeded."""
    return Report(lease.id, lease.lease_id, Outcome.COMPLETED, result=result, **fields)


def report_failed(lease: Lease, error: str = "boom", **fields: Any) -> Report:
    """The report that an attempt failed."""
    return Report(lease.id, lease.lease_id, Outcome.FAILED, error=error, **fields)


def report_released(lease: Lease, **fields: Any) -> Report:
    """The report that hands a job back unrun."""
    return Report(lease.id, lease.lease_id, Outcome.RELEASED, **fields)


def report_interrupted(lease: Lease, **fields: Any) -> Report:
    """The report that the worker stops while the job runs."""
    return Report(lease.id, lease.lease_id, Outcome.INTERRUPTED, **fields)


def report_snoozed(lease: Lease, **fields: Any) -> Report:
    """The report that the job is to run again later."""
    return Report(lease.id, lease.lease_id, Outcome.SNOOZED, **{"delay": 0.0, **fields})


def report_suspended(
    lease: Lease, name: str = "approved", number: int = 1, expires_at: datetime | None = None
) -> Report:
    """The report that the job waits for a signal."""
    wait = Wait(name, number, expires_at)
    return Report(lease.id, lease.lease_id, Outcome.SUSPENDED, wait=wait)


REPORTS = {
    Outcome.COMPLETED: report_completed,
    Outcome.FAILED: report_failed,
    Outcome.RELEASED: report_released,
    Outcome.INTERRUPTED: report_interrupted,
    Outcome.SNOOZED: report_snoozed,
    Outcome.SUSPENDED: report_suspended,
}
RECORDED = Verdict(Answer.RECORDED)
ALREADY = Verdict(Answer.ALREADY_RECORDED)
LOST = Verdict(Answer.LOST)
MALFORMED_IDS = ["", "nonsense", "x" * 5_000, "' OR 1=1 --", "%s", "{", "🎈", "NULL", "a\x00b"]
"""What no job id and no lease id looks like."""


class StoreHarness:
    """A store, its clock and a plain connection; methods wait for the store's answer.

    The clock is moved on the same connection: another one costs much of what a short test does.
    """

    def __init__(self, url: str, store: Store, clock: Clock) -> None:
        self.url = url
        self.store = store
        self.clock = clock
        self.sql = clock.raw

    def add(self, type: str = "mail", **fields: Any) -> Job:
        """Add one job and wait for it."""
        (added,) = self.add_all(new_job(type, **fields))
        return added.job

    def add_all(self, *checked_jobs: CheckedJob) -> list[Enqueued]:
        """Add jobs in one request."""
        return self.store.add(checked_jobs).result()

    def add_in_one_commit(self, *checked_jobs: CheckedJob) -> list[Future[list[Enqueued]]]:
        """Add jobs as if a caller asked for each, and one commit took them all."""
        works = [EnqueueWork([one]) for one in checked_jobs]
        committer = self.store._committer
        committer.commit(committer._databases[0], works)
        return [work.future for work in works]

    def claim(self, limit: int = 1, worker: str = "w1", **fields: Any) -> list[Lease]:
        """Lease jobs."""
        return list(self.store.exchange((), claim_request(limit, worker, **fields)).result().leases)

    def take(self, **fields: Any) -> Lease:
        """Add a job and lease it."""
        job = self.add(**fields)
        (lease,) = self.claim(limit=1)
        assert lease.id == job.id
        return lease

    def report(self, *reports: Report) -> list[Verdict]:
        """Report, and lease nothing; the verdicts but for the time of a retry."""
        verdicts = self.store.exchange(reports, None).result().verdicts
        return [replace(verdict, retry_in=None) for verdict in verdicts]

    def set_queue(self, name: str, *, actor: str = "operator", **settings: Any) -> None:
        """Pause, resume or limit a queue."""
        self.store.write(
            "queue", lambda db: queues.set_queue(db, name, actor=actor, **settings)
        ).result()

    def get(self, job_id: str) -> Job:
        """The job as it stands."""
        job = self.store.read.get(job_id)
        assert job is not None
        return job

    def events(self, job_id: str) -> list[str]:
        """The events in the ledger of a job."""
        return [entry.event for entry in self.history(job_id)]

    def history(self, job_id: str) -> list[Transition]:
        """The ledger of a job."""
        return self.store.read.history(job_id)

    def ledger(self, after: str = "", limit: int = 10_000) -> list[Transition]:
        """The ledger, once all of it can be read.

        PostgreSQL holds entries back while any older transaction runs, and one may be running for
        the server itself (autovacuum).
        """
        wait_until(
            lambda: len(self.store.read.ledger("", 10_000)) >= self.sql.value(COUNT_LEDGER),
            "the ledger to be complete",
        )
        return self.store.read.ledger(after, limit)

    def measure(self) -> None:
        """Measure all of the ledger, once all of it can be read."""
        self.ledger()
        while self.store.update_stats():
            pass

    def prune(self, settled_before: Mapping[str, datetime], limit: int = 500) -> int:
        """Prune when everything has been measured; how many jobs went."""
        self.measure()
        return self.store.prune(settled_before, limit).result()

    def cancel_all(self) -> None:
        """Cancel what is left, so that the next case of a test has its jobs to itself."""
        for (id,) in self.sql.run("SELECT id FROM {job} WHERE finished_at IS NULL"):
            self.store.apply(str(id), Cancelled()).result()

    def ids(self, leases: list[Lease]) -> list[str]:
        """The jobs of leases."""
        return [lease.id for lease in leases]
