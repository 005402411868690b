"""The values of Tenure as JSON: what the HTTP API, its client and the command line exchange.

Each `…Body` is the shape of an answer; the OpenAPI description is made from them, and from the
requests in `forms`. Payloads and results are embedded as the JSON they are, never decoded on the
way. Times are RFC 3339 in UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from math import inf
from typing import Annotated, Any

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from tenure.jobs import ids
from tenure.jobs.bulk_actions import Action, Bulk
from tenure.jobs.ledger import LedgerEvent, Transition
from tenure.jobs.states import QueueState, Watched, WorkerState
from tenure.jobs.stats import BUCKETS, Count
from tenure.jobs.webhook import Webhook
from tenure.jobs.work import Answer, Lease, Verdict
from tenure.lifecycle import Job, Status
from tenure.retry import RetryPolicy
from tenure.tokens.scopes import AccessToken
from tenure.wire.requests import JsonObject, LeaseName, embedded, join_lease, split_lease

Id = Annotated[str, Meta(extra_json_schema={"pattern": ids.ID_PATTERN})]
Time = Annotated[datetime, Meta(tz=True)]
AnyJson = Meta(extra_json_schema={"$ref": "#/components/schemas/Json"})


class Answered(Struct, frozen=True, kw_only=True):
    """What is answered; readers ignore fields they do not know."""


# --- jobs -----------------------------------------------------------------------------------------


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
        payload=embedded(job.payload),
        result=embedded(job.result),
        backoff=Policy(base=policy.base, factor=policy.factor, cap=policy.cap),
    )


def job_of(body: JobBody) -> Job:
    """The job that an answer shows."""
    policy = body.backoff
    return Job(
        **{name: getattr(body, name) for name in _COPIED},
        payload=_text(body.payload) or "{}",
        result=_text(body.result),
        backoff=RetryPolicy(base=policy.base, factor=policy.factor, cap=policy.cap),
    )


def _text(raw: Raw) -> str | None:
    text = bytes(raw).decode()
    return None if text == "null" else text


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


class EventBody(TransitionBody, frozen=True, kw_only=True):
    """A move as the event stream tells it: with the type and queue of its job."""

    type: str
    queue: str


def event_body(told: LedgerEvent) -> EventBody:
    """The move as it is streamed."""
    transition = told.transition
    fields = {name: getattr(transition, name) for name in TransitionBody.__struct_fields__}
    return EventBody(**fields, type=told.type, queue=told.queue)


def transition_of(body: TransitionBody) -> Transition:
    """The ledger entry that an answer shows."""
    return Transition(**{name: getattr(body, name) for name in TransitionBody.__struct_fields__})


class ExplanationBody(Answered, frozen=True):
    """Why a job is not running: a stable `reason`, a sentence, and what may be done to it."""

    reason: str
    text: str
    legal_events: Sequence[str]


# --- leases and reports ---------------------------------------------------------------------------


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
    traceparent: str | UnsetType = UNSET  # if it was asked for, and the job was added by a span


_LEASE_COPIED = tuple(
    name
    for name in LeaseBody.__struct_fields__
    if name not in {"payload", "lease_id", "traceparent"}
)


def lease_body(lease: Lease) -> LeaseBody:
    """The lease as the worker that holds it sees it."""
    return LeaseBody(
        **{name: getattr(lease, name) for name in _LEASE_COPIED},
        payload=embedded(lease.payload),
        lease_id=join_lease(lease.id, lease.lease_id),
        traceparent=lease.traceparent or UNSET,
    )


def lease_of(body: LeaseBody) -> Lease:
    """The lease that an answer grants."""
    return Lease(
        **{name: getattr(body, name) for name in _LEASE_COPIED},
        payload=_text(body.payload) or "{}",
        lease_id=split_lease(body.lease_id)[1],
        traceparent=None if body.traceparent is UNSET else body.traceparent,
    )


class VerdictBody(Answered, frozen=True):
    """What the store did with one report; `recorded` names what is on record if it differs.

    `retry_in`: seconds until the job may run again, where this failure brought a retry.
    """

    lease_id: LeaseName
    answer: Answer
    recorded: str | UnsetType = UNSET
    retry_in: float | UnsetType = UNSET


def verdict_body(lease_name: str, verdict: Verdict) -> VerdictBody:
    """The verdict as it is shown."""
    return VerdictBody(
        lease_id=lease_name,
        answer=verdict.answer,
        recorded=verdict.recorded or UNSET,
        retry_in=UNSET if verdict.retry_in is None else verdict.retry_in,
    )


def verdict_of(body: VerdictBody) -> Verdict:
    """The verdict that an answer gives."""
    recorded = "" if body.recorded is UNSET else body.recorded
    return Verdict(body.answer, recorded, None if body.retry_in is UNSET else body.retry_in)


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


class CountedBody(Answered, frozen=True):
    """How many jobs fit; at least so many if it is not `exact`."""

    jobs: int
    exact: bool


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


class FilterBody(Answered, frozen=True, omit_defaults=True):
    """Which jobs a bulk action is on; what was not given is left out."""

    status: Status | None = None
    type: str | None = None
    queue: str | None = None
    created_after: Time | None = None
    created_before: Time | None = None
    error: str | None = None
    text: str | None = None


class BulkBody(Answered, frozen=True):
    """A bulk action: of `total` jobs that fitted at its start, how many it has changed so far.

    `refused` are those that somebody else has changed first. `total` is a minimum if not `exact`.
    """

    id: Id
    action: Action
    filter: FilterBody
    more_retries: int
    actor: str
    created_at: Time
    finished_at: Time | None
    stopped_by: str | None
    total: int
    exact: bool
    examined: int
    changed: int
    refused: int


def bulk_body(bulk: Bulk) -> BulkBody:
    """The action as it is shown."""
    shown = {name: getattr(bulk.filter, name) for name in FilterBody.__struct_fields__}
    copied = (name for name in BulkBody.__struct_fields__ if name != "filter")
    return BulkBody(**{name: getattr(bulk, name) for name in copied}, filter=FilterBody(**shown))


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


class TotalBody(Answered, frozen=True):
    """The moves of one event in one queue and type since the beginning.

    `seconds` and `buckets` tell of waiting where jobs were claimed, of running where attempts
    ended: `buckets` counts the times up to each of the bounds and above the one before it.
    """

    type: str
    queue: str
    event: str
    transitions: int
    seconds: float
    buckets: Sequence[int]


class MetricsBody(Answered, frozen=True):
    """The same values as the Prometheus metrics; `bounds` are seconds, the last has none: null."""

    total: int
    by_status: dict[str, int]
    counts: Sequence[CountBody]
    queues: Sequence[QueueBody]
    workers: int
    late_leases: int
    totals: Sequence[TotalBody]
    bounds: Sequence[float | None]
    measured_until: Time | None


def metrics_body(seen: Watched) -> MetricsBody:
    """The state of everything as it is shown."""
    stats = stats_body(seen.counts)
    return MetricsBody(
        total=stats.total,
        by_status=stats.by_status,
        counts=stats.counts,
        queues=[queue_body(queue) for queue in seen.queues],
        workers=seen.workers,
        late_leases=seen.late_leases,
        totals=[TotalBody(**asdict(total)) for total in seen.totals],
        bounds=[None if bound == inf else bound for bound in BUCKETS],
        measured_until=seen.measured_until,
    )


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


def token_fields(token: AccessToken) -> dict[str, Any]:
    """A token of the HTTP API as it is shown; its digest is never part of it."""
    return {name: value for name, value in asdict(token).items() if name != "digest"}


def webhook_fields(hook: Webhook) -> dict[str, Any]:
    """A webhook as it is shown."""
    return asdict(hook)


class Health(Answered, frozen=True):
    """The process is up; `ready` also says that the database answers."""

    status: str
