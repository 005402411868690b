"""The values of Tenure as JSON: what the HTTP API, its client and the command line exchange.

Each `…Body` is the shape of an answer, each `New…` or `…Request` of a request; the OpenAPI
description is made from them. Payloads and results are embedded as the JSON they are, never
decoded on the way. Times are RFC 3339 in UTC. A lease id on the wire names its job too, so that
a report needs nothing else: `<job id>.<lease id>`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from tenure import ids, payload, produced
from tenure.lifecycle import Job, Status
from tenure.records import (
    Answer,
    Count,
    Lease,
    Outcome,
    QueueState,
    Report,
    Transition,
    Verdict,
    WorkerState,
)
from tenure.retry import RetryPolicy

MOST_LEASED = 1_000
SHORTEST_LEASE, LONGEST_LEASE = 1.0, 86_400.0
LONGEST_WAIT = 30.0
DEFAULT_LEASE = 30.0

# --- pieces of schemas: what `payload` and the application check is only described here ----------

Name = Annotated[
    str,
    Meta(extra_json_schema={"pattern": payload.NAME_PATTERN, "maxLength": payload.MAX_NAME_LENGTH}),
]
Id = Annotated[str, Meta(extra_json_schema={"pattern": ids.ID_PATTERN})]
Key = Annotated[
    str,
    Meta(extra_json_schema={"pattern": payload.KEY_PATTERN, "maxLength": payload.MAX_KEY_LENGTH}),
]
Label = Annotated[str, Meta(pattern="^[!-~]([ -~]*[!-~])?$", max_length=payload.MAX_LABEL_LENGTH)]
Time = Annotated[datetime, Meta(tz=True)]
RunAt = Annotated[datetime, Meta(tz=True, extra_json_schema={"pattern": "^[1-8]"})]
JsonObject = Meta(extra_json_schema={"$ref": "#/components/schemas/JsonObject"})
AnyJson = Meta(extra_json_schema={"$ref": "#/components/schemas/Json"})
Seconds = Annotated[float | str, Meta(extra_json_schema={"$ref": "#/components/schemas/Duration"})]
Timeout = Annotated[
    float | str, Meta(extra_json_schema={"$ref": "#/components/schemas/PositiveDuration"})
]
LeaseSeconds = Annotated[float, Meta(ge=SHORTEST_LEASE, le=LONGEST_LEASE)]
LeaseName = Annotated[str, Meta(description="A lease id as `POST /leases` gave it.")]


class Request(Struct, kw_only=True, forbid_unknown_fields=True):
    """What is asked; unknown fields are refused, so that a typing error is not lost in silence."""


class Answered(Struct, frozen=True, kw_only=True):
    """What is answered; readers ignore fields they do not know."""


# --- jobs -----------------------------------------------------------------------------------------


class Backoff(Request):
    """Exponential backoff: `base` after the first failure, times `factor`, up to `cap`."""

    base: Seconds | UnsetType = UNSET
    factor: (
        Annotated[float, Meta(extra_json_schema={"minimum": 1, "maximum": 1000})] | UnsetType
    ) = UNSET
    cap: Seconds | UnsetType = UNSET


class NewJob(Request):
    """A job to be added. Durations are seconds, or text such as `30s`, `1h30m`, `PT5M`."""

    type: Name
    payload: Annotated[dict[str, Any], JsonObject] | UnsetType = UNSET
    queue: Name | UnsetType = UNSET
    priority: (
        Annotated[int, Meta(extra_json_schema={"minimum": -32_767, "maximum": 32_767})] | UnsetType
    ) = UNSET
    max_retries: (
        Annotated[int, Meta(extra_json_schema={"minimum": 0, "maximum": 1_000})] | UnsetType
    ) = UNSET
    run_at: RunAt | None = None
    delay: Seconds | None = None
    timeout: Timeout | None = None
    backoff: Backoff | Seconds | UnsetType = UNSET  # a policy, or its base alone
    idempotency_key: Key | UnsetType = UNSET


class Policy(Answered, frozen=True):
    """A retry policy; `base` and `cap` in seconds."""

    base: float
    factor: float
    cap: float


class JobBody(Answered, frozen=True):
    """A job as it stands."""

    id: Id
    type: str
    queue: str
    status: Status
    payload: Annotated[Raw, JsonObject]
    priority: int
    attempts: int
    max_retries: int
    last_error: str | None
    result: Annotated[Raw, AnyJson]
    run_at: Time
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    worker: str | None
    lease_expires_at: Time | None
    token: int
    timeout: float | None
    backoff: Policy
    idempotency_key: str | None


_COPIED = tuple(
    name for name in JobBody.__struct_fields__ if name not in {"payload", "result", "backoff"}
)


def job_body(job: Job) -> JobBody:
    """The job as it is shown; its lease id is never part of it."""
    policy = job.backoff
    return JobBody(
        **{name: getattr(job, name) for name in _COPIED},
        payload=Raw(job.payload.encode()),
        result=_raw(job.result),
        backoff=Policy(base=policy.base, factor=policy.factor, cap=policy.cap),
    )


def job_json(job: Job) -> bytes:
    """The job as JSON text."""
    return msgspec.json.encode(job_body(job))


def job_of(body: JobBody) -> Job:
    """The job that an answer shows."""
    policy = body.backoff
    return Job(
        **{name: getattr(body, name) for name in _COPIED},
        payload=_text(body.payload) or "{}",
        result=_text(body.result),
        backoff=RetryPolicy(base=policy.base, factor=policy.factor, cap=policy.cap),
    )


def _raw(text: str | None) -> Raw:
    return Raw(b"null" if text is None else text.encode())


def _text(raw: Raw) -> str | None:
    text = bytes(raw).decode()
    return None if text == "null" else text


class RetryRequest(Request):
    """How many attempts an operator's retry adds to the job's limit."""

    more_retries: (
        Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": 1_000})] | UnsetType
    ) = UNSET


class NoFields(Request):
    """An empty object; the body may be left out."""


class TransitionBody(Answered, frozen=True):
    """One entry of the ledger: a move of a job, who caused it, and the error if it failed."""

    position: str
    job_id: str
    at: Time
    source: str | None = field(name="from")
    target: str = field(name="to")
    event: str
    attempt: int
    token: int
    actor: str | None
    detail: str | None


def transition_body(entry: Transition) -> TransitionBody:
    """The entry as it is shown; its lease id is never part of it."""
    return TransitionBody(
        **{name: getattr(entry, name) for name in TransitionBody.__struct_fields__}
    )


def transition_json(entry: Transition) -> bytes:
    """The entry as JSON text."""
    return msgspec.json.encode(transition_body(entry))


def transition_of(body: TransitionBody) -> Transition:
    """The ledger entry that an answer shows."""
    return Transition(**{name: getattr(body, name) for name in TransitionBody.__struct_fields__})


class ExplanationBody(Answered, frozen=True):
    """Why a job is not running: a stable `reason`, a sentence, and what may be done to it."""

    reason: str
    text: str
    legal_moves: Sequence[str]


# --- leases and reports ---------------------------------------------------------------------------


class LeaseRequest(Request):
    """A worker asking for up to `limit` jobs; `queues` or `types` left out means any."""

    worker: Label
    limit: Annotated[int, Meta(ge=1, le=MOST_LEASED)] = 1
    queues: Annotated[list[Name], Meta(max_length=1_000)] | None = None
    types: Annotated[list[Name], Meta(max_length=10_000)] | None = None
    lease_seconds: LeaseSeconds = DEFAULT_LEASE
    wait_seconds: Annotated[float, Meta(ge=0, le=LONGEST_WAIT)] = 0.0
    label: Label | UnsetType = UNSET


class LeaseBody(Answered, frozen=True):
    """A leased job: what a worker needs to run it and to report on it."""

    id: Id
    type: str
    queue: str
    payload: Annotated[Raw, JsonObject]
    attempts: int
    max_retries: int
    token: int
    timeout: float | None
    lease_id: LeaseName
    lease_expires_at: Time


_LEASE_COPIED = tuple(
    name for name in LeaseBody.__struct_fields__ if name not in {"payload", "lease_id"}
)


def lease_body(lease: Lease) -> LeaseBody:
    """The lease as the worker that holds it sees it."""
    return LeaseBody(
        **{name: getattr(lease, name) for name in _LEASE_COPIED},
        payload=Raw(lease.payload.encode()),
        lease_id=join_lease(lease.id, lease.lease_id),
    )


def lease_json(lease: Lease) -> bytes:
    """The lease as JSON text."""
    return msgspec.json.encode(lease_body(lease))


def lease_of(body: LeaseBody) -> Lease:
    """The lease that an answer grants."""
    return Lease(
        **{name: getattr(body, name) for name in _LEASE_COPIED},
        payload=_text(body.payload) or "{}",
        lease_id=split_lease(body.lease_id)[1],
    )


NOBODY = ("00000000-0000-7000-8000-000000000000", "0" * 32)
_is_lease = re.compile("[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch


def join_lease(job_id: str, lease_id: str) -> str:
    """The lease id as it stands on the wire."""
    return f"{job_id}.{lease_id}"


def split_lease(text: str) -> tuple[str, str]:
    """Job id and lease id. What cannot be one is a lease that nobody holds, and so it is lost."""
    job_id, _, lease_id = text.partition(".")
    return (job_id, lease_id) if ids.is_id(job_id) and _is_lease(lease_id) else NOBODY


class CompleteRequest(Request):
    """The attempt succeeded; `result` is any JSON."""

    result: Any = None


class FailRequest(Request):
    """The attempt failed; `retryable` false makes the failure final at once."""

    error: str
    retryable: bool = True


class HeartbeatRequest(Request):
    """How long the lease is to last from now."""

    lease_seconds: LeaseSeconds = DEFAULT_LEASE


class ReportEntry(Request):
    """What became of one lease; `result` if it completed, `error` and `retryable` if it failed."""

    lease_id: LeaseName
    outcome: Outcome
    result: Any = None
    error: str = ""
    retryable: bool = True


def report_of(entry: ReportEntry) -> Report:
    """The report that a worker sent: made storable, for nothing may keep a job from settling."""
    job_id, lease_id = split_lease(entry.lease_id)
    completed = entry.outcome is Outcome.COMPLETED and entry.result is not None
    return Report(
        job_id,
        lease_id,
        entry.outcome,
        result=produced.result_text(entry.result) if completed else None,
        error=produced.error_text(entry.error) if entry.outcome is Outcome.FAILED else "",
        retryable=entry.retryable,
    )


def report_entry(report: Report) -> ReportEntry:
    """The report as a worker sends it."""
    return ReportEntry(
        lease_id=join_lease(report.job_id, report.lease_id),
        outcome=report.outcome,
        result=_raw(report.result),
        error=report.error,
        retryable=report.retryable,
    )


class VerdictBody(Answered, frozen=True):
    """What the store did with one report; `recorded` names what is on record if it differs."""

    lease_id: LeaseName
    answer: Answer
    recorded: str | UnsetType = UNSET


def verdict_body(lease_name: str, verdict: Verdict) -> VerdictBody:
    """The verdict as it is shown."""
    return VerdictBody(
        lease_id=lease_name, answer=verdict.answer, recorded=verdict.recorded or UNSET
    )


def verdict_of(body: VerdictBody) -> Verdict:
    """The verdict that an answer gives."""
    return Verdict(body.answer, "" if body.recorded is UNSET else body.recorded)


class HeldBody(Answered, frozen=True):
    """Whether a lease is still held after a heartbeat."""

    lease_id: LeaseName
    held: bool


# --- what operators see ---------------------------------------------------------------------------


class CountBody(Answered, frozen=True):
    """How many jobs stand in one status of one queue and type."""

    status: Status
    queue: str
    type: str
    jobs: int


class StatsBody(Answered, frozen=True):
    """Jobs by status, and again by status, queue and type."""

    total: int
    by_status: dict[str, int]
    counts: Sequence[CountBody]


def stats_body(counts: Sequence[Count]) -> StatsBody:
    """The counts with their sums; every status is there, if only with 0."""
    by_status = dict.fromkeys(map(str, Status), 0)
    for count in counts:
        by_status[count.status] += count.jobs
    return StatsBody(
        total=sum(by_status.values()),
        by_status=by_status,
        counts=[
            CountBody(status=Status(c.status), queue=c.queue, type=c.type, jobs=c.jobs)
            for c in counts
        ],
    )


class QueueBody(Answered, frozen=True):
    """A queue: its settings and what waits in it."""

    name: str
    paused_at: Time | None
    max_pending: int | None
    pending: int
    processing: int
    oldest_due_at: Time | None


def queue_body(queue: QueueState) -> QueueBody:
    """The queue as it is shown."""
    return QueueBody(**asdict(queue))


class MetricsBody(Answered, frozen=True):
    """The same values as the Prometheus metrics."""

    total: int
    by_status: dict[str, int]
    counts: Sequence[CountBody]
    queues: Sequence[QueueBody]
    workers: int


def metrics_body(
    counts: Sequence[Count], queues: Sequence[QueueState], workers: int
) -> MetricsBody:
    """Counts, queues and the number of workers."""
    stats = stats_body(counts)
    return MetricsBody(
        total=stats.total,
        by_status=stats.by_status,
        counts=stats.counts,
        queues=[queue_body(queue) for queue in queues],
        workers=workers,
    )


class LimitRequest(Request):
    """How many jobs of a queue may wait; null lifts the limit."""

    max_pending: Annotated[int, Meta(extra_json_schema={"minimum": 0, "maximum": 2**53})] | None


class WorkerBody(Answered, frozen=True):
    """A worker that asked for jobs lately; null for `queues` or `types` means any."""

    id: str
    label: str
    queues: Sequence[str] | None
    types: Sequence[str] | None
    seen_at: Time
    leases: int


def worker_body(worker: WorkerState) -> WorkerBody:
    """The worker as it is shown."""
    return WorkerBody(**asdict(worker))


class Health(Answered, frozen=True):
    """The process is up; `ready` also says that the database answers."""

    status: str
