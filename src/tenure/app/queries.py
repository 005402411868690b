"""What everybody reads: the half of the door that opens the database and changes nothing in it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Self, Unpack

from tenure.errors import JobNotFound
from tenure.jobs import filters, ids
from tenure.jobs.enqueue import whole
from tenure.jobs.explain import RATE_MINUTES, Explanation, Facts, explain, rate
from tenure.jobs.filters import Fields
from tenure.jobs.findings import Check, Violation
from tenure.jobs.ledger import EventFilter, LedgerPage, Transition
from tenure.jobs.progress import Progress, no_progress
from tenure.jobs.queries import Counted, Filter, Page, Query, query_of
from tenure.jobs.redaction import MARK, Redaction
from tenure.jobs.states import QueueState, WorkerState
from tenure.jobs.stats import Activity, Count, FailureGroup, Total
from tenure.lifecycle import Job, Status
from tenure.store import Store, open_store, schema_of, search
from tenure.store.audit import INVARIANTS
from tenure.store.bulk import about
from tenure.store.doctor import check_store

MAX_LISTED = 500
MAX_BACK = 10_000
MAX_MINUTES = 24 * 60
MAX_COUNTED = 1_000_000
EVERYTHING = EventFilter()


class Queries:
    """One database, opened at the first use, and every question that can be asked of it."""

    def __init__(self, database: str) -> None:
        self.database = database
        self._opened: Store | None = None
        self._opening = threading.Lock()

    @property
    def _store(self) -> Store:
        return self._opened or self.open()._store

    def open(self, *, make: bool = True) -> Self:
        """Open the database now; raises StoreUnavailable or SchemaMismatch if that fails.

        Without `make`, also where there is no database of Tenure yet.
        """
        if self._opened is None:
            with self._opening:  # of two first users at once each would have a store of its own
                if self._opened is None:
                    self._opened = open_store(self.database, make=make)
        return self

    def close(self) -> None:
        """Commit what is waiting and close the database; the next use opens it again."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- jobs and their moves

    def get(self, job_id: str) -> Job:
        """The job as it stands; raises JobNotFound."""
        job = self._store.read.get(job_id) if ids.is_id(job_id) else None
        if job is None:
            raise JobNotFound(job_id)
        return job

    def find(
        self, *, limit: int = 50, before: str | None = None, **filter: Unpack[Fields]
    ) -> list[Job]:
        """Jobs of a `Filter`, newest first; `before` is the id of the last one of the page before.

        Looks as far as it takes to find `limit` (at most 500) of them; `page` answers sooner.
        """
        return search.all_of(self._store.read, _query(Filter(**filter), limit, before))

    def page(self, filter: Filter, *, limit: int = 50, before: str | None = None) -> Page:
        """Jobs of a filter, newest first, after a look at a bounded number of rows.

        Where jobs that fit are rare, a page has fewer than `limit`, or none, and still a `next`:
        the `before` of the page that goes on there.
        """
        return search.page(self._store.read, _query(filter, limit, before))

    def count_matching(
        self, filter: Filter, *, action: str | None = None, at_most: int = 10_000
    ) -> Counted:
        """How many jobs fit, up to `at_most`, as far as a bounded number of rows can tell.

        With an `action` (`retry`, `cancel`), those whose status allows it.
        """
        count = whole(at_most, 1, MAX_COUNTED, "$.at_most")
        query = _query(filter)
        if action is not None:
            query = about(filter, filters.sources(filters.action_of(action)))
        return search.count(self._store.read, query, count)

    def history(self, job_id: str) -> list[Transition]:
        """Every move of a job, oldest first; raises JobNotFound."""
        self.get(job_id)
        return self._store.read.history(job_id)

    def ledger(self, after: str = "", limit: int = MAX_LISTED) -> list[Transition]:
        """Moves of all jobs after a position, in an order that never changes, without gaps."""
        return self._store.read.ledger(after, limit)

    def transitions(
        self, after: str = "", limit: int = MAX_LISTED, wanted: EventFilter = EVERYTHING
    ) -> LedgerPage:
        """The next `limit` moves after a position, of which only those `wanted` are told.

        Each comes with the type and queue of its job. `position` of the answer is where to go on,
        also when nothing was told.
        """
        return self._store.read.transitions(after, limit, wanted)

    def ledger_end(self, back: int = 0) -> str:
        """The position of the newest move, or of the one `back` moves before it."""
        return self._store.read.ledger_end(whole(back, 0, MAX_BACK, "$.back"))

    def stats(self) -> list[Count]:
        """Jobs by status, queue and type, at this moment."""
        return self._store.read.measured.counts()

    def activity(self, minutes: int = 60) -> list[Activity]:
        """Moves by minute, type, queue and event; only minutes in which there were some.

        Reaches as far as `measured_until` says. What exceeds 200 pairs of type and queue is added
        up under the name `(other)`.
        """
        return self._store.read.measured.activity(whole(minutes, 1, MAX_MINUTES, "$.minutes"))

    def totals(self) -> list[Total]:
        """The same since the beginning; no number in it ever falls."""
        return self._store.read.measured.totals()

    def failures(self, limit: int = 50) -> list[FailureGroup]:
        """Failed attempts by type and kind of error, those seen last first.

        Reaches as far as `measured_until` says; of all kinds, the 200 seen last are kept.
        """
        return self._store.read.measured.failures(whole(limit, 1, MAX_LISTED, "$.limit"))

    def measured_until(self) -> datetime | None:
        """How far `activity`, `totals` and `failures` reach; None if nothing was measured yet.

        About now, unless there is more to do than can be measured beside it.
        """
        return self._store.read.measured.until()

    def queues(self) -> list[QueueState]:
        """Every queue with jobs waiting or running, or with settings."""
        return self._store.read.queues()

    def late_leases(self) -> int:
        """How many leases have run out and are yet to be ended by a sweep."""
        return self._store.read.late_leases()

    def workers(self) -> list[WorkerState]:
        """Workers that asked for jobs lately."""
        return self._store.read.workers()

    def explain(self, job_id: str) -> Explanation:
        """Why a job is not running; raises JobNotFound."""
        job = self.get(job_id)
        read = self._store.read
        now = read.clock()
        due = job.status is Status.PENDING and job.run_at <= now
        facts = Facts(
            now=now,
            paused=any(q.name == job.queue and q.paused_at is not None for q in read.queues()),
            workers=read.workers(),
            ahead=read.ahead(job) if due else 0,
            rate=rate(read.measured.activity(RATE_MINUTES), job.queue, now) if due else 0.0,
        )
        return explain(job, facts)

    def verify(self, limit: int = 100, *, progress: Progress | None = None) -> list[Violation]:
        """Check the stored data against every invariant; an empty list is good.

        At most `limit` violations of each invariant are listed. Writers are not held up. `tell` is
        called before each check: `tell(done, total, what)`, as a progress bar wants it.
        """
        found = self._store.read.violations(limit, progress or no_progress)
        return [Violation(*finding, INVARIANTS[finding[0]]) for finding in found]

    def ping(self) -> datetime:
        """The store's clock; raises if the store does not answer."""
        return self._store.read.clock()

    def checks(self) -> list[Check]:
        """Whether the database is set up as the promises need it; makes and changes nothing."""
        return check_store(self.database)

    def is_current(self) -> bool:
        """Whether the database is there with this version's schema; makes and changes nothing."""
        found, needed = schema_of(self.database)
        return found == needed


def transitions_shown(
    transitions: Sequence[Transition], job: Job, redaction: Redaction
) -> Sequence[Transition]:
    """The moves of a job as they may be shown: their errors without its hidden values."""
    if not redaction:
        return transitions
    shown = redaction.hider(job.payload, job.result)
    return [
        transition
        if transition.detail is None
        else replace(transition, detail=shown(transition.detail))
        for transition in transitions
    ]


def failures_shown(
    app: Queries, groups: Sequence[FailureGroup], redaction: Redaction
) -> list[FailureGroup]:
    """Failures as they may be shown.

    What varies has been taken out of a group's error, so a hidden value may be left in parts that
    nobody can find any more. With redaction the error of the last job stands for it, redacted.
    """
    if not redaction:
        return list(groups)
    return [replace(group, error=_last_error(app, group, redaction)) for group in groups]


def _last_error(app: Queries, group: FailureGroup, redaction: Redaction) -> str:
    try:
        job = redaction.job(app.get(group.last_job_id))
    except JobNotFound:
        return MARK
    return (job.last_error or MARK).partition("\n")[0]


def _query(filter: Filter, limit: int = 50, before: str | None = None) -> Query:
    """What the store is asked for; raises InvalidInput."""
    if before is not None:
        ids.check_id(before, "$.before")
    count = whole(limit, 1, MAX_LISTED, "$.limit")
    return query_of(filters.checked(filter), limit=count, before=before)
