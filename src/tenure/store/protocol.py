"""What a database must do for the store: a small set of set-based statements, and nothing else.

`Database` is called inside one transaction by one thread (the committer's); `Reader` is called by
any thread, outside it. Neither decides anything: guarded writes report which rows they changed, and
`moves.py` asks the lifecycle what to do about the rest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from tenure.jobs.bulk_actions import Bulk
from tenure.jobs.checked_job import CheckedJob
from tenure.jobs.ledger import EventFilter, LedgerPage, Transition
from tenure.jobs.progress import Progress, no_progress
from tenure.jobs.queries import Query
from tenure.jobs.states import QueueState, WorkerState
from tenure.jobs.webhook import Webhook
from tenure.jobs.work import ClaimRequest, Lease, Report
from tenure.lifecycle import Job
from tenure.store.tables.bulk import BulkTable
from tenure.store.tables.stats import Measured, Measures
from tenure.store.tables.tokens import TokenTable
from tenure.store.tables.webhooks import WebhookTable
from tenure.tokens.scopes import AccessToken


class Trouble(StrEnum):
    """What an exception of a database means for the transaction it ended."""

    RETRY = "retry"  # nothing was committed and the same work may succeed now
    UNAVAILABLE = "unavailable"  # the database is away or full; the outcome may be unknown
    UNCONFIRMED = "unconfirmed"  # committed, but perhaps not for good: to try again would hide that
    BUG = "bug"  # the work itself cannot succeed


class Database(Protocol):
    """The writing side: one connection, used by one thread."""

    tokens: TokenTable
    measures: Measures
    bulks: BulkTable
    webhooks: WebhookTable

    def begin(self) -> None:
        """Start a write transaction, connecting first if need be."""

    def commit(self) -> None:
        """Commit; when this returns the transaction is on disk."""

    def rollback(self) -> None:
        """Undo the transaction; never raises, drops the connection if it is broken."""

    def savepoint(self) -> None:
        """Mark a place inside the transaction to come back to."""

    def undo_to_savepoint(self) -> None:
        """Undo everything since the last `savepoint`."""

    def now(self) -> datetime:
        """The store's clock."""

    def insert(self, checked_jobs: Sequence[CheckedJob]) -> Mapping[str, Job]:
        """Add the jobs whose id and key are new; id -> job for exactly those."""

    def insert_alone(self, checked_jobs: Sequence[CheckedJob], *, whole: bool) -> Mapping[str, Job]:
        """Add jobs in a transaction of its own; id -> job for those that were added.

        For databases that are a round trip away: one instead of several. What needs a closer look
        is left out: jobs whose id or key is there already, or (perhaps with others) whose queue has
        a limit. If `whole`, then either all are added or none.
        """

    def known(self, checked_jobs: Sequence[CheckedJob]) -> Mapping[str, tuple[Job, str | None]]:
        """For each addition that is there already, by id or by key: its job and fingerprint."""

    def full_queues(self, wanted: Mapping[str, int]) -> Mapping[str, int]:
        """Of the queues (name -> jobs to add), those whose limit that would pass: name -> limit."""

    def complete(self, reports: Sequence[Report]) -> set[str]:
        """Complete each attempt whose lease is held; the lease ids that were."""

    def claim(self, request: ClaimRequest) -> list[Lease]:
        """Lease due pending jobs of queues that are not paused, most urgent first."""

    def claim_alone(self, request: ClaimRequest) -> list[Lease] | None:
        """`claim` in a transaction of its own, where that takes one round trip; None elsewhere."""

    def keep_traces(self, traces: Sequence[tuple[str, str]]) -> None:
        """Note (job id, traceparent) of jobs that were just added."""

    def traces(self, job_ids: Sequence[str]) -> Mapping[str, str]:
        """Job id -> traceparent, of those that have one."""

    def lock(self, job_ids: Sequence[str]) -> Mapping[str, Job]:
        """Load jobs for changing, locked until the end of the transaction."""

    def lock_expired(self, limit: int) -> list[Job]:
        """Load and lock processing jobs whose lease has run out, oldest first."""

    def save(self, changes: Sequence[tuple[Job, Job]]) -> int:
        """Write (before, after) pairs, each only if the row still is `before`; how many were."""

    def settled_as(self, leases: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], str]:
        """(job id, lease id) -> the event that ended that lease, from the ledger."""

    def renew(self, leases: Sequence[tuple[str, str]], lease_seconds: float) -> set[str]:
        """Extend the leases that are held, never shortening one; the lease ids that are."""

    def see_worker(self, request: ClaimRequest) -> None:
        """Note that a worker asked for jobs."""

    def set_queue(
        self, name: str, *, paused: bool | None, max_pending: int | None, actor: str
    ) -> None:
        """Pause or resume a queue (None: leave it), set its limit (None: leave it, -1: none)."""

    def prune(self, settled_before: Mapping[str, datetime], limit: int) -> int:
        """Delete up to `limit` jobs of a status (key) settled before its time, and their ledger.

        Only jobs whose every move has been measured, so that none is lost to the numbers; the next
        bite is measured first.
        """

    def trouble(self, error: Exception) -> Trouble:
        """What to make of an exception that ended a transaction."""

    def announce(self) -> None:
        """Hint to other processes that there may be work; outside any transaction."""

    def tidy(self) -> None:
        """Housekeeping after a commit (checkpoints); outside any transaction."""

    def close(self) -> None:
        """Close the writing connection."""


class Reader(Protocol):
    """The reading side: safe to call from any thread."""

    measured: Measured

    def get(self, job_id: str) -> Job | None:
        """The job as it stands."""

    def find(self, query: Query) -> list[Job]:
        """The jobs of a query, in its order; it goes as far as that takes, see `search.py`."""

    def find_ids(self, query: Query) -> list[str]:
        """The ids of the same."""

    def count(self, query: Query) -> int:
        """How many `find` would return."""

    def waiting(self, query: Query, most: int) -> int:
        """How many jobs, at most, wait or run as the query's status says.

        Of those that wait, only the query's queue counts.
        """

    def edge(self, query: Query, rows: int) -> str | None:
        """The id of the last of so many rows that a search goes along; None if there are fewer."""

    def history(self, job_id: str) -> list[Transition]:
        """The ledger of one job, oldest first."""

    def ledger(self, after: str, limit: int) -> list[Transition]:
        """Ledger entries after a position, complete and in an order that never changes."""

    def transitions(self, after: str, limit: int, wanted: EventFilter) -> LedgerPage:
        """Read up to `limit` entries after a position, as `ledger` has them: those wanted."""

    def ledger_end(self, back: int = 0) -> str:
        """The position of the newest entry that `ledger` would return, or of one before it.

        Where there are not `back` entries before it, that of the beginning.
        """

    def queues(self) -> list[QueueState]:
        """Every queue with jobs or settings."""

    def late_leases(self) -> int:
        """How many leases have run out and were not yet ended by the sweep."""

    def workers(self) -> list[WorkerState]:
        """Workers seen in the last ten minutes."""

    def tokens(self) -> list[AccessToken]:
        """Every token of the HTTP API there ever was, newest first."""

    def webhooks(self) -> list[Webhook]:
        """Every webhook, in the order of their names."""

    def webhook_target(self, name: str, id: str) -> tuple[str, str] | None:
        """The URL and the secret of a webhook; None if it is gone."""

    def bulk(self, bulk_id: str) -> Bulk | None:
        """An action on all jobs of a filter, as it stands."""

    def bulks(self, limit: int, *, unfinished: bool = False) -> list[Bulk]:
        """Such actions, newest first."""

    def ahead(self, job: Job) -> int:
        """How many due jobs of its queue would be claimed before this due job.

        Counted up to one more than MAX_AHEAD.
        """

    def clock(self) -> datetime:
        """The store's clock."""

    def violations(
        self, limit: int, progress: Progress = no_progress
    ) -> list[tuple[str, str, str]]:
        """Stored facts that break an invariant: (invariant, job id, what was found)."""

    def watch(self, notify: Callable[[], None], stop: threading.Event) -> None:
        """Call `ring` whenever another process may have added work, until `stop` is set."""

    def close(self) -> None:
        """Close the reading connections."""
