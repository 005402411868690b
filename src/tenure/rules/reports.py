"""What workers and the store exchange: claims, leases, reports, verdicts, duties.

A report has the jobs that a run of a handler adds if it completes (`JobContext.enqueue`). It also
says when the job of a handler runs again that has given its slot back: such a handler raises one of
the exceptions here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, get_args

import msgspec
from msgspec.structs import replace

from tenure import retry
from tenure.errors import InvalidInput, TenureError
from tenure.retry import RetryPolicy
from tenure.rules.jobs import PLAIN_OPTIONS, CheckedJob, NewJob, TypeOptions, check_job
from tenure.rules.retention import DeclaredType
from tenure.rules.steps import JobProgress, Notes, StepCall
from tenure.values import durations
from tenure.values.ids import new_id
from tenure.values.payload import MAX_PAYLOAD_BYTES, JsonText, load

# --- follow-ups -----------------------------------------------------------------------------------

MAX_FOLLOW_UPS = 1_000
"""Jobs that one run adds. They are reported and stored together with its end."""
MAX_FOLLOW_UP_BYTES = MAX_PAYLOAD_BYTES + 64 * 1024
"""Bytes of them all, as JSON."""
EDGE_BYTES = 100
"""What a dependency takes in a report."""

UNKNOWN = "unknown"
"""The actor until the run ends."""
TOO_LATE = "this run has completed its job already: enqueue before"

Defaults = Callable[[str], TypeOptions | None]
"""Returns the options of a type, None if they are not known here."""


class FollowUp(msgspec.Struct, frozen=True):
    """One such job: as it was given, with its payload as text, and checked."""

    new_job: NewJob
    checked: CheckedJob
    is_known: bool  # else the database has the options of its type


class FollowUps:
    """The jobs that one run of a handler adds."""

    in_use: ClassVar[bool] = False
    """Whether there may be reports with such jobs in this process."""

    def __init__(self, defaults: Defaults = lambda _: None) -> None:
        self.is_closed = False
        """Whether they are on their way, so that no further job can be added."""
        self.jobs: list[FollowUp] = []
        self._defaults = defaults
        self._bytes = 0
        FollowUps.in_use = True

    def add(self, new_job: NewJob, id: str | None = None) -> str:
        """Note a job and return its id, a new one by default; raises InvalidInput."""
        if not isinstance(new_job, NewJob):
            raise InvalidInput(
                f"give what new_job(...) returned, not a value of type {type(new_job).__name__}"
            )
        if self.is_closed:
            raise InvalidInput(TOO_LATE)
        if len(self.jobs) == MAX_FOLLOW_UPS:
            raise InvalidInput(f"a run adds at most {MAX_FOLLOW_UPS} jobs: let one add the others")
        if id is not None and self.jobs and id <= self.jobs[-1].checked.id:
            raise InvalidInput("the ids of jobs that a run adds rise from job to job", path="$.id")
        known = self._defaults(new_job.type)
        checked = check_job(new_job, id or new_id(), defaults=known or PLAIN_OPTIONS, actor=UNKNOWN)
        self._bytes += len(checked.payload.encode()) + _bytes_of(new_job, checked)
        if self._bytes > MAX_FOLLOW_UP_BYTES:
            raise InvalidInput(
                f"the jobs that this run adds have more than {MAX_FOLLOW_UP_BYTES} bytes: keep "
                "large data elsewhere and pass its address"
            )
        new_job = replace(new_job, payload=JsonText(checked.payload))
        self.jobs.append(FollowUp(new_job, checked, known is not None))
        return checked.id

    def given(self) -> list[NewJob]:
        """Return them as they were given."""
        return [replace(one.new_job, payload=load(one.checked.payload)) for one in self.jobs]

    def signed(self, actor: str, traceparent: str | None = None) -> Sequence[FollowUp]:
        """Return them for a report, in a span. Jobs that name no actor are added by `actor`."""
        return [replace(one, checked=_signed(one.checked, actor, traceparent)) for one in self.jobs]


def _bytes_of(new_job: NewJob, checked: CheckedJob) -> int:
    options = {name: v for name, v in new_job.options.items() if name != "depends_on"}
    edges: Sequence[object] = getattr(checked, "edges", ())
    return len(msgspec.json.encode(options, enc_hook=str)) + EDGE_BYTES * (1 + len(edges))


def _signed(job: CheckedJob, actor: str, traceparent: str | None) -> CheckedJob:
    actor = actor if job.actor in (None, UNKNOWN) else job.actor
    return replace(job, actor=actor, traceparent=traceparent)


def unknown_types(follow_ups: Sequence[FollowUp]) -> bool:
    """Whether `with_options` needs what the database knows of types."""
    return not all(one.is_known for one in follow_ups)


def with_options(
    follow_ups: Sequence[FollowUp], options: Mapping[str, TypeOptions]
) -> list[CheckedJob]:
    """Return the jobs to add; those of types that are not known here get these `options`."""
    made = []
    for one in follow_ups:
        job = one.checked
        if not one.is_known and (defaults := options.get(job.type)) is not None:
            again = check_job(one.new_job, job.id, defaults=defaults, actor=str(job.actor))
            job = replace(again, traceparent=job.traceparent)
        made.append(job)
    return made


# --- giving the slot back -------------------------------------------------------------------------

Pause = Literal["partition", "queue"]
"""What waits together with a job."""


class _Postponed(TenureError):
    """What both have in common: a delay."""

    def __init__(self, delay: float | timedelta | str, message: str = "") -> None:
        self.seconds = _until_date(delay) or durations.seconds(delay, "$.delay")
        super().__init__(message or f"again in {delay}")


def _until_date(delay: object) -> float:
    """Return the seconds until a date as HTTP writes it; 0 if it is none, or 1 if it is over."""
    if not isinstance(delay, str) or not delay.endswith(" GMT"):
        return 0.0
    from email.utils import parsedate_to_datetime  # it takes milliseconds to import

    try:
        date = parsedate_to_datetime(delay)
    except (ValueError, OverflowError):
        return 0.0
    now = time.time()  # noqa: TID251 - the date is one of another machine, not of the store
    return durations.seconds(max(date.timestamp() - now, 1.0), "$.delay")


class RetryAfter(_Postponed):
    """Raise this in a handler to fail the attempt and to set when it is tried again.

    - `delay`: until the next attempt, in place of what the policy of the job says: seconds, a
      timedelta or text such as `30s`; 0 to 10 years. A server's `Retry-After` belongs here, also
      one that is a date.
    - `message`: why, for `last_error`. Default: when it is tried again.

    The attempt counts: without attempts left the job has failed for good. Raises InvalidInput.
    """

    code = "retry_after"


def longer_wait(asked: str, policy: RetryPolicy, job_id: str, attempt: int) -> float | None:
    """Return the seconds of a `Retry-After`, up to the cap of `policy`; None for its usual wait.

    That is also for a shorter one: ten attempts a second apart would outlast no restart.
    """
    if not asked:
        return None
    try:
        seconds = min(RetryAfter(asked).seconds, policy.cap)
    except InvalidInput:
        return None
    return seconds if seconds > retry.delay(policy, job_id, attempt) else None


class Snooze(_Postponed):
    """Raise this in a handler to run the job again later, at no cost: nothing has failed.

    - `delay`: until the job runs again: seconds, a timedelta or text such as `10m`; 0 to 10 years.
    - `message`: why; it is not kept.

    No attempt is charged. A job can be snoozed 10,000 times; once more is a failure. Raises
    InvalidInput.
    """

    code = "snooze"


class RateLimited(Snooze):
    """Raise this in a handler that met a rate limit outside, such as HTTP 429: a `Snooze` for all.

    - `delay`: until the job runs again, as that of `Snooze`. A server's `Retry-After` belongs here,
      also one that is a date.
    - `pause`: what starts no job until then: `partition` (default), that of the job, or `queue`, or
      None for neither. In a queue that is not divided by partitions, `partition` is the queue too.
      A job without a partition stands for all of its queue that have none.
    - `message`: why; it is not kept.

    Running handlers continue. If another handler asked for a longer pause, that one counts. Raises
    InvalidInput.
    """

    code = "rate_limited"

    def __init__(
        self, delay: float | timedelta | str, pause: Pause | None = "partition", message: str = ""
    ) -> None:
        if pause not in (None, *get_args(Pause)):
            raise InvalidInput("give 'partition', 'queue' or None", path="$.pause")
        self.pause = pause
        super().__init__(delay, message)


class Wait(msgspec.Struct, frozen=True, gc=False):
    """What a suspended job waits for: the signal `number` of a `name`, until `expires_at`."""

    name: str
    number: int
    expires_at: datetime | None = None


class Parked(BaseException):
    """Raised through a handler to end its attempt, which is not a failure: the job runs again.

    After `delay` seconds, or when what it `wait`s for has come. It is no Exception, so that
    `except Exception` in a handler lets it pass.
    """

    def __init__(self, what: str, *, delay: float = 0.0, wait: Wait | None = None) -> None:
        super().__init__(what)
        self.delay = delay
        self.wait = wait


def swallowed(parked: Parked) -> str:
    """Return the error of a handler that has returned in spite of `parked`."""
    return (
        f"the handler was parked ({parked}), yet it returned: let BaseException pass. It is caught "
        "by `except:`, by `finally:` with a return, or by contextlib.suppress(BaseException)"
    )


# --- exchanges ------------------------------------------------------------------------------------

MAX_BYTES = 8 * 1024 * 1024
"""Payloads and results, in bytes, after which a page or a claim ends: each job may have 1 MiB."""
ALONE_AFTER = ("lease expired", "the child process ")
"""How the last error begins of a job that may have ended its worker, or would have. `lifecycle` and
`worker.processes` write these errors, and the function `claim` on PostgreSQL looks for them."""

HeldLeases: TypeAlias = Sequence[tuple[str, str]]
"""The job id and the lease id of each."""


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
