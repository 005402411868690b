"""Answers as JSON: what the HTTP API, its client, the command line and webhooks send.

A `…Body` is the shape of an answer whose value in Python has another shape; others, such as
`QueueState`, are answered unchanged. The OpenAPI description is made from all of them. Payloads
and results are embedded as the JSON they are, never decoded on the way. Times are RFC 3339 in UTC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Annotated, Any, Self

from msgspec import DecodeError, Raw, Struct, field, json, structs

from tenure.lifecycle import Job, Status
from tenure.retry import RetryPolicy
from tenure.rules.ledger import EventName, LedgerEvent, StatusName
from tenure.rules.reports import Answer, Lease
from tenure.rules.search import Action, Bulk
from tenure.rules.signals import Signal
from tenure.rules.stats import Count, QueueState, Total, jobs_by_status
from tenure.rules.steps import JobProgress
from tenure.texts import TEXT_FIELDS
from tenure.values.durations import Time
from tenure.values.payload import JsonText
from tenure.wire.reports import LeaseName, join_lease, split_lease
from tenure.wire.requests import FilterForm, Id, JsonObject, component, embedded

AnyJson = component("Json")


class Answered(Struct, frozen=True, kw_only=True):
    """An answer. A client ignores fields that it does not know."""

    @classmethod
    def of(cls, source: object, **others: Any) -> Self:
        """Return the answer that has the fields of `source`, except for `others`."""
        names = cls.__struct_fields__
        return cls(**{n: getattr(source, n) for n in names if n not in others}, **others)


# --- jobs -----------------------------------------------------------------------------------------


class JobBody(Answered, frozen=True):
    """A job with its current status."""

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
    start_by: Time | None
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    worker: str | None
    lease_expires_at: Time | None
    token: int
    timeout: float | None
    backoff: RetryPolicy
    idempotency_key: str | None
    tags: tuple[str, ...]
    again_of: Id | None
    partition: str | None
    workflow: Id | None
    progress: JobProgress | None = None  # of one job, and of the processing ones in a list


def job_body(job: Job, progress: JobProgress | None = None) -> JobBody:
    """Show a job, without its lease id."""
    fields = [*_shown(job), progress]
    for place in _TEXTS:
        fields[place] = _stored(fields[place])
    return JobBody(*fields)


_shown = attrgetter(*(TEXT_FIELDS.get(name, name) for name in JobBody.__struct_fields__[:-1]))
_TEXTS = tuple(map(JobBody.__struct_fields__.index, TEXT_FIELDS))


def _stored(text: str | None) -> Raw:
    """Embed stored JSON; in place of what is none, an object that says so and has the text."""
    try:
        if text is not None and not isinstance(text, JsonText):  # which was checked
            _skim(text)
    except (DecodeError, RecursionError):
        return Raw(json.encode({"tenure:damaged": text}))
    return embedded(text)


_skim = json.Decoder(dict[str, Raw] | list[Raw] | str | int | float | bool | None).decode


def job_of(body: JobBody) -> Job:
    fields = structs.asdict(body)
    del fields["progress"]
    payload, result = text_of(fields.pop("payload")) or "{}", text_of(fields.pop("result"))
    return Job(**fields, payload_json=payload, result_json=result)


def text_of(raw: Raw) -> str | None:
    """Return embedded JSON, None for null."""
    text = bytes(raw).decode()
    return None if text == "null" else text


class SignalBody(Answered, frozen=True):
    """A signal to a job: the `number`-th of its name."""

    job_id: Id
    name: str
    number: int
    at: Time
    key: str | None
    payload: Annotated[Raw, AnyJson]
    actor: str


def signal_body(signal: Signal, payload: str) -> SignalBody:
    """Show a signal with this payload, which may be redacted."""
    return SignalBody.of(signal, payload=_stored(payload))


def signal_of(body: SignalBody) -> Signal:
    fields = structs.asdict(body)
    return Signal(payload_json=bytes(fields.pop("payload")).decode(), **fields)


class TransitionBody(Answered, frozen=True):
    """One transition of a job: who caused it, why, and the error if the attempt failed."""

    position: str
    job_id: str
    at: Time
    source: StatusName | None = field(name="from")
    target: StatusName = field(name="to")
    event: EventName
    attempt: int
    token: int
    actor: str | None
    detail: str | None
    reason: str | None


class EventBody(TransitionBody, frozen=True, kw_only=True):
    """A transition in the event stream: with the type, queue and tags of its job."""

    type: str
    queue: str
    tags: list[str]


def event_body(event: LedgerEvent) -> EventBody:
    return EventBody.of(event.transition, type=event.type, queue=event.queue, tags=list(event.tags))


# --- leases and reports ---------------------------------------------------------------------------


class LeaseBody(Answered, frozen=True, omit_defaults=True):
    """A leased job: what a worker needs to run it and to report."""

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
    traceparent: str | None = None  # if asked for with `traces`, and known
    alone: bool = False  # to be run in a process beside the worker's


def lease_body(lease: Lease) -> LeaseBody:
    return LeaseBody.of(
        lease, payload=embedded(lease.payload), lease_id=join_lease(lease.id, lease.lease_id)
    )


def lease_of(body: LeaseBody) -> Lease:
    _, lease_id = split_lease(body.lease_id)
    payload = text_of(body.payload) or "{}"
    return Lease(**{**structs.asdict(body), "payload": payload, "lease_id": lease_id})


class VerdictBody(Answered, frozen=True, omit_defaults=True):
    """What the store did with one report. `recorded` names the outcome on record if it differs.

    `retry_in`: seconds until the job may run again, if this failure led to a retry. `error`: why an
    attempt that completed has failed: a job that its report adds was refused.
    """

    lease_id: LeaseName
    answer: Answer
    recorded: str = ""
    retry_in: float | None = None
    error: str = ""


class RecordedBody(Answered, frozen=True):
    """Of how many attempts the progress was stored; the others are no longer leased."""

    recorded: int


class HeldBody(Answered, frozen=True, omit_defaults=True):
    """Whether a heartbeat found the lease still held; if not, `ended_by` is what did.

    The name of an event, as `cancelled` if the job was. Without `ended_by`, no such lease is known.
    """

    lease_id: LeaseName
    held: bool
    ended_by: str = ""


# --- what operators see ---------------------------------------------------------------------------


class StatsBody(Answered, frozen=True):
    """The number of jobs by status, and by status, queue and type."""

    total: int
    by_status: dict[str, int]
    counts: Sequence[Count]


def stats_body(counts: Sequence[Count]) -> StatsBody:
    """Add the sums to the counts."""
    found = jobs_by_status(counts)
    return StatsBody(total=sum(found.values()), by_status=found, counts=counts)


class BulkBody(Answered, frozen=True):
    """A bulk action: how many of the `total` jobs that matched at its start it has changed.

    `refused` are jobs that changed otherwise first. `total` is a minimum if not `exact`.
    """

    id: Id
    action: Action
    filter: FilterForm
    more_retries: int
    actor: str
    reason: str | None
    created_at: Time
    finished_at: Time | None
    stopped_by: str | None
    total: int
    exact: bool
    examined: int
    changed: int
    refused: int


def bulk_body(bulk: Bulk) -> BulkBody:
    """Show a bulk action; what its filter leaves open is left out."""
    given = {name: getattr(bulk.filter, name) for name in FilterForm.__struct_fields__}
    filter = FilterForm(**{name: value for name, value in given.items() if value is not None})
    return BulkBody.of(bulk, filter=filter)


class MetricsBody(StatsBody, frozen=True, kw_only=True):
    """The values of the Prometheus metrics. `bounds` are in seconds; the last is null: no bound."""

    queues: Sequence[QueueState]
    oldest_running: Mapping[str, Time]  # by queue
    halted_partitions: Mapping[str, int]  # by queue
    workers: int
    late_leases: int
    totals: Sequence[Total]
    bounds: Sequence[float | None]
    measured_until: Time | None
    fires: Mapping[str, Mapping[str, int]]  # by schedule and outcome
    next_tick: Time | None
    refused: Mapping[str, int]


class ProbeBody(Answered, frozen=True):
    """The process is up; `ready` also says that the database answers."""

    status: str
