"""Requests as JSON: the shape of every request body.

What `payload`, `names` and the application check is only described here, for OpenAPI, so that HTTP
gives the same errors as Python. A lease id of HTTP is `<job id>.<lease id>`, so that a report names
its job.
"""

from __future__ import annotations

import re
import sys
from datetime import datetime
from typing import Annotated, Any

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, structs

from tenure.errors import InvalidInput
from tenure.jobs import durations, ids
from tenure.jobs import results as produced
from tenure.jobs.durations import MAX_SECONDS
from tenure.jobs.enqueue import NewJob, Options
from tenure.jobs.json_types import MAX_SCHEMA_LENGTH
from tenure.jobs.names import (
    KEY_PATTERN,
    MAX_KEY_LENGTH,
    MAX_LABEL_LENGTH,
    MAX_NAME_LENGTH,
    MAX_PARTITION_LENGTH,
    MAX_REASON_LENGTH,
    MAX_TAG_LENGTH,
    MAX_TAGS,
    NAME_PATTERN,
    PARTITION_PATTERN,
)
from tenure.jobs.payload import JsonText, canonical
from tenure.jobs.postpone import Pause
from tenure.jobs.progress import MAX_MESSAGE, JobProgress
from tenure.jobs.queries import MAX_SEARCHED_FOR, Action, State
from tenure.jobs.uniqueness import OnConflict, Until
from tenure.jobs.work import Outcome, Report
from tenure.lifecycle import Status
from tenure.retry import MAX_DELAYS

MAX_LEASED = 1_000
MAX_WORKER_LENGTH = 120
"""Longest id that a worker chooses; with the name of its token before it, it is a valid actor."""
MIN_LEASE_SECONDS, MAX_LEASE_SECONDS = 1.0, 86_400.0
MAX_WAIT_SECONDS = 30.0
MAX_JOB_WAIT_SECONDS = 60.0
DEFAULT_LEASE_SECONDS = 30.0


def _schema(**keywords: Any) -> Meta:
    """Describe a value by keywords of JSON Schema, without checking it."""
    return Meta(extra_json_schema=keywords)


def _component(name: str) -> Meta:
    return _schema(**{"$ref": f"#/components/schemas/{name}"})


Name = Annotated[str, _schema(pattern=NAME_PATTERN, maxLength=MAX_NAME_LENGTH)]
NAMES = NAME_PATTERN.strip("^$")
Names = Annotated[str, _schema(pattern=f"^{NAMES}(,{NAMES})*$")]
"""Names separated by commas."""
Key = Annotated[str, _schema(pattern=KEY_PATTERN, maxLength=MAX_KEY_LENGTH)]
LINE = "^[!-~]([ -~]*[!-~])?$"
WorkerName = Annotated[str, Meta(pattern=LINE, max_length=MAX_WORKER_LENGTH)]
Label = Annotated[str, Meta(pattern=LINE, max_length=MAX_LABEL_LENGTH)]
RunAt = Annotated[datetime, Meta(tz=True, extra_json_schema={"pattern": "^[1-8]"})]
TimeText = Annotated[str, _schema(format="date-time", pattern="^[1-8]")]
"""A time in a query, where a number is not accepted."""
Tag = Annotated[str, _schema(minLength=1, maxLength=MAX_TAG_LENGTH, pattern=KEY_PATTERN)]
Tags = Annotated[list[Tag], _schema(maxItems=MAX_TAGS)]
Partition = Annotated[
    str, _schema(minLength=1, maxLength=MAX_PARTITION_LENGTH, pattern=PARTITION_PATTERN)
]
Reason = Annotated[str, _schema(maxLength=MAX_REASON_LENGTH)]
SearchText = Annotated[
    str, _schema(minLength=1, maxLength=MAX_SEARCHED_FOR, pattern="^[^\\u0000]*$")
]
JsonObject = _component("JsonObject")
Seconds = Annotated[float | str, _component("Duration")]
Timeout = Annotated[float | str, _component("PositiveDuration")]
StartBy = Annotated[float | str, _component("StartBy")]
Priority = Annotated[int, _schema(minimum=-100, maximum=100)]
Retries = Annotated[int, _schema(minimum=0, maximum=1_000)]
MoreRetries = Annotated[int, _schema(minimum=1, maximum=1_000)]
Factor = Annotated[float, _schema(minimum=1, maximum=1_000)]
Delays = Annotated[list[Seconds], _schema(minItems=1, maxItems=MAX_DELAYS)]
Finite = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
Delay = Annotated[float, Meta(ge=0, le=MAX_SECONDS)]
LeaseSeconds = Annotated[float, Meta(ge=MIN_LEASE_SECONDS, le=MAX_LEASE_SECONDS)]
LeaseName = Annotated[str, Meta(description="A lease id as `POST /leases` gave it.")]


def embedded(text: str | None) -> Raw:
    """Embed JSON text in other JSON unchanged; None is null."""
    return Raw(b"null" if text is None else text.encode())


class Request(Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of a request. Unknown fields are refused, so that a typing error is found."""

    def pack(self, path: str) -> None:
        """Replace the values that a caller made up by their text. `path` is of this request."""


def given(request: Struct) -> dict[str, Any]:
    """Return the fields of a request that are set, by name."""
    return {name: value for name, value in structs.asdict(request).items() if value is not UNSET}


# --- jobs -----------------------------------------------------------------------------------------


class Backoff(Request):
    """Exponential backoff: `base` after the first failure, times `factor`, up to `cap`.

    With `delays`, these are the waits after each failure; the last one repeats.
    """

    base: Seconds | UnsetType = UNSET
    factor: Factor | UnsetType = UNSET
    cap: Seconds | UnsetType = UNSET
    delays: Annotated[list[Seconds], _schema(maxItems=MAX_DELAYS)] | UnsetType = UNSET


class TypeRequest(Request):
    """The options of a type's jobs. Durations are seconds, or text such as `30s`, `1h30m`, `PT5M`.

    Those that are left out are the defaults of Tenure.
    """

    queue: Name | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    max_retries: Retries | UnsetType = UNSET
    timeout: Timeout | UnsetType | None = UNSET  # null: no limit
    backoff: Backoff | Seconds | Delays | UnsetType = UNSET  # a policy, its base, or its delays


class DeclareRequest(TypeRequest, kw_only=True):
    """What a worker knows of a type: its options, and the JSON schema of its payloads, as text."""

    schema: Annotated[str, Meta(max_length=MAX_SCHEMA_LENGTH)] | None = None


class UniqueRequest(Request):
    """With which other jobs a job is the same, and what happens if one of them is there.

    `by` names values of the payload; `[]` allows one job of the type, a text is the key itself,
    and null stands for the whole payload.
    """

    by: Annotated[str | list[str] | None, _component("UniqueBy")] = None
    until: Until | None = None
    within: Timeout | None = None
    on_conflict: OnConflict = "return"
    max_wait: Timeout | None = None
    across_queues: bool = True


class AgainRequest(TypeRequest, kw_only=True):
    """A job to add that does again what another one did. What is left out is as of that job."""

    payload: Annotated[dict[str, Any], JsonObject] | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET
    partition: Partition | UnsetType = UNSET
    unique: UniqueRequest | UnsetType | None = UNSET  # null: not unique, whatever its type says
    run_at: RunAt | None = None
    delay: Seconds | None = None
    start_by: StartBy | None = None
    idempotency_key: Key | UnsetType = UNSET

    def pack(self, path: str) -> None:
        """Replace the payload by its text; raises InvalidInput."""
        if self.payload is not UNSET:
            text = JsonText(canonical(self.payload, path=f"{path}.payload"))
            structs.force_setattr(self, "payload", text)


class EnqueueRequest(AgainRequest, kw_only=True):
    """A job to add. The options that are left out are those of its type."""

    type: Name
    payload: Annotated[dict[str, Any], JsonObject] = {}


class ReasonRequest(Request):
    """Why this is done, for the ledger."""

    reason: Reason | None = None


class AmendRequest(ReasonRequest, kw_only=True):
    """What changes of a pending job. What is left out stays."""

    payload: Annotated[dict[str, Any], JsonObject] | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    max_retries: Retries | UnsetType = UNSET
    timeout: Timeout | UnsetType | None = UNSET  # null: no limit
    backoff: Backoff | Seconds | Delays | UnsetType = UNSET
    run_at: RunAt | UnsetType = UNSET
    delay: Seconds | UnsetType = UNSET  # from now; 0: at once
    pack = AgainRequest.pack


MAY_BE_NONE = frozenset({"timeout", "unique"})


def options_of(request: Request) -> dict[str, Any]:
    """Return the options that a request gives. Only those of `MAY_BE_NONE` can be None."""
    return {
        name: given(value) if isinstance(value, Request) else value
        for name, value in given(request).items()
        if (value is not None or name in MAY_BE_NONE) and name not in {"type", "payload", "reason"}
    }


class RetryRequest(ReasonRequest, kw_only=True):
    """How many attempts an operator's retry adds to the job's limit."""

    more_retries: MoreRetries = 1


class FilterForm(Request):
    """Selects the jobs that match every given field."""

    status: Status | UnsetType = UNSET
    state: State | UnsetType = UNSET
    running_longer_than: Timeout | UnsetType = UNSET
    type: Name | UnsetType = UNSET
    queue: Name | UnsetType = UNSET
    tag: Tag | UnsetType = UNSET
    partition: Partition | UnsetType = UNSET
    created_after: RunAt | UnsetType = UNSET
    created_before: RunAt | UnsetType = UNSET
    error: SearchText | UnsetType = UNSET
    text: SearchText | UnsetType = UNSET


class BulkRequest(ReasonRequest, kw_only=True):
    """An action on all jobs that match now; `more_retries` as for one job."""

    action: Action
    filter: FilterForm
    more_retries: MoreRetries = 1


class NoFields(Request):
    """An empty object; the body may be left out."""


def new_job(new_job: NewJob, at: str) -> dict[str, Any]:
    """Return a job as the API takes it, with its payload checked before anything is sent."""
    canonical(new_job.payload, path=f"{at}.payload")
    body: dict[str, Any] = {"type": new_job.type, "payload": new_job.payload}
    options: dict[str, Any] = dict(new_job.options)
    options.pop("actor", None)  # the server names the caller
    if unknown := options.keys() - Options.__annotations__.keys():
        raise InvalidInput(f"no such option: {', '.join(sorted(unknown))}", path=at)
    for name in options.keys() & {"delay", "timeout", "start_by"}:
        if isinstance(options[name], float):  # JSON would make null of NaN
            durations.seconds(options[name], path=f"{at}.{name}")
    given = {name: v for name, v in options.items() if v is not None or name in MAY_BE_NONE}
    return {**body, **given}


# --- leases and reports ---------------------------------------------------------------------------


class LeaseRequest(Request):
    """A worker's request for up to `limit` jobs; without `queues` or `types`, of any.

    The ledger names the worker by the caller's name, a slash and `worker`, as in `token:mail/w-1`.
    Of queues with limits it gets no more than `free` jobs, those that can start at once; left out,
    that is `limit`. `slots`, `version` and `stopping` are shown in lists of workers; with `limit` 0
    that is all.
    With `traces`, leases have the `traceparent` of the request that added their job, if any. With
    `leaves`, the worker gets no jobs and is no longer listed.
    """

    worker: WorkerName
    limit: Annotated[int, Meta(ge=0, le=MAX_LEASED)] = 1
    queues: Annotated[list[Name], Meta(max_length=1_000)] | None = None
    types: Annotated[list[Name], Meta(max_length=1_000)] | None = None
    lease_seconds: LeaseSeconds = DEFAULT_LEASE_SECONDS
    wait_seconds: Annotated[float, Meta(ge=0, le=MAX_WAIT_SECONDS)] = 0.0
    label: Label | UnsetType = UNSET
    traces: bool = False
    slots: Annotated[int, Meta(ge=0, le=100_000)] | None = None
    free: Annotated[int, Meta(ge=0, le=MAX_LEASED)] | None = None
    version: Label | None = None
    stopping: bool = False
    leaves: bool = False


NO_LEASE = ("00000000-0000-7000-8000-000000000000", "0" * 32)
_is_lease = re.compile("[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch


def join_lease(job_id: str, lease_id: str) -> str:
    """Return the lease id that HTTP uses, which also names the job."""
    return f"{job_id}.{lease_id}"


def split_lease(text: str) -> tuple[str, str]:
    """Return job id and lease id. Any other text is a lease that does not exist, so it is lost."""
    job_id, _, lease_id = text.partition(".")
    return (job_id, lease_id) if ids.is_id(job_id) and _is_lease(lease_id) else NO_LEASE


class HeartbeatRequest(Request):
    """How long the lease is to last from now."""

    lease_seconds: LeaseSeconds = DEFAULT_LEASE_SECONDS


class EndsRequest(Request):
    """Whose leases to watch: the `worker` that claims name."""

    worker: WorkerName


class Progress(Request):
    """How far an attempt has come: `done` of `total`, if that is known."""

    done: Finite
    total: Finite | None = None
    message: Annotated[str, Meta(max_length=MAX_MESSAGE)] = ""


class ProgressEntry(Progress, kw_only=True):
    """How far the attempt of one lease has come."""

    lease_id: LeaseName


class ReportEntry(Request):
    """What became of one lease.

    `result` if it completed; `error` and `retryable` if it failed; `delay`, in seconds, if it was
    snoozed or failed; `pause`, what starts no job as long, if it was snoozed.
    """

    lease_id: LeaseName
    outcome: Outcome
    result: Any = None
    error: str = ""
    retryable: bool = True
    delay: Delay | None = None
    pause: Pause | None = None
    progress: Progress | None = None

    def pack(self, path: str) -> None:
        """Replace the result by its text."""
        if self.result is not None:
            self.result = JsonText(produced.result_text(self.result))


def progress_of(entry: Progress) -> JobProgress:
    """Return what a worker says of an attempt's progress, so that it can be stored."""
    message = entry.message and produced.error_text(entry.message)[:MAX_MESSAGE]
    return JobProgress(entry.done, entry.total, message)


def report_of(entry: ReportEntry) -> Report:
    """Return the report of a worker. It is made storable, because the job must settle."""
    job_id, lease_id = split_lease(entry.lease_id)
    completed = entry.outcome is Outcome.COMPLETED and entry.result is not None
    return Report(
        job_id,
        lease_id,
        entry.outcome,
        result=produced.result_text(entry.result) if completed else None,
        error=produced.error_text(entry.error) if entry.outcome is Outcome.FAILED else "",
        retryable=entry.retryable,
        delay=entry.delay,
        pause=entry.pause,
        progress=None if entry.progress is None else progress_of(entry.progress),
    )


def report_entry(report: Report) -> ReportEntry:
    """Return a report as a worker sends it."""
    p = report.progress
    return ReportEntry(
        lease_id=join_lease(report.job_id, report.lease_id),
        outcome=report.outcome,
        result=embedded(report.result),
        error=report.error,
        retryable=report.retryable,
        delay=report.delay,
        pause=report.pause,
        progress=None if p is None else Progress(p.done, p.total, p.message),
    )
