"""The values that pass between the application and a store. All frozen, all plain data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from enum import StrEnum
from math import inf
from typing import Any

import msgspec

from tenure.errors import InvalidInput
from tenure.jobs import payload
from tenure.jobs.redaction import MARK
from tenure.lifecycle import DEFAULT_MAX_RETRIES, Job
from tenure.retry import DEFAULT_POLICY, RetryPolicy


class CheckedJob(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A job to be added. The store sets its times: `run_at` if given, else now plus `delay`."""

    id: str
    type: str
    queue: str = "default"
    payload: str = "{}"
    priority: int = 0
    max_retries: int = DEFAULT_MAX_RETRIES
    timeout: float | None = None
    backoff: RetryPolicy = DEFAULT_POLICY
    idempotency_key: str | None = None
    fingerprint: str | None = None  # of the whole request, kept beside the key
    delay: float = 0.0
    run_at: datetime | None = None
    actor: str | None = None
    traceparent: str | None = None  # the span that adds it, where there is one


class Enqueued(msgspec.Struct, frozen=True):
    """The job that an addition made, or (`created` false) the earlier one with the same key."""

    job: Job
    created: bool


class ClaimRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A worker asking for up to `limit` jobs; None for `queues` or `types` means any.

    Deliveries to webhooks are not among "any", see `serves`.
    """

    worker: str
    limit: int
    lease_seconds: float
    queues: tuple[str, ...] | None = None
    types: tuple[str, ...] | None = None
    label: str = ""  # host and pid, for people; never identity
    wait_seconds: float = 0.0  # how long a server may hold the request until there is work
    traces: bool = False  # whether the leases are to tell from which span their jobs were added


class Lease(msgspec.Struct, frozen=True, gc=False):
    """A claimed job, as narrow as a worker can use it."""

    id: str
    type: str
    queue: str
    payload: str
    attempts: int
    max_retries: int
    token: int
    timeout: float | None
    lease_id: str  # a secret of its holder
    lease_expires_at: datetime
    traceparent: str | None = None  # if it was asked for

    def __repr__(self) -> str:
        return f"<lease on {self.id} {self.type} attempt {self.attempts}>"


class Outcome(StrEnum):
    """What a worker can say of an attempt; the names are the lifecycle's events."""

    COMPLETED = "completed"
    FAILED = "failed"
    RELEASED = "released"


class Report(msgspec.Struct, frozen=True, gc=False):
    """What became of one lease."""

    job_id: str
    lease_id: str  # a secret of its holder
    outcome: Outcome
    result: str | None = None  # JSON text, of a completed attempt
    error: str = ""  # of a failed attempt
    retryable: bool = True
    actor: str | None = None

    def __repr__(self) -> str:
        return f"<report on {self.job_id}: {self.outcome}>"


class Answer(StrEnum):
    """What the store did with a report."""

    RECORDED = "recorded"
    ALREADY_RECORDED = "already_recorded"
    CONFLICT = "conflict"
    LOST = "lost"


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """The answer to a report; `recorded` names the outcome on record when it is another one.

    `retry_in`: seconds until the job may run again, where this failure brought a retry.
    """

    answer: Answer
    recorded: str = ""
    retry_in: float | None = None


RECORDED = Verdict(Answer.RECORDED)
ALREADY_RECORDED = Verdict(Answer.ALREADY_RECORDED)


class Exchange(msgspec.Struct, frozen=True):
    """What a worker's turn brought: a verdict per report, in order, and the jobs now leased."""

    verdicts: Sequence[Verdict]
    leases: Sequence[Lease]


@dataclass(frozen=True, slots=True)
class Transition:
    """One entry of the ledger. `position` orders the event stream and resumes it."""

    position: str
    job_id: str
    at: datetime
    source: str | None
    target: str
    event: str
    attempt: int
    token: int
    actor: str | None
    detail: str | None
    lease_id: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Which moves somebody wants to hear of; None for any."""

    types: tuple[str, ...] | None = None
    queues: tuple[str, ...] | None = None
    events: tuple[str, ...] | None = None
    job_id: str | None = None


@dataclass(frozen=True, slots=True)
class LedgerEvent:
    """A move with the type and queue of its job, which the ledger itself does not repeat."""

    transition: Transition
    type: str
    queue: str

    def without_errors(self) -> LedgerEvent:
        """The same without an error, which may hold what is redacted; a job's history shows it."""
        if self.transition.detail is None:
            return self
        return replace(self, transition=replace(self.transition, detail=MARK))


@dataclass(frozen=True, slots=True)
class LedgerPage:
    """A stretch of the ledger: what was wanted of it, and the position up to which it was read."""

    told: Sequence[LedgerEvent]
    position: str
    more: bool  # the stretch was as long as it may be, so there may be more behind it


MAX_AHEAD = 10_000
"""Jobs that go before one, as far as they are counted."""
MAX_SEARCHED_FOR = 200
"""Characters of a text that is searched for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which jobs are meant: those that fit every field that is set."""

    status: str | None = None
    type: str | None = None
    queue: str | None = None
    created_after: datetime | None = None  # by the store's clock; at that time counts
    created_before: datetime | None = None  # at that time does not
    error: str | None = None  # stands in the last error; A to Z and a to z are the same
    text: str | None = None  # stands in the payload's JSON; likewise
    hidden: tuple[str, ...] = ()  # keys whose values `error` and `text` do not find


@dataclass(frozen=True, slots=True, kw_only=True)
class Query(Filter):
    """What a store is asked for: jobs of a filter in the order of their ids, newest first.

    `before` and `after` are ids that are left out, `through` is the last one to look at.
    """

    limit: int = 50
    before: str | None = None
    after: str | None = None
    through: str | None = None
    oldest_first: bool = False
    most: int | None = None  # rows up to `through`, where that is set
    gather: bool = False  # those of the status are few: read them all, and sort
    among: tuple[str, ...] = ()  # statuses, any of which will do
    created_by: datetime | None = None  # at that time counts
    settled_by: datetime | None = None  # likewise


def query_of(filter: Filter, **more: Any) -> Query:
    """The query for the jobs of a filter."""
    return Query(**{each.name: getattr(filter, each.name) for each in fields(Filter)}, **more)


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs of a filter, and where to go on: the `before` of the next page, None at the end.

    `searched_all` is false if there may be more than were found, because the search stopped after
    as many rows as one call looks at.
    """

    jobs: Sequence[Job]
    next: str | None
    searched_all: bool


@dataclass(frozen=True, slots=True)
class Counted:
    """How many jobs fit a filter; at least so many if it is not `exact`."""

    jobs: int
    exact: bool


class Action(StrEnum):
    """What can be done to all jobs of a filter."""

    RETRY = "retry"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bulk:
    """An action on all jobs that fitted a filter when it was started."""

    id: str
    action: Action
    filter: Filter
    more_retries: int
    actor: str
    created_at: datetime
    finished_at: datetime | None
    stopped_by: str | None  # who ended it early
    total: int  # jobs that fitted when it was started
    exact: bool  # else it was at least so many
    changed: int
    refused: int  # somebody else was faster, or they are gone
    batches: int = field(default=0, repr=False)  # transactions so far
    cursor: str | None = field(default=None, repr=False)  # the last id it has been at

    @property
    def examined(self) -> int:
        """Jobs it has been at."""
        return self.changed + self.refused

    @property
    def signature(self) -> str:
        """The actor in the ledger of every job it changes."""
        return f"{self.actor} (bulk {self.id})"


@dataclass(frozen=True, slots=True)
class Count:
    """How many jobs stand in one status of one queue and type."""

    status: str
    queue: str
    type: str
    jobs: int


BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, inf)
"""Upper bounds, in seconds, of the classes that waiting and run times are counted in."""


@dataclass(frozen=True, slots=True)
class Total:
    """The moves of one event in one queue and type since the beginning, and how long they took.

    `seconds` and `buckets` are of waiting (due until claimed) for `claimed`, and of running for
    `completed`, `failed`, `lease_expired` and those `cancelled` while running. `buckets` counts the
    times up to each of `BUCKETS` and above the one before it; a move whose time is not known any
    more is in none of them, so that their sum may be less than `moves`.
    """

    type: str
    queue: str
    event: str
    transitions: int
    seconds: float
    buckets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Activity:
    """The same for one minute, which begins at `minute`."""

    minute: datetime
    type: str
    queue: str
    event: str
    transitions: int
    seconds: float
    buckets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Attempts of one type that failed alike: `error` is the first line, what varies left out."""

    type: str
    error: str
    attempts: int
    first_seen_at: datetime
    last_seen_at: datetime
    last_job_id: str  # which retention may have deleted since


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue's settings and what waits in it; `oldest_due_at` is the longest-waiting due job's."""

    name: str
    paused_at: datetime | None
    max_pending: int | None
    pending: int
    processing: int
    oldest_due_at: datetime | None


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker that asked for jobs lately."""

    id: str
    label: str
    queues: tuple[str, ...] | None
    types: tuple[str, ...] | None
    seen_at: datetime
    leases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """All that a monitoring system asks for, as the database has it."""

    now: datetime
    counts: Sequence[Count]
    queues: Sequence[QueueState]
    workers: int
    late_leases: int
    totals: Sequence[Total]
    measured_until: datetime | None


@dataclass(frozen=True, slots=True)
class Violation:
    """A stored fact that breaks an invariant; `advice` says what that means and what to do.

    `job_id` is empty where no single job is concerned.
    """

    invariant: str
    job_id: str
    found: str
    advice: str


WEBHOOK = "tenure.webhook"
"""The type of the jobs that deliver moves to webhooks. Nobody else may add any: they are signed."""
WEBHOOK_QUEUE = "tenure.webhooks"
"""The queue of those jobs, and of no others."""


def serves(queues: Collection[str] | None, queue: str) -> bool:
    """Whether who asks for jobs of `queues`, None for any, is handed those of `queue`.

    Deliveries go only to who asks for their queue by name: nobody else knows how to run them.
    """
    return queue != WEBHOOK_QUEUE if queues is None else queue in queues


def check_open(queue: str, path: str) -> str:
    """`queue` if users may put jobs into it and take jobs from it; raises InvalidInput."""
    if queue == WEBHOOK_QUEUE:
        raise InvalidInput(
            f"the queue {WEBHOOK_QUEUE} is that of deliveries to webhooks, which every server and "
            "every worker beside the database runs by itself: name other queues",
            path=path,
        )
    return queue


def check_queues(queues: Iterable[str] | None, path: str) -> tuple[str, ...] | None:
    """The queues that a worker of users may take from, None for any; raises InvalidInput."""
    if queues is None:
        return None
    names = payload.several(queues, path)
    return tuple(check_open(payload.check_name(name, "queue", path), path) for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Who is told of moves, and of which; None for any. Its secret is never part of this."""

    name: str
    id: str  # a name can come back
    url: str
    events: tuple[str, ...]
    types: tuple[str, ...] | None
    queues: tuple[str, ...] | None
    created_at: datetime
    created_by: str
    position: str  # up to where in the ledger its deliveries have been added


class Health(StrEnum):
    """What a check found: as it should be, worth knowing, or in need of repair."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that `tenure doctor` looked at; `advice` says what a fault means and what to do."""

    name: str
    health: Health
    found: str
    advice: str = ""


# --- how far long work has come ---------------------------------------------------------------

Progress = Callable[[int, int | None, str], None]
"""Called now and then: how much is done, of how much (None: nobody knows), and what is done now."""


def no_progress(done: int, total: int | None, doing: str) -> None:
    """For those who do not want to know."""
