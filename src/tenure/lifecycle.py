"""THE STATE MACHINE: every status, every legal transition, and the one rule for retries.

Read `TRANSITIONS` first: it is the whole machine. Two rules explain the rest of this module.
Rule 1: `decide` applies one row of the table to a job. It asks every guard of that row and changes
what the row says. What an event carries (a result, an error, a new lease) is all that it adds.
Rule 2: `follow` applies an event together with the retry that a failure may bring.
Both are pure: the time is an argument, and nothing here reads, writes or waits. The triggers and
constraints of both databases, the reference page, the conflict errors of the API and the model
tests come from the same table. The databases cannot check the guards without SQL.

The limit: a claim adds 1 to `attempts`, so `max_retries` is the number of attempts in all (0 and 1
both mean one). A failure with no attempt left is permanent. `failed` at rest is final: a failure
that may be tried again passes through `failed` to `pending` in the same transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import Enum, StrEnum

from msgspec import Struct
from msgspec.structs import replace

from tenure import events
from tenure.errors import IllegalTransition, LeaseLost
from tenure.events import Event, Return
from tenure.retry import DEFAULT_POLICY, RetryPolicy, delay
from tenure.texts import TEXT_FIELDS, Texts

DEFAULT_MAX_RETRIES = 10
MAX_RETURNS = 100
"""How often one job may be released or interrupted; one more counts as a failure."""
MAX_SNOOZES = 10_000
"""How often one job may be snoozed or suspended; one more counts as a failure."""


class Status(StrEnum):
    """The status of a job. `completed`, `failed` and `cancelled` are settled.

    `waiting` is for something else that has to happen first, never for a time alone.
    """

    WAITING = "waiting"
    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


SETTLED = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})


class Guard(Enum):
    """What must be true before a transition, beside the status: in words, and in SQL.

    The SQL is a condition over OLD and NEW, never NULL; empty where a database cannot know,
    or where `room_sql` says it of every row.
    """

    LEASE = ("the caller presents the job's current lease", "")
    DUE = ("`run_at` has come and the queue is not paused", "")
    IN_TIME = (
        "`start_by` has not passed",
        "coalesce(NEW.started_at < OLD.start_by, OLD.start_by IS NULL)",
    )
    LATE = ("`start_by` has passed", "coalesce(NEW.finished_at >= OLD.start_by, false)")
    LEASE_OVER = ("`lease_expires_at` has passed, tested again in the same write", "")
    ATTEMPTS_LEFT = ("`attempts < max_retries`", "(NEW.attempts < NEW.max_retries)")
    RETURNS_LEFT = (
        f"`token - attempts - snoozes < {MAX_RETURNS}`",
        f"OLD.token - OLD.attempts - coalesce(OLD.snoozes, 0) < {MAX_RETURNS}",
    )
    SNOOZES_LEFT = (f"`snoozes < {MAX_SNOOZES}`", f"coalesce(OLD.snoozes, 0) < {MAX_SNOOZES}")
    NEEDS = ("`need >= 1`", "coalesce(NEW.need, 0) >= 1")
    NEEDS_NOTHING = ("`need <= 0`", "coalesce(NEW.need, 0) <= 0")
    HOPELESS = ("`spare < 0`", "coalesce(NEW.spare, 0) < 0")
    WAS_SKIPPED = ("the last event was `skipped`", "OLD.event = 'skipped'")
    UNTRIED_PAYLOAD = (
        "`payload` only while `token = 0`",
        "(OLD.token = 0 OR NEW.payload = OLD.payload)",
    )

    ROOM_LEFT = ("`attempts < max_retries`, or no attempt was made", "")

    def __init__(self, words: str, sql: str) -> None:
        self.words = words
        self.sql = sql


class Rule(Struct, frozen=True):
    """One row of the table: a legal transition, its guards, and what it changes.

    A change in SQL that names none of the events between two statuses is the first of them.
    """

    event: str
    source: Status
    target: Status
    caused_by: str
    guards: tuple[Guard, ...] = ()
    attempts: int = 0  # change to `attempts`
    token: int = 0  # change to `token`
    snoozes: int = 0  # change to `snoozes`
    sets: tuple[str, ...] = ()  # columns that only some transitions may change

    @property
    def ends_attempt(self) -> bool:
        """Whether an attempt ends here and stays charged."""
        return self.source is Status.PROCESSING and self.attempts == 0


AMENDABLE = ("payload", "priority", "run_at", "max_retries", "timeout", "backoff")
W, P, R, C, F, X = Status
LEASE, DUE, IN_TIME, LATE, LEASE_OVER, ATTEMPTS_LEFT, RETURNS_LEFT, SNOOZES_LEFT = tuple(Guard)[:8]
NEEDS, NEEDS_NOTHING, HOPELESS, WAS_SKIPPED, UNTRIED_PAYLOAD, ROOM_LEFT = tuple(Guard)[8:]
HOLDER, OPERATOR = "the lease holder", "an operator or the application"
# fmt: off
TRANSITIONS: tuple[Rule, ...] = (
    Rule("claimed", P, R, "a worker asking for work", (DUE, IN_TIME), attempts=+1, token=+1),
    Rule("completed", R, C, HOLDER, (LEASE,)),
    Rule("failed", R, F, HOLDER, (LEASE,)),
    Rule("gave_up", R, F, f"{HOLDER}: trying again cannot help", (LEASE,)),
    Rule("lease_expired", R, F, "the store's sweep", (LEASE_OVER,)),
    Rule("retried", F, P, "the store, with the failure; or an operator", (ATTEMPTS_LEFT,),
         sets=("run_at", "max_retries")),
    Rule("released", R, P, f"{HOLDER}, before the handler started", (LEASE, RETURNS_LEFT),
         attempts=-1),
    Rule("interrupted", R, P, f"{HOLDER}, stopping", (LEASE, RETURNS_LEFT), attempts=-1),
    Rule("snoozed", R, P, HOLDER, (LEASE, SNOOZES_LEFT), attempts=-1, snoozes=+1,
         sets=("run_at",)),
    Rule("suspended", R, W, f"{HOLDER}, until a signal comes", (LEASE, SNOOZES_LEFT, NEEDS),
         attempts=-1, snoozes=+1, sets=("need", "spare")),
    Rule("unblocked", W, P, "the store, with what it waited for; or an operator",
         (NEEDS_NOTHING,), sets=("run_at", "need", "spare")),
    Rule("amended", P, P, f"{OPERATOR}; or the sweep", (UNTRIED_PAYLOAD, ROOM_LEFT),
         sets=AMENDABLE),
    Rule("cancelled", W, X, OPERATOR),
    Rule("cancelled", P, X, OPERATOR),
    Rule("cancelled", R, X, OPERATOR),
    Rule("skipped", W, X, "the store: what it waits for cannot come", (HOPELESS,),
         sets=("need", "spare")),
    Rule("restored", X, W, "the store, with the retry of what had stopped it",
         (WAS_SKIPPED, NEEDS), sets=("need", "spare")),
    Rule("expired", W, X, "the store's sweep", (LATE,)),
    Rule("expired", P, X, "the store's sweep", (LATE,)),
)
# fmt: on
FIRST_EVENT = "enqueued"
"""The first ledger entry of every job: it did not exist, and then it was pending or waiting."""
ENTRANCES: Mapping[Status, tuple[Guard, ...]] = {P: (), W: (NEEDS,)}
"""The statuses in which a job may enter, and what must be true of it."""

RULE_OF: Mapping[tuple[str, Status], Rule] = {
    (rule.event, rule.source): rule for rule in TRANSITIONS
}
NEED_LEASE = frozenset(rule.event for rule in TRANSITIONS if LEASE in rule.guards)
"""Events that need the job's lease."""
RETRY = ("retried", F)
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
FINAL_FAILURE = "gave_up"
"""The failure that is not tried again whatever the limit."""


def has_budget(attempts: int, max_retries: int) -> bool:
    """Whether a job that failed may be tried again. The only such test in Python."""
    return attempts < max_retries


def limit_sql(row: str = "") -> str:
    """The condition that a row has not been claimed more often than its limit."""
    return f"({row}attempts <= {row}max_retries OR {row}attempts <= 1)"


def room_sql(row: str = "") -> str:
    """The condition that a row that is still to run has an attempt left."""
    left = f"{row}attempts < {row}max_retries OR {row}attempts < 1"
    return f"({row}status NOT IN ('{W}', '{P}') OR {left})"


def rest_sql(row: str = "") -> str:
    """The condition that a row is settled, and that no retry takes it back."""
    final = f"{row}event = '{FINAL_FAILURE}' OR NOT {ATTEMPTS_LEFT.sql.replace('NEW.', row)}"
    return f"({row}status IN ('{C}', '{X}') OR ({row}status = '{F}' AND ({final})))"


def holds_sql(row: str = "") -> str:
    """The condition that a row with a unique key holds it: until it rests, or is claimed."""
    return f"(({row}unique_until = 'settled' OR {row}token = 0) AND NOT {rest_sql(row)})"


def at_rest(job: Job) -> bool:
    """Whether the job is settled, and no retry is on its way: `rest_sql` in Python."""
    if job.status is F:
        return job.event == FINAL_FAILURE or not has_budget(job.attempts, job.max_retries)
    return job.status in SETTLED


class Job(Texts, frozen=True, kw_only=True):
    """One job in its current state; each field is a column of its row. Times are UTC."""

    id: str
    type: str
    queue: str = "default"
    priority: int = 0  # smaller runs first
    max_retries: int = DEFAULT_MAX_RETRIES
    timeout: float | None = None  # seconds one attempt may run
    backoff: RetryPolicy = DEFAULT_POLICY
    idempotency_key: str | None = None
    tags: tuple[str, ...] = ()
    again_of: str | None = None  # the job that it runs again
    partition: str | None = None  # what divides its queue, such as a tenant
    workflow: str | None = None  # the id of the workflow that it belongs to
    created_at: datetime
    run_at: datetime  # not claimed before
    status: Status = Status.PENDING
    attempts: int = 0  # claims that were neither returned nor snoozed
    token: int = 0  # claims in all: the fencing token, never falls
    snoozes: int = 0  # how often it was snoozed or suspended
    need: int | None = None  # what must still come before it can run
    spare: int | None = None  # how much of what it waits for may fail to come
    start_by: datetime | None = None  # not claimed from then on
    started_at: datetime | None = None  # last claim
    finished_at: datetime | None = None  # set if and only if settled
    worker: str | None = None  # who holds it or held it last
    lease_id: str | None = None  # set if and only if processing; a secret of its holder
    lease_expires_at: datetime | None = None  # set if and only if processing
    last_error: str | None = None
    event: str = FIRST_EVENT  # of the last transition
    actor: str | None = None  # who caused it
    reason: str | None = None  # of the last transition that can have one

    def __repr__(self) -> str:
        return f"<job {self.id} {self.type} {self.status} attempt {self.attempts}>"


def legal_events(status: Status, last: str = FIRST_EVENT) -> tuple[str, ...]:
    """The events that a job in `status` can take after its `last`, in the order of the table."""
    rules = [rule for rule in TRANSITIONS if rule.source is status]
    if last != "skipped":
        rules = [rule for rule in rules if WAS_SKIPPED not in rule.guards]
    return tuple(dict.fromkeys(rule.event for rule in rules))


def decide(job: Job, event: Event, now: datetime) -> Job:
    """Return the job after `event` at `now`.

    Raises LeaseLost if the event needs the job's lease and presents another one, whatever the
    status; IllegalTransition if the table has no such row or a guard of the row refuses.
    """
    if event.name in NEED_LEASE and getattr(event, "lease_id", None) != job.lease_id:
        raise LeaseLost(job.id)
    row = (event.name, job.status)
    rule = RULE_OF.get(row)
    if rule is None:
        raise _refused(job, event)
    for guard in rule.guards:
        if guard is not LEASE and (reason := _refusal(guard, job, event, now)):
            raise _refused(job, event, reason)
    after = replace(
        job,
        status=rule.target,
        attempts=job.attempts + rule.attempts,
        token=job.token + rule.token,
        snoozes=job.snoozes + rule.snoozes,
        lease_id=None,
        lease_expires_at=None,
        finished_at=now if rule.target in SETTLED else None,
        event=event.name,
        actor=event.actor or job.worker,
        reason=getattr(event, "reason", job.reason),
    )
    match event:
        case events.Claimed():
            return replace(
                after,
                started_at=now,
                worker=event.actor,
                lease_id=event.lease_id,
                lease_expires_at=now + timedelta(seconds=event.lease_seconds),
            )
        case events.Completed():
            return replace(after, result_json=event.result)
        case events.Failed() | events.GaveUp():
            return replace(after, last_error=event.error)
        case events.LeaseExpired():
            return replace(after, last_error=_expiry_error(job))
        case events.Retried() | events.Snoozed():
            run_at = now + timedelta(seconds=event.delay)
            return replace(after, max_retries=_limit(job, event), run_at=run_at)
        case events.Suspended() | events.Restored():
            return replace(after, need=event.need, spare=event.spare)
        case events.Unblocked():
            return replace(after, need=event.need, run_at=max(job.run_at, now))
        case events.Skipped():
            return replace(after, spare=event.spare)
        case events.Amended():
            changed = {c: event.changes[c] for c in rule.sets if c in event.changes}
            if event.delay is not None:
                due = now + timedelta(seconds=event.delay)
                changed["run_at"] = due if event.delay else min(job.run_at, due)
            return replace(after, **{TEXT_FIELDS.get(c, c): v for c, v in changed.items()})
        case events.Released() | events.Interrupted() | events.Expired() | events.Cancelled():
            return after


def follow(job: Job, event: Event, now: datetime) -> tuple[Job, ...]:
    """Return every row that the job passes through when `event` happens; it rests in the last.

    This is the whole retry logic. While attempts are left, a failure is followed by a retry, also
    where a lease ran out, unless the worker gave up. A return too many is a failure.
    """
    if isinstance(event, Return):
        event = _failed_instead(job, event, now) or event
    after = decide(job, event, now)
    if after.status is not F or at_rest(after):
        return (after,)
    chosen = getattr(event, "delay", None)
    wait = delay(after.backoff, after.id, after.attempts) if chosen is None else chosen
    return (after, decide(after, events.Retried(delay=wait), now))


def _failed_instead(job: Job, event: Return, now: datetime) -> events.Failed | None:
    """The failure that a return too many is."""
    for guard in (RETURNS_LEFT, SNOOZES_LEFT):
        if guard in RULE_OF[event.name, R].guards and (why := _refusal(guard, job, event, now)):
            error = f"it cannot be {event.name}: {why}"
            return events.Failed(lease_id=event.lease_id, error=error, actor=event.actor)
    return None


def retry_in(steps: Sequence[Job]) -> float | None:
    """Return the seconds between a failure and its retry in the rows that `follow` returned."""
    if len(steps) < 2 or steps[0].finished_at is None:
        return None
    return (steps[-1].run_at - steps[0].finished_at).total_seconds()


def _refusal(guard: Guard, job: Job, event: Event, now: datetime) -> str:
    match guard:
        case Guard.DUE if job.run_at > now:
            return f"it is not due before {job.run_at.isoformat()}"
        case Guard.IN_TIME if job.start_by is not None and job.start_by <= now:
            return f"it had to start before {job.start_by.isoformat()}"
        case Guard.LATE if job.start_by is None or job.start_by > now:
            return "the time by which it has to start has not passed"
        case Guard.LEASE_OVER if job.lease_expires_at is not None and job.lease_expires_at > now:
            return "its lease has not run out"
        case Guard.ATTEMPTS_LEFT if not has_budget(job.attempts, _limit(job, event)):
            return f"its attempts are used up: {job.attempts}"
        case Guard.RETURNS_LEFT if job.token - job.attempts - job.snoozes >= MAX_RETURNS:
            return f"it was released or interrupted {MAX_RETURNS} times without having ended"
        case Guard.SNOOZES_LEFT if job.snoozes >= MAX_SNOOZES:
            return f"it was snoozed or suspended {MAX_SNOOZES} times"
        case Guard.NEEDS if getattr(event, "need", 0) < 1:
            return "there is nothing to wait for"
        case Guard.NEEDS_NOTHING if getattr(event, "need", 0) > 0:
            return "what it waits for has not come"
        case Guard.HOPELESS if getattr(event, "spare", 0) >= 0:
            return "what it waits for can still come"
        case Guard.WAS_SKIPPED if job.event != "skipped":
            return "only a job that was skipped can be restored"
        case Guard.UNTRIED_PAYLOAD if job.token and "payload" in getattr(event, "changes", ()):
            return "its payload cannot change after its first claim"
        case Guard.ROOM_LEFT if job.attempts and not has_budget(job.attempts, _limit(job, event)):
            return f"max_retries has to be larger than its attempts: {job.attempts}"
        case _:
            return ""


def _limit(job: Job, event: Event) -> int:
    """The limit of attempts after `event`: an operator can change it."""
    if isinstance(event, events.Retried) and event.more_retries:
        return max(job.max_retries, job.attempts) + event.more_retries
    if isinstance(event, events.Amended):
        return int(event.changes.get("max_retries", job.max_retries))
    return job.max_retries


def _refused(job: Job, event: Event, reason: str = "") -> IllegalTransition:
    return IllegalTransition(
        job.id, job.status, event.name, legal_events(job.status, job.event), reason
    )


def _expiry_error(job: Job) -> str:
    return (
        f"lease expired: worker {job.worker} did not report attempt {job.attempts} before "
        f"{job.lease_expires_at.isoformat() if job.lease_expires_at else 'its end'}"
    )
