"""Every error that Tenure raises on purpose."""

from __future__ import annotations

import copyreg
from collections.abc import Sequence
from typing import Any


class TenureError(Exception):
    """Base of every error raised on purpose; `code` is stable and part of the HTTP API."""

    code = "tenure_error"

    def __reduce__(self) -> tuple[Any, ...]:
        """Describe it for pickle and copy, which would call the class with the text alone."""
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]


class InvalidInput(TenureError):
    """What was given cannot be accepted; `path` says where, as in `$.payload.to[3]`."""

    code = "invalid_input"

    def __init__(self, message: str, *, path: str = "", code: str | None = None) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.message, self.path = message, path
        self.code = code or self.code

    def inside(self, place: str) -> InvalidInput:
        """Return the error as that of a larger value, which has this one at `place`."""
        path = place + self.path.removeprefix("$")
        return type(self)(self.message, path=path, code=self.code)


class PayloadTooLarge(InvalidInput):
    """A payload, body or batch is over its size limit (bytes)."""

    code = "payload_too_large"


ID_LENGTH = 36


class JobNotFound(TenureError):
    """No job has this id."""

    code = "job_not_found"

    def __init__(self, job_id: str) -> None:
        why = (
            "the id is wrong, the transaction that adds it is not committed, or retention removed "
            "the job after it settled"
        )
        if len(job_id) != ID_LENGTH:
            why = f"that is no whole id, which has {ID_LENGTH} characters"
        elif job_id != job_id.lower():
            why = "ids are in lower case"
        super().__init__(f"no job {job_id}: {why}")
        self.job_id = job_id


class DuplicateStep(InvalidInput):
    """This attempt has started a step of this `name` already."""

    code = "duplicate_step"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"this attempt has started step {name!r} already: give each step its own name, in a "
            f'loop as in f"{name}:{{number}}"'
        )
        self.name = name


class ResultGone(JobNotFound):
    """The job was settled and then deleted, by retention, while its result was waited for."""


class JobFailed(TenureError):
    """The job whose result was asked for has failed for good; `last_error` says why."""

    code = "job_failed"

    def __init__(self, job_id: str, last_error: str | None) -> None:
        super().__init__(f"job {job_id} failed: {last_error}")
        self.job_id, self.last_error = job_id, last_error


class JobCancelled(TenureError):
    """The job whose result was asked for was cancelled; `event` says how, `actor` by whom."""

    code = "job_cancelled"

    def __init__(self, job_id: str, event: str, actor: str | None) -> None:
        why = "it has no result"
        if event == "skipped":
            why = f"what it depends on has ended otherwise, `tenure explain {job_id}` names the job"
        super().__init__(f"job {job_id} was {event} by {actor}: {why}")
        self.job_id, self.event, self.actor = job_id, event, actor


class JobUnsettled(TenureError):
    """The job whose result was asked for has not ended yet."""

    code = "job_unsettled"

    def __init__(self, job_id: str, status: str) -> None:
        super().__init__(f"job {job_id} is {status}: it has no result yet")
        self.job_id, self.status = job_id, status


class ResultTruncated(TenureError):
    """The handler returned what could not be stored whole; `reason` says why."""

    code = "result_truncated"

    def __init__(self, job_id: str, reason: str) -> None:
        super().__init__(f"the result of job {job_id} was not stored whole: {reason}")
        self.job_id, self.reason = job_id, reason


class BulkNotFound(TenureError):
    """No bulk action has this id."""

    code = "bulk_not_found"

    def __init__(self, bulk_id: str) -> None:
        super().__init__(
            f"no bulk action {bulk_id}: the id is wrong, or it ended before the last 1,000 began"
        )
        self.bulk_id = bulk_id


class ScheduleNotFound(TenureError):
    """No schedule has this name."""

    code = "schedule_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"there is no schedule called {name!r}: see `tenure schedules list`; one in code is "
            "stored when a worker or a server of its application starts"
        )
        self.name = name


class WorkflowNotFound(TenureError):
    """No workflow has this id."""

    code = "workflow_not_found"

    def __init__(self, workflow_id: str) -> None:
        super().__init__(
            f"no workflow {workflow_id}: the id is wrong, or retention removed it with its jobs"
        )
        self.workflow_id = workflow_id


class IllegalEdition(TenureError):
    """The schedule has another edition than the one to change, or is declared in code."""

    code = "illegal_edition"

    def __init__(self, name: str, edition: int, reason: str) -> None:
        super().__init__(f"schedule {name} is at edition {edition}: {reason}")
        self.name, self.edition, self.reason = name, edition, reason


class IllegalTransition(TenureError):
    """The job's status, or a guard, does not allow this event; `legal` lists the events it does."""

    code = "illegal_transition"

    def __init__(
        self, job_id: str, status: str, event: str, legal: Sequence[str], reason: str = ""
    ) -> None:
        others = ", ".join(name for name in legal if name != event)
        allowed = others if legal else "none, it is settled for good"
        because = f" ({reason})" if reason else ""
        also = f"; legal from here: {allowed}" if allowed else ""
        super().__init__(f"job {job_id} is {status}: it cannot be {event}{because}{also}")
        self.job_id, self.status, self.event = job_id, status, event
        self.legal, self.reason = tuple(legal), reason


class LeaseLost(TenureError):
    """The lease is no longer the job's; nothing was changed and nothing will be."""

    code = "lease_lost"

    def __init__(self, job_id: str, ended_by: str = "") -> None:
        how = f", it ended as {ended_by}" if ended_by else ""
        super().__init__(f"the lease on job {job_id} is not held any more{how}; drop this attempt")
        self.job_id, self.ended_by = job_id, ended_by


class KeyConflict(TenureError):
    """The idempotency key belongs to an earlier request that asked for something else."""

    code = "idempotency_key_reused"

    def __init__(self, key: str, job_id: str = "", workflow_id: str = "") -> None:
        made = f"workflow {workflow_id}" if workflow_id else f"job {job_id}"
        super().__init__(
            f"idempotency key {key!r} was used for {made} with a different request; "
            "send the first request unchanged, or choose a new key"
        )
        self.key, self.job_id, self.workflow_id = key, job_id, workflow_id


class DuplicateJob(TenureError):
    """Another job is the same by its `Unique`, whose `on_conflict` is `error`; `job_id` is it.

    Also raised for another `on_conflict` if that job was made `within` the time and deleted since.
    """

    code = "duplicate_job"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id} is the same as this one, which was not added")
        self.job_id = job_id


class SignalTimeout(TenureError):
    """The signal that a handler waited for did not come in time; raised in the handler."""

    code = "signal_timeout"

    def __init__(self, name: str) -> None:
        super().__init__(f"the signal {name} did not come in time")
        self.name = name


class SignalTokenNotFound(TenureError):
    """No one-use token of a signal is this: it was used, or its job was deleted, or never was."""

    code = "signal_token_not_found"

    def __init__(self, message: str = "no such token, or it was used: each works once") -> None:
        super().__init__(message)


class QueueFull(TenureError):
    """The queue holds as many pending jobs as its `max_pending` allows."""

    code = "queue_full"

    def __init__(self, queue: str, max_pending: int) -> None:
        super().__init__(
            f"queue {queue!r} is full: its limit of pending jobs is {max_pending}; try again later"
        )
        self.queue, self.max_pending = queue, max_pending


class LimitConflict(TenureError):
    """A partition needs turns to be paused or limited, and turns stay while one is paused."""

    code = "limit_conflict"


class StoreUnavailable(TenureError):
    """The database did not answer, so the outcome may be unknown: ask again, it is safe."""

    code = "store_unavailable"
    _held_here = False
    """Whether a write transaction of this program holds the SQLite file, perhaps the caller's."""
    _is_locked = False
    """Whether a transaction has locked what was to be changed; perhaps not what comes next."""
    _known = ""
    """What is known of it that callers over HTTP may read."""


class WriteRefused(TenureError):
    """A rule of the database, such as your own trigger, refused this; nothing was written."""

    code = "write_refused"


class StoreMoved(TenureError):
    """The jobs of this database are in another one, which the message names: `tenure move`."""

    code = "store_moved"


class MoveRefused(TenureError):
    """`tenure move` cannot start or continue; the message says why. No job has moved."""

    code = "move_refused"


class SchemaMismatch(TenureError):
    """The stored schema is too old or too new for this Tenure, or is not Tenure's."""

    code = "schema_mismatch"


class Unauthorized(TenureError):
    """The server refused the token, or none was given."""

    code = "unauthorized"


class Forbidden(TenureError):
    """The token does not have the scope or the queues that this call needs."""

    code = "forbidden"


class PermanentFailure(TenureError):
    """Raise this in a handler when trying again cannot help: the job fails for good at once."""

    code = "permanent_failure"
