"""What is asked over HTTP: the shape of every request. The answers' shapes are in `wire`.

Unknown fields are refused, so that a typing error is not lost in silence. What `payload` and the
application check is only described here, for the OpenAPI description, and checked there, so that
every face gives the same verdict. A lease id on the wire names its job too, so that a report needs
nothing else: `<job id>.<lease id>`.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from tenure.jobs import ids
from tenure.jobs import results as produced
from tenure.jobs.bulk_actions import Action
from tenure.jobs.names import (
    KEY_PATTERN,
    MAX_KEY_LENGTH,
    MAX_LABEL_LENGTH,
    MAX_NAME_LENGTH,
    NAME_PATTERN,
)
from tenure.jobs.queries import MAX_SEARCHED_FOR
from tenure.jobs.work import Outcome, Report
from tenure.lifecycle import Status

MAX_LEASED = 1_000
MIN_LEASE, MAX_LEASE = 1.0, 86_400.0
MAX_WAIT = 30.0
DEFAULT_LEASE = 30.0

Name = Annotated[
    str,
    Meta(extra_json_schema={"pattern": NAME_PATTERN, "maxLength": MAX_NAME_LENGTH}),
]
NAMES = NAME_PATTERN.strip("^$")
Names = Annotated[str, Meta(extra_json_schema={"pattern": f"^{NAMES}(,{NAMES})*$"})]
"""Names separated by commas."""
Key = Annotated[
    str,
    Meta(extra_json_schema={"pattern": KEY_PATTERN, "maxLength": MAX_KEY_LENGTH}),
]
Label = Annotated[str, Meta(pattern="^[!-~]([ -~]*[!-~])?$", max_length=MAX_LABEL_LENGTH)]
RunAt = Annotated[datetime, Meta(tz=True, extra_json_schema={"pattern": "^[1-8]"})]
TimeText = Annotated[str, Meta(extra_json_schema={"format": "date-time", "pattern": "^[1-8]"})]
"""A time in a query, where a number must not pass for one."""
SearchText = Annotated[
    str,
    Meta(
        extra_json_schema={
            "minLength": 1,
            "maxLength": MAX_SEARCHED_FOR,
            "pattern": "^[^\\u0000]*$",
        }
    ),
]
JsonObject = Meta(extra_json_schema={"$ref": "#/components/schemas/JsonObject"})
Seconds = Annotated[float | str, Meta(extra_json_schema={"$ref": "#/components/schemas/Duration"})]
Timeout = Annotated[
    float | str, Meta(extra_json_schema={"$ref": "#/components/schemas/PositiveDuration"})
]
LeaseSeconds = Annotated[float, Meta(ge=MIN_LEASE, le=MAX_LEASE)]
LeaseName = Annotated[str, Meta(description="A lease id as `POST /leases` gave it.")]


def embedded(text: str | None) -> Raw:
    """Embed JSON text in other JSON unchanged; None is null."""
    return Raw(b"null" if text is None else text.encode())


class Request(Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of a request. Unknown fields are refused, so that a typing error is found."""


# --- jobs -----------------------------------------------------------------------------------------


class Backoff(Request):
    """Exponential backoff: `base` after the first failure, times `factor`, up to `cap`."""

    base: Seconds | UnsetType = UNSET
    factor: (
        Annotated[float, Meta(extra_json_schema={"minimum": 1, "maximum": 1000})] | UnsetType
    ) = UNSET
    cap: Seconds | UnsetType = UNSET


class EnqueueRequest(Request):
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


class RetryRequest(Request):
    """How many attempts an operator's retry adds to the job's limit."""

    more_retries: (
        Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": 1_000})] | UnsetType
    ) = UNSET


class FilterForm(Request):
    """Selects the jobs that match every given field."""

    status: Status | UnsetType = UNSET
    type: Name | UnsetType = UNSET
    queue: Name | UnsetType = UNSET
    created_after: RunAt | UnsetType = UNSET
    created_before: RunAt | UnsetType = UNSET
    error: SearchText | UnsetType = UNSET
    text: SearchText | UnsetType = UNSET


class BulkRequest(Request):
    """An action on all jobs that match now; `more_retries` as for one job."""

    action: Action
    filter: FilterForm
    more_retries: (
        Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": 1_000})] | UnsetType
    ) = UNSET


class NoFields(Request):
    """An empty object; the body may be left out."""


class LimitRequest(Request):
    """How many jobs of a queue may wait; null lifts the limit."""

    max_pending: Annotated[int, Meta(extra_json_schema={"minimum": 0, "maximum": 2**53})] | None


# --- leases and reports ---------------------------------------------------------------------------


class LeaseRequest(Request):
    """A worker asking for up to `limit` jobs; `queues` or `types` left out means any.

    With `traces` leases have the `traceparent` of the request that added their job, if it had one.
    """

    worker: Label
    limit: Annotated[int, Meta(ge=1, le=MAX_LEASED)] = 1
    queues: Annotated[list[Name], Meta(max_length=1_000)] | None = None
    types: Annotated[list[Name], Meta(max_length=10_000)] | None = None
    lease_seconds: LeaseSeconds = DEFAULT_LEASE
    wait_seconds: Annotated[float, Meta(ge=0, le=MAX_WAIT)] = 0.0
    label: Label | UnsetType = UNSET
    traces: bool = False


NO_LEASE = ("00000000-0000-7000-8000-000000000000", "0" * 32)
_is_lease = re.compile("[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch


def join_lease(job_id: str, lease_id: str) -> str:
    """Return the lease id that HTTP uses, which also names the job."""
    return f"{job_id}.{lease_id}"


def split_lease(text: str) -> tuple[str, str]:
    """Return job id and lease id. Any other text is a lease that does not exist, so it is lost."""
    job_id, _, lease_id = text.partition(".")
    return (job_id, lease_id) if ids.is_id(job_id) and _is_lease(lease_id) else NO_LEASE


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
    )


def report_entry(report: Report) -> ReportEntry:
    """Return a report as a worker sends it."""
    return ReportEntry(
        lease_id=join_lease(report.job_id, report.lease_id),
        outcome=report.outcome,
        result=embedded(report.result),
        error=report.error,
        retryable=report.retryable,
    )
