"""What workers and the store exchange: claims, leases, reports, verdicts, duties."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol, TypeAlias

import msgspec

from tenure.errors import TenureError
from tenure.jobs.follow_ups import FollowUp, FollowUps
from tenure.jobs.postpone import Pause, Wait
from tenure.jobs.progress import JobProgress
from tenure.jobs.retention import DeclaredType
from tenure.jobs.steps import Notes, StepCall


class ClaimRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's request for up to `limit` jobs; None for `queues` or `types` means any.

    Any queue does not include those whose names begin with `tenure.`; see `names.serves`.
    """

    worker: str
    limit: int
    lease_seconds: float
    queues: tuple[str, ...] | None = None
    types: tuple[str, ...] | None = None
    label: str = ""  # host and pid, to be shown; never an identity
    free: int | None = None  # of a queue with limits it gets no more: so many can start at once
    slots: int | None = None  # how many jobs the worker runs at once, to be shown
    version: str | None = None  # of its program, to be shown
    stopping: bool = False  # it finishes its jobs and asks for no more
    wait_seconds: float = 0.0  # how long a server may wait for work
    traces: bool = False  # whether leases name the span that added their jobs
    leaves: bool = False  # the worker ends: it gets nothing and is no longer listed
    next_due: bool = False  # whether to say when the next job falls due, if there is none now


MAX_BYTES = 8 * 1024 * 1024
"""Payloads and results, in bytes, after which a page or a claim ends: each job may have 1 MiB."""


HeldLeases: TypeAlias = Sequence[tuple[str, str]]
"""The job id and the lease id of each."""

ALONE_AFTER = ("lease expired", "the child process ")
"""How the last error begins of a job that may have ended its worker, or would have. `lifecycle` and
`worker.processes` write these errors, and the function `claim` on PostgreSQL looks for them."""


class Lease(msgspec.Struct, frozen=True, gc=False):
    """A claimed job: what a worker needs to run it."""

    id: str
    type: str
    queue: str
    payload: str
    attempts: int
    max_retries: int
    token: int
    timeout: float | None
    lease_id: str  # known to its holder only
    lease_expires_at: datetime
    traceparent: str | None = None  # if the claim asked for it
    alone: bool = False  # in a child process: the attempt before may have ended its worker

    def __repr__(self) -> str:
        return f"<lease on {self.id} {self.type} attempt {self.attempts}>"


def is_full(leases: Sequence[Lease]) -> bool:
    """Whether leases have as many bytes as one claim may, so that there may be more jobs."""
    return sum(len(lease.payload.encode()) for lease in leases) >= MAX_BYTES


class Outcome(StrEnum):
    """How a worker reports the end of an attempt; the names are events of the lifecycle."""

    COMPLETED = "completed"
    FAILED = "failed"
    RELEASED = "released"  # its handler did not start
    INTERRUPTED = "interrupted"  # its handler started, and the worker stops
    SNOOZED = "snoozed"  # its handler wants to run again later
    SUSPENDED = "suspended"  # its handler waits for a signal


class Report(msgspec.Struct, frozen=True, gc=False):
    """The outcome of one lease, as its worker reports it."""

    job_id: str
    lease_id: str  # known to its holder only
    outcome: Outcome
    result: str | None = None  # JSON text, of a completed attempt
    error: str = ""  # of a failed attempt
    retryable: bool = True
    actor: str | None = None
    delay: float | None = None  # seconds: of a snooze, or until the retry of a failure
    notes: Notes | None = None  # what its handler has said that is not stored yet
    pause: Pause | None = None  # what waits as long as a job that is snoozed
    uncertain: bool = False  # a transaction of its handler may complete the job, or have it locked
    wait: Wait | None = None  # for what a job that is suspended waits
    jobs: Sequence[FollowUp] | TenureError | None = None
    """Jobs to add with a completion, or why they cannot be: made by `FollowUps.signed`."""

    def __repr__(self) -> str:
        return f"<report on {self.job_id}: {self.outcome}>"


def adds_jobs(reports: Sequence[Report]) -> bool:
    """Whether one of these adds jobs: who never does pays for one test per batch."""
    return FollowUps.in_use and any(report.jobs is not None for report in reports)


class Answer(StrEnum):
    """What the store did with a report: `lost` means that the lease was not held any more.

    `busy`: send the report again. Another transaction has the job locked, or the database failed
    after the claim of the same exchange.
    """

    RECORDED = "recorded"
    ALREADY_RECORDED = "already_recorded"
    CONFLICT = "conflict"
    LOST = "lost"
    BUSY = "busy"


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """The answer to a report. `recorded` names the outcome on record if it differs.

    `retry_in`: seconds until the job may run again, if this failure led to a retry. `error`: why an
    attempt that completed has failed: a job that its report adds was refused.
    """

    answer: Answer
    recorded: str = ""
    retry_in: float | None = None
    error: str = ""


RECORDED = Verdict(Answer.RECORDED)
ALREADY_RECORDED = Verdict(Answer.ALREADY_RECORDED)


class Exchange(msgspec.Struct, frozen=True):
    """The answer to a worker: a verdict for each report, in order, and the leases it claimed."""

    verdicts: Sequence[Verdict]
    leases: Sequence[Lease]
    next_due: float | None = None
    """Seconds for which only a notification can bring the next job, if that is known."""


class Duty(StrEnum):
    """What is to be done regularly beside a database, if there is work for it."""

    LEASES = "leases"  # some have run out
    WORKFLOWS = "workflows"  # some are not known to be finished
    STARTS = "starts"  # some jobs had to start before now
    WAITS = "waits"  # some waits for a signal have expired
    SCHEDULES = "schedules"  # some are due, or soon
    DEPENDENCIES = "dependencies"  # jobs that wait are to be counted, skipped or restored
    BULKS = "bulks"  # a bulk action has not ended
    TRANSITIONS = "transitions"  # some are not in the statistics
    WEBHOOKS = "webhooks"  # there are some
    THROTTLES = "throttles"  # the time of some is over
    RETENTION = "retention"  # types or queues have rules
    DELIVERIES = "deliveries"  # some are pending, perhaps to webhooks that were removed


class WorkSource(Protocol):
    """Where a worker's jobs come from: the database beside it, or a `Client` of a server."""

    @property
    def waits(self) -> bool:
        """Whether a claim may be held until there is work (a long poll)."""

    @property
    def exchanges(self) -> int:
        """How many exchanges at once keep the source busy, where claims are not held."""

    @property
    def database(self) -> str | None:
        """The URL of the database where the jobs are; None if only a server knows."""

    def declare(self, options: Mapping[str, DeclaredType]) -> None:
        """Make the options of types known, by name, to programs that do not have the handlers."""

    def exchange(self, reports: Sequence[Report], claim: ClaimRequest | None) -> Future[Exchange]:
        """Record reports, then lease jobs."""

    def heartbeat(self, leases: HeldLeases, lease_seconds: float) -> Mapping[str, str]:
        """Extend (job id, lease id) leases; return by lease id which event ended the others.

        Called on any thread.
        """

    def record_progress(self, entries: Sequence[tuple[str, str, JobProgress]]) -> object:
        """Store how far (job id, lease id) attempts have come, of those still held. Any thread."""

    def ask(self, job_id: str, lease_id: str, call: StepCall) -> Future[Any]:
        """Return what an attempt asks for, as `StepSource.ask`. Called on any thread."""

    def on_work(self, notify: Callable[[], None]) -> Callable[[], None]:
        """Call `notify`, from any thread, when there may be work; return what ends this."""

    def on_end(self, worker: str, notify: Callable[[], None]) -> Callable[[], None]:
        """Call `notify`, from any thread, when leases of a worker may have ended; likewise."""
