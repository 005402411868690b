"""What workers send over HTTP, as JSON: claims, reports, heartbeats, progress.

A report has the jobs that its run adds if it completes; child processes hand these to their worker
in the same form. A lease id of HTTP is `<job id>.<lease id>`, so that a report names its job.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tenure.errors import InvalidInput, TenureError
from tenure.handlers import results as produced
from tenure.rules import reports
from tenure.rules.jobs import NewJob
from tenure.rules.signals import MAX_SIGNAL_NAME, MAX_SIGNALS
from tenure.rules.steps import MAX_MESSAGE, MAX_PROGRESS, MAX_STEPS, JobProgress, KeepState, Notes
from tenure.values import ids
from tenure.values.durations import MAX_LEASE_SECONDS, MAX_SECONDS, MIN_LEASE_SECONDS
from tenure.values.names import NAME_PATTERN
from tenure.values.payload import JsonText, learn
from tenure.wire.requests import (
    LINE,
    EnqueueRequest,
    Label,
    LinkLabel,
    Name,
    Request,
    RunAt,
    embedded,
    matching,
    new_job,
    options_of,
)

NewId = Annotated[str, matching(ids.ID_PATTERN)]


class FollowUpRequest(EnqueueRequest, kw_only=True):
    """A job to add with a completion; `id`: what it will have, by default a new one.

    `again_of` is the id of the job that it runs again, if it does.
    """

    id: NewId | UnsetType = UNSET
    again_of: NewId | UnsetType = UNSET


class ChildRequest(FollowUpRequest, kw_only=True):
    """The same from a child process, which may say who adds it; over HTTP the server says that."""

    actor: str | UnsetType = UNSET


FollowUpRequests = Annotated[list[FollowUpRequest], Meta(max_length=reports.MAX_FOLLOW_UPS)]


def entries(follow_ups: Sequence[reports.FollowUp]) -> Any:
    """Return jobs as a report has them. What only the handler here says of them is named."""
    return [_entry(one) for one in follow_ups]


def _entry(one: reports.FollowUp) -> dict[str, Any]:
    checked = one.checked
    body = {**new_job(one.new_job, "$"), "payload": embedded(checked.payload), "id": checked.id}
    if checked.again_of is not None:
        body["again_of"] = checked.again_of
    if checked.partition is not None:
        body["partition"] = checked.partition
    if checked.unique is not None:
        body["unique"] = checked.unique.rule
    return body


def written(follow_ups: reports.FollowUps) -> str:
    """Return jobs as JSON; raises InvalidInput for an option that JSON does not have."""
    try:
        jobs = [_entry(one) | _actor_of(one) for one in follow_ups.jobs]
        return msgspec.json.encode(jobs).decode()
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"an option of a job to add cannot be written: {error}") from error


def _actor_of(one: reports.FollowUp) -> dict[str, Any]:
    return {} if one.checked.actor == reports.UNKNOWN else {"actor": one.checked.actor}


def read(text: str, into: reports.FollowUps) -> None:
    """Add the jobs of `written`; raises InvalidInput."""
    learn(list[ChildRequest])
    try:
        requests = msgspec.json.decode(text, type=list[ChildRequest])
    except msgspec.DecodeError as error:
        raise InvalidInput(f"a job to add: {error}") from error
    for request in requests:
        add(request, into)


def add(request: FollowUpRequest, into: reports.FollowUps, actor: str | None = None) -> None:
    """Add the job of a request; raises InvalidInput."""
    options: Any = options_of(request)
    id, again_of = options.pop("id", None), options.pop("again_of", None)
    if actor is not None:
        options["actor"] = actor
    into.add(NewJob(request.type, request.payload, options, again_of), id)


# --- leases and reports ---------------------------------------------------------------------------

MAX_LEASED = 1_000
MAX_WORKER_LENGTH = 120
"""Longest id that a worker chooses; with the name of its token before it, it is a valid actor."""
MAX_WAIT_SECONDS = 30.0
DEFAULT_LEASE_SECONDS = 30.0
MAX_NUMBER = 2**31 - 1

WorkerName = Annotated[str, matching(LINE, max_length=MAX_WORKER_LENGTH)]
Amount = Annotated[float, Meta(ge=-MAX_PROGRESS, le=MAX_PROGRESS)]
Delay = Annotated[float, Meta(ge=0, le=MAX_SECONDS)]
LeaseSeconds = Annotated[float, Meta(ge=MIN_LEASE_SECONDS, le=MAX_LEASE_SECONDS)]
SignalName = Annotated[str, matching(NAME_PATTERN, max_length=MAX_SIGNAL_NAME)]
LeaseName = Annotated[str, Meta(description="A lease id as `POST /leases` gave it.")]


class LeaseRequest(Request):
    """A worker's request for up to `limit` jobs; without `queues` or `types`, of any.

    The ledger names the worker by the caller's name, a slash and `worker`, as in `token:mail/w-1`.
    Of queues with limits it gets at most `free` jobs, as many as can start at once (default:
    `limit`). Lists of workers show `slots`, `version` and `stopping`. A request with `limit` 0 only
    updates these.
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

    done: Amount
    total: Amount | None = None
    message: Annotated[str, Meta(max_length=MAX_MESSAGE)] = ""


class ProgressEntry(Progress, kw_only=True):
    """How far the attempt of one lease has come."""

    lease_id: LeaseName


class WaitForm(Request):
    """What a suspended job waits for: the signal `number` of `name`, until `expires_at`."""

    name: SignalName
    number: Annotated[int, Meta(ge=1, le=MAX_SIGNALS)]
    expires_at: RunAt | None = None


class StepRequest(Request):
    """A step that is done: the `number` of those before it, plus 1, and what it returned."""

    name: Name
    number: Annotated[int, Meta(ge=1, le=MAX_STEPS)]
    result: Any = None


class SignalQuery(Request):
    """Which signal of the name: the first is 1."""

    number: Annotated[int, Meta(ge=1, le=MAX_SIGNALS)]


class TokenRequest(Request):
    """A one-use token of a signal: its hexadecimal SHA-256, and what the signal is to say.

    `label` is what the page of its address and the button there say, instead of the name.
    """

    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    name: SignalName
    payload: Any = None
    label: LinkLabel | None = None


class StateRequest(Request):
    """The state that the next attempt continues from. `number` rises with each of an attempt."""

    number: Annotated[int, Meta(ge=1, le=MAX_NUMBER)]
    state: Any


class ReportEntry(Request):
    """What became of one lease.

    `result` if it completed; `error` and `retryable` if it failed; `delay`, in seconds, if it was
    snoozed or failed; `pause`, what starts no job as long, if it was snoozed; `wait`, if it was
    suspended.
    """

    lease_id: LeaseName
    outcome: reports.Outcome
    result: Any = None
    error: str = ""
    retryable: bool = True
    delay: Delay | None = None
    pause: reports.Pause | None = None
    wait: WaitForm | None = None
    progress: Progress | None = None
    jobs: FollowUpRequests | None = None
    traceparent: Annotated[str, Meta(max_length=100)] | None = None
    checkpoint: StateRequest | None = None

    def pack(self, path: str) -> None:
        """Replace the result by its text."""
        if self.result is not None:
            self.result = JsonText(produced.result_text(self.result))


def progress_of(entry: Progress) -> JobProgress:
    """Return what a worker says of an attempt's progress, so that it can be stored."""
    message = entry.message and produced.error_text(entry.message)[:MAX_MESSAGE]
    return JobProgress(entry.done, entry.total, message)


def report_of(entry: ReportEntry) -> reports.Report:
    """Return the report of a worker. It is made storable, because the job must settle."""
    job_id, lease_id = split_lease(entry.lease_id)
    outcome, error, wait = entry.outcome, entry.error, entry.wait
    completed = outcome is reports.Outcome.COMPLETED and entry.result is not None
    if outcome is reports.Outcome.SUSPENDED and wait is None:
        outcome, error = (
            reports.Outcome.FAILED,
            "its worker suspended it, and did not say until when",
        )
    return reports.Report(
        job_id,
        lease_id,
        outcome,
        result=produced.result_text(entry.result) if completed else None,
        error=produced.error_text(error) if outcome is reports.Outcome.FAILED else "",
        retryable=entry.retryable,
        delay=entry.delay,
        pause=entry.pause,
        wait=None if wait is None else reports.Wait(wait.name, wait.number, wait.expires_at),
        notes=_notes(entry) if entry.progress or entry.checkpoint else None,
    )


def _notes(entry: ReportEntry) -> Notes:
    progress, state = entry.progress, entry.checkpoint
    return Notes(
        None if progress is None else progress_of(progress),
        None if state is None else KeepState(state.number, produced.result_text(state.state)),
    )


def report_entry(report: reports.Report) -> ReportEntry:
    w, jobs = report.wait, report.jobs
    notes = report.notes or Notes()
    p, state = notes.progress, notes.state
    entry = ReportEntry(
        lease_id=join_lease(report.job_id, report.lease_id),
        outcome=report.outcome,
        result=embedded(report.result),
        error=report.error,
        retryable=report.retryable,
        delay=report.delay,
        pause=report.pause,
        wait=None if w is None else WaitForm(name=w.name, number=w.number, expires_at=w.expires_at),
        progress=None if p is None else Progress(p.done, p.total, p.message),
    )
    if state is not None:
        entry.checkpoint = StateRequest(number=state.number, state=embedded(state.state))
    if jobs and not isinstance(jobs, TenureError):
        entry.jobs, entry.traceparent = entries(jobs), jobs[0].checked.traceparent
    return entry
