"""THE STATE MACHINE. Every status, every legal move, and the one rule for retries.

Read `TRANSITIONS` first: it is the whole machine. `decide` applies one move to a job, `follow`
applies an
event together with the retry it may bring. Both are pure: the time is an argument, and nothing here
reads, writes, waits or draws lots. The databases' triggers, the state diagram in the docs, the
API's conflict errors and the model tests are all derived from this table.

The limit: `attempts` is charged when a job is claimed, so `max_retries` is the number of attempts
in all (0 and 1 both mean one). A failure with no budget left is permanent. `failed` at rest is
final: a failure that may be tried again passes through it to `pending` in the same transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import ClassVar

import msgspec
from msgspec.structs import replace

from tenure.errors import IllegalTransition, LeaseLost
from tenure.retry import DEFAULT_POLICY, RetryPolicy, delay

DEFAULT_MAX_RETRIES = 3
MAX_RELEASES = 100
"""How often one job may be handed back unrun; then handing it back counts as a failure."""


class Status(StrEnum):
    """Where a job stands. `completed`, `failed` and `cancelled` are settled."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


SETTLED = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})


@dataclass(frozen=True, slots=True)
class Rule:
    """One legal move: what it changes beside the status, and what must be true before it."""

    event: str
    source: Status
    target: Status
    caused_by: str
    attempts: int = 0  # change to `attempts`
    token: int = 0  # change to `token`
    holder_only: bool = False  # the caller must present the job's current lease
    budget: bool = False  # attempts must be left, see `has_budget`


P, R, C, F, X = Status
TRANSITIONS: tuple[Rule, ...] = (
    Rule("claimed", P, R, "a worker asking for work", attempts=+1, token=+1),
    Rule("completed", R, C, "the lease holder", holder_only=True),
    Rule("failed", R, F, "the lease holder", holder_only=True),
    Rule("lease_expired", R, F, "the store's sweep"),
    Rule("retried", F, P, "the store, with the failure; or an operator", budget=True),
    Rule("released", R, P, "the lease holder, shutting down", attempts=-1, holder_only=True),
    Rule("cancelled", P, X, "an operator or the application"),
    Rule("cancelled", R, X, "an operator or the application"),
)
FIRST_EVENT = "enqueued"
"""The ledger's first entry of every job: it did not exist, and then it was pending."""
STORE = "store"
"""The actor of a retry that comes with the failure itself."""
SWEEP = "sweep"
"""The actor where a lease ran out."""
EVENTS = frozenset({FIRST_EVENT, *(transition.event for transition in TRANSITIONS)})
"""Everything that the ledger can tell of a job."""

RULE_OF: Mapping[tuple[str, Status], Rule] = {(m.event, m.source): m for m in TRANSITIONS}


# --- the retry budget: one rule, once for Python and once for the databases ------------------


def has_budget(attempts: int, max_retries: int) -> bool:
    """Whether a job that failed may be tried again. The only such test in the project."""
    return attempts < max_retries


def budget_sql(row: str) -> str:
    """`has_budget` as SQL over the columns of `row` (a table name, `OLD` or `NEW`)."""
    return f"{row}.attempts < {row}.max_retries"


LIMIT_SQL = "(attempts <= max_retries OR attempts <= 1)"
"""No row may ever have been claimed more often than its limit."""

ROOM_SQL = "(status <> 'pending' OR attempts < max_retries OR attempts < 1)"
"""A pending row must have an attempt left, or it could never be claimed."""


def releases_left(attempts: int, token: int) -> bool:
    """Whether an unrun job may be handed back once more without it counting as a failure."""
    return token - attempts < MAX_RELEASES


# --- the job and what can happen to it --------------------------------------------------------


class Job(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One job as it stands; field for field the row of the store. Times are UTC.

    A struct and not a dataclass for its speed: jobs are made and changed by the thousand.
    """

    id: str
    type: str
    queue: str = "default"
    payload: str = "{}"  # canonical JSON text of an object
    priority: int = 0  # smaller runs first
    max_retries: int = DEFAULT_MAX_RETRIES
    timeout: float | None = None  # seconds one attempt may run
    backoff: RetryPolicy = DEFAULT_POLICY
    idempotency_key: str | None = None
    created_at: datetime
    run_at: datetime  # not claimed before
    status: Status = Status.PENDING
    attempts: int = 0  # claims that were not handed back
    token: int = 0  # claims in all: the fencing token, never falls
    started_at: datetime | None = None  # last claim
    finished_at: datetime | None = None  # set if and only if settled
    worker: str | None = None  # who holds it or held it last
    lease_id: str | None = None  # set if and only if processing; a secret of its holder
    lease_expires_at: datetime | None = None  # set if and only if processing
    last_error: str | None = None
    result: str | None = None  # JSON text
    event: str = FIRST_EVENT  # the last move
    actor: str | None = None  # who caused it

    def __repr__(self) -> str:
        return f"<job {self.id} {self.type} {self.status} attempt {self.attempts}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A worker takes the job for `lease_seconds`, under a `lease_id` nobody can guess."""

    name: ClassVar[str] = "claimed"
    lease_id: str
    lease_seconds: float
    actor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """The lease holder says that the attempt succeeded."""

    name: ClassVar[str] = "completed"
    lease_id: str
    result: str | None = None
    actor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The lease holder says that the attempt failed; `retryable=False` makes it final at once."""

    name: ClassVar[str] = "failed"
    lease_id: str
    error: str
    retryable: bool = True
    actor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """The lease holder hands the job back unrun."""

    name: ClassVar[str] = "released"
    lease_id: str
    actor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseExpired:
    """The lease ran out and nobody reported."""

    name: ClassVar[str] = "lease_expired"
    actor: str = SWEEP


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """The job is to run again: after `delay` seconds, with `more_retries` added to its limit."""

    name: ClassVar[str] = "retried"
    delay: float = 0.0
    more_retries: int = 0
    actor: str = STORE


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """Somebody wants the job not to run, or not to go on running."""

    name: ClassVar[str] = "cancelled"
    actor: str = "application"


Event = Claimed | Completed | Failed | Released | LeaseExpired | Retried | Cancelled


# --- the rules --------------------------------------------------------------------------------


def legal_events(status: Status) -> tuple[str, ...]:
    """The events that a job in `status` can take, in the order of the table."""
    return tuple(
        dict.fromkeys(transition.event for transition in TRANSITIONS if transition.source is status)
    )


def decide(job: Job, event: Event, now: datetime) -> Job:
    """Return the job as it stands after `event` at `now`.

    Raises IllegalTransition if the table or a guard forbids it, LeaseLost if the event presents a
    lease that is not the job's.
    """
    transition = RULE_OF.get((event.name, job.status))
    lease_id = getattr(event, "lease_id", None)
    if isinstance(event, Completed | Failed | Released) and lease_id != job.lease_id:
        raise LeaseLost(job.id)
    if transition is None:
        raise _refused(job, event)
    after = replace(
        job,
        status=transition.target,
        attempts=job.attempts + transition.attempts,
        token=job.token + transition.token,
        lease_id=None,
        lease_expires_at=None,
        finished_at=now if transition.target in SETTLED else None,
        event=event.name,
        actor=event.actor or job.worker,
    )
    match event:
        case Claimed():
            if job.run_at > now:
                raise _refused(job, event, f"not due before {job.run_at.isoformat()}")
            return replace(
                after,
                started_at=now,
                worker=event.actor,
                lease_id=event.lease_id,
                lease_expires_at=now + timedelta(seconds=event.lease_seconds),
            )
        case Completed():
            return replace(after, result=event.result)
        case Failed():
            return replace(after, last_error=event.error)
        case LeaseExpired():
            if job.lease_expires_at is not None and job.lease_expires_at > now:
                raise _refused(job, event, "its lease still runs")
            return replace(after, last_error=_expiry_error(job))
        case Released():
            if not releases_left(job.attempts, job.token):
                raise _refused(job, event, f"handed back {MAX_RELEASES} times already")
            return after
        case Retried():
            limit = job.max_retries
            if event.more_retries:
                limit = max(limit, job.attempts) + event.more_retries
            if not has_budget(job.attempts, limit):
                raise _refused(job, event, f"its {job.attempts} attempts are used up")
            return replace(after, max_retries=limit, run_at=now + timedelta(seconds=event.delay))
        case Cancelled():
            return after


def follow(job: Job, event: Event, now: datetime) -> tuple[Job, ...]:
    """Every row the job passes through when `event` happens; the last one is where it rests.

    This is the whole retry logic. A failure, whether a worker reported it or a lease ran out, is
    followed by a retry while the budget lasts and the handler did not call it permanent. A job
    handed back too often fails.
    """
    if isinstance(event, Released) and not releases_left(job.attempts, job.token):
        error = f"handed back unrun more than {MAX_RELEASES} times"
        event = Failed(lease_id=event.lease_id, error=error, actor=event.actor)
    after = decide(job, event, now)
    retryable = isinstance(event, LeaseExpired) or (isinstance(event, Failed) and event.retryable)
    if not retryable or not has_budget(after.attempts, after.max_retries):
        return (after,)
    wait = delay(after.backoff, after.id, after.attempts)
    return (after, decide(after, Retried(delay=wait), now))


def retry_in(steps: Sequence[Job]) -> float | None:
    """Return the seconds between a failure and its retry in the rows that `follow` returned."""
    if len(steps) < 2 or steps[0].finished_at is None:
        return None
    return (steps[-1].run_at - steps[0].finished_at).total_seconds()


def _refused(job: Job, event: Event, reason: str = "") -> IllegalTransition:
    return IllegalTransition(job.id, job.status, event.name, legal_events(job.status), reason)


def _expiry_error(job: Job) -> str:
    return (
        f"lease expired: worker {job.worker} did not report attempt {job.attempts} before "
        f"{job.lease_expires_at.isoformat() if job.lease_expires_at else 'its end'}"
    )
