"""THE STATE MACHINE: every status, every legal transition, and the one rule for retries.

Read `TRANSITIONS` first: it is the whole machine. Two rules explain the rest of this module.

Rule 1: `decide` applies one row of the table to a job. It asks every guard of that row and changes
what the row says. What an event carries (a result, an error, a new lease) is all that it adds.
Rule 2: `follow` applies an event together with the retry that a failure may bring.

Both are pure: the time is an argument, and nothing here reads, writes or waits. The triggers and
constraints of both databases, the reference page, the conflict errors of the API and the model
tests are generated from the same table. The databases cannot check the guards without SQL: they
do not know who is calling, and the statements of the store test times by the store's clock.

The limit: a claim adds 1 to `attempts`, so `max_retries` is the number of attempts in all (0 and 1
both mean one). A failure with no attempt left is permanent. `failed` at rest is final: a failure
that may be tried again passes through `failed` to `pending` in the same transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, StrEnum
from typing import ClassVar

import msgspec
from msgspec.structs import replace

from tenure.errors import IllegalTransition, LeaseLost
from tenure.retry import DEFAULT_POLICY, RetryPolicy, delay

DEFAULT_MAX_RETRIES = 3
MAX_RELEASES = 100
"""How often one job may be released without having run; one more release counts as a failure."""


class Status(StrEnum):
    """The status of a job. `completed`, `failed` and `cancelled` are settled."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


SETTLED = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})


class Guard(Enum):
    """What must be true before a transition, beside the status: in words, and in SQL.

    The SQL is a condition over the rows OLD and NEW. It is empty where a database cannot know.
    """

    LEASE = ("the caller presents the job's current lease", "")
    DUE = ("`run_at` has come and the queue is not paused", "")
    LEASE_OVER = ("`lease_expires_at` has passed, tested again in the same write", "")
    ATTEMPTS_LEFT = ("`attempts < max_retries`", "NEW.attempts < NEW.max_retries")
    RELEASES_LEFT = (
        f"`token - attempts < {MAX_RELEASES}`",
        f"OLD.token - OLD.attempts < {MAX_RELEASES}",
    )

    def __init__(self, words: str, sql: str) -> None:
        self.words = words
        self.sql = sql


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table: a legal transition, its guards, and what it changes."""

    event: str
    source: Status
    target: Status
    caused_by: str
    guards: tuple[Guard, ...] = ()
    attempts: int = 0  # change to `attempts`
    token: int = 0  # change to `token`

    @property
    def ends_attempt(self) -> bool:
        """Whether an attempt ends here and stays charged."""
        return self.source is Status.PROCESSING and self.attempts == 0


P, R, C, F, X = Status
LEASE, DUE, LEASE_OVER, ATTEMPTS_LEFT, RELEASES_LEFT = Guard
TRANSITIONS: tuple[Rule, ...] = (
    Rule("claimed", P, R, "a worker asking for work", (DUE,), attempts=+1, token=+1),
    Rule("completed", R, C, "the lease holder", (LEASE,)),
    Rule("failed", R, F, "the lease holder", (LEASE,)),
    Rule("lease_expired", R, F, "the store's sweep", (LEASE_OVER,)),
    Rule("retried", F, P, "the store, with the failure; or an operator", (ATTEMPTS_LEFT,)),
    Rule("released", R, P, "the lease holder, stopping", (LEASE, RELEASES_LEFT), attempts=-1),
    Rule("cancelled", P, X, "an operator or the application"),
    Rule("cancelled", R, X, "an operator or the application"),
)
FIRST_EVENT = "enqueued"
"""The first ledger entry of every job: it did not exist, and then it was pending."""
STORE = "store"
"""The actor of a retry that comes with the failure itself."""
SWEEP = "sweep"
"""The actor where a lease ran out."""

RULE_OF: Mapping[tuple[str, Status], Rule] = {
    (rule.event, rule.source): rule for rule in TRANSITIONS
}
RELEASE, RETRY = ("released", R), ("retried", F)

EVENTS = tuple(dict.fromkeys((FIRST_EVENT, *(rule.event for rule in TRANSITIONS))))
"""Every event that the ledger can hold, in the order of the table."""
LEASE_ENDS = tuple(dict.fromkeys(rule.event for rule in TRANSITIONS if rule.source is R))
"""Events that can end a lease."""
RUN_ENDS = tuple(dict.fromkeys(rule.event for rule in TRANSITIONS if rule.ends_attempt))
"""Events that can end an attempt. A job can also be cancelled before it runs."""
ATTEMPT_ENDS = tuple(event for event in RUN_ENDS if (event, P) not in RULE_OF)
"""Events that always end an attempt."""
FAILURES = tuple(dict.fromkeys(rule.event for rule in TRANSITIONS if rule.target is F))
"""Events after which an attempt has failed."""


# --- attempts and releases --------------------------------------------------------------------


def has_budget(attempts: int, max_retries: int) -> bool:
    """Whether a job that failed may be tried again. The only such test in Python."""
    return attempts < max_retries


LIMIT_SQL = "(attempts <= max_retries OR attempts <= 1)"
"""No row may ever have been claimed more often than its limit."""

ROOM_SQL = "(status <> 'pending' OR attempts < max_retries OR attempts < 1)"
"""A pending row must have an attempt left, or it could never be claimed."""


def releases_left(attempts: int, token: int) -> bool:
    """Whether a release still returns the job to `pending` without counting as a failure."""
    return token - attempts < MAX_RELEASES


# --- the job and what can happen to it --------------------------------------------------------


class Job(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One job in its current state; each field is a column of its row. Times are UTC.

    It is a struct and not a dataclass because of the speed: jobs are made by the thousand.
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
    attempts: int = 0  # claims that were not released
    token: int = 0  # claims in all: the fencing token, never falls
    started_at: datetime | None = None  # last claim
    finished_at: datetime | None = None  # set if and only if settled
    worker: str | None = None  # who holds it or held it last
    lease_id: str | None = None  # set if and only if processing; a secret of its holder
    lease_expires_at: datetime | None = None  # set if and only if processing
    last_error: str | None = None
    result: str | None = None  # JSON text
    event: str = FIRST_EVENT  # of the last transition
    actor: str | None = None  # who caused it

    def __repr__(self) -> str:
        return f"<job {self.id} {self.type} {self.status} attempt {self.attempts}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A worker takes the job for `lease_seconds`, under a `lease_id` that cannot be guessed."""

    name: ClassVar[str] = "claimed"
    lease_id: str
    lease_seconds: float
    actor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """The lease holder reports that the attempt succeeded."""

    name: ClassVar[str] = "completed"
    lease_id: str
    result: str | None = None
    actor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The lease holder reports that the attempt failed; `retryable=False` makes it final."""

    name: ClassVar[str] = "failed"
    lease_id: str
    error: str
    retryable: bool = True
    actor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """The lease holder returns the job before its handler started."""

    name: ClassVar[str] = "released"
    lease_id: str
    actor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseExpired:
    """The lease ran out before its holder reported."""

    name: ClassVar[str] = "lease_expired"
    actor: str = SWEEP


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """The job runs again after `delay` seconds, with `more_retries` added to its limit."""

    name: ClassVar[str] = "retried"
    delay: float = 0.0
    more_retries: int = 0
    actor: str = STORE


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """An operator or the application stops the job, before it runs or while it runs."""

    name: ClassVar[str] = "cancelled"
    actor: str = "application"


Event = Claimed | Completed | Failed | Released | LeaseExpired | Retried | Cancelled


# --- the rules --------------------------------------------------------------------------------


def legal_events(status: Status) -> tuple[str, ...]:
    """The events that a job in `status` can take, in the order of the table."""
    return tuple(dict.fromkeys(rule.event for rule in TRANSITIONS if rule.source is status))


def decide(job: Job, event: Event, now: datetime) -> Job:
    """Return the job after `event` at `now`.

    Raises LeaseLost if the event needs the job's lease and presents another one, whatever the
    status; IllegalTransition if the table has no such row or a guard of the row refuses.
    """
    if _needs_lease(event.name) and getattr(event, "lease_id", None) != job.lease_id:
        raise LeaseLost(job.id)
    row = (event.name, job.status)
    rule = RULE_OF.get(row)
    if rule is None:
        raise _refused(job, event)
    if reason := _objection(row, job, event, now):
        raise _refused(job, event, reason)
    after = replace(
        job,
        status=rule.target,
        attempts=job.attempts + rule.attempts,
        token=job.token + rule.token,
        lease_id=None,
        lease_expires_at=None,
        finished_at=now if rule.target in SETTLED else None,
        event=event.name,
        actor=event.actor or job.worker,
    )
    match event:
        case Claimed():
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
            return replace(after, last_error=_expiry_error(job))
        case Retried():
            run_at = now + timedelta(seconds=event.delay)
            return replace(after, max_retries=_limit(job, event), run_at=run_at)
        case Released() | Cancelled():
            return after


def follow(job: Job, event: Event, now: datetime) -> tuple[Job, ...]:
    """Return every row that the job passes through when `event` happens; it rests in the last.

    This is the whole retry logic. A failure is followed by a retry while attempts are left, whether
    a worker reported it or a lease ran out, unless the worker called it permanent. A release too
    many is a failure.
    """
    if isinstance(event, Released) and _objection(RELEASE, job, event, now):
        error = f"released more than {MAX_RELEASES} times without having run"
        event = Failed(lease_id=event.lease_id, error=error, actor=event.actor)
    after = decide(job, event, now)
    retryable = isinstance(event, LeaseExpired) or (isinstance(event, Failed) and event.retryable)
    if not retryable or _objection(RETRY, after, event, now):
        return (after,)
    wait = delay(after.backoff, after.id, after.attempts)
    return (after, decide(after, Retried(delay=wait), now))


def retry_in(steps: Sequence[Job]) -> float | None:
    """Return the seconds between a failure and its retry in the rows that `follow` returned."""
    if len(steps) < 2 or steps[0].finished_at is None:
        return None
    return (steps[-1].run_at - steps[0].finished_at).total_seconds()


def _objection(row: tuple[str, Status], job: Job, event: Event, now: datetime) -> str:
    """Why the guards of a row refuse; empty if they do not."""
    guards = RULE_OF[row].guards
    return next((reason for one in guards if (reason := _refusal(one, job, event, now))), "")


def _refusal(guard: Guard, job: Job, event: Event, now: datetime) -> str:
    match guard:
        case Guard.DUE if job.run_at > now:
            return f"it is not due before {job.run_at.isoformat()}"
        case Guard.LEASE_OVER if job.lease_expires_at is not None and job.lease_expires_at > now:
            return "its lease has not run out"
        case Guard.ATTEMPTS_LEFT if not has_budget(job.attempts, _limit(job, event)):
            return f"its {job.attempts} attempts are used up"
        case Guard.RELEASES_LEFT if not releases_left(job.attempts, job.token):
            return f"it was released {MAX_RELEASES} times already"
    return ""  # LEASE is asked first, whatever the status


def _needs_lease(event: str) -> bool:
    return any(rule.event == event and LEASE in rule.guards for rule in TRANSITIONS)


def _limit(job: Job, event: Event) -> int:
    """The limit of attempts after `event`: an operator's retry can raise it."""
    if isinstance(event, Retried) and event.more_retries:
        return max(job.max_retries, job.attempts) + event.more_retries
    return job.max_retries


def _refused(job: Job, event: Event, reason: str = "") -> IllegalTransition:
    return IllegalTransition(job.id, job.status, event.name, legal_events(job.status), reason)


def _expiry_error(job: Job) -> str:
    return (
        f"lease expired: worker {job.worker} did not report attempt {job.attempts} before "
        f"{job.lease_expires_at.isoformat() if job.lease_expires_at else 'its end'}"
    )
