"""The verbs of `Tenure` that change a job."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Unpack, overload

from tenure.errors import InvalidInput, JobNotFound
from tenure.events import Amended, Cancelled, Event, Retried, Unblocked
from tenure.jobs.enqueue import MAX_RETRIES, Changes, check_changes, whole
from tenure.jobs.ids import is_id
from tenure.jobs.names import MAX_REASON_LENGTH, check_reason
from tenure.jobs.queries import Bulk, Filter
from tenure.lifecycle import Job
from tenure.telemetry import logs

if TYPE_CHECKING:
    from tenure.app.app import Tenure

log = logging.getLogger(__name__)

FROM_SCRATCH = "from scratch"
"""How the reason of a retry begins that deletes what the attempts have kept."""


@overload
def cancel(
    app: Tenure, job_id: str, *, actor: str | None = None, reason: str | None = None
) -> Job: ...
@overload
def cancel(
    app: Tenure, *, tag: str, actor: str | None = None, reason: str | None = None
) -> Bulk: ...
def cancel(
    app: Tenure,
    job_id: str | None = None,
    *,
    tag: str | None = None,
    actor: str | None = None,
    reason: str | None = None,
) -> Job | Bulk:
    """Cancel a job that is not settled, or all with a tag.

    A handler that is running is stopped, normally within 200 ms (`JobContext.stopped`), and its
    result is not recorded.

    - `job_id`: the job. Not together with `tag`.
    - `tag`: cancel all jobs that have this tag and are not settled.
    - `actor`: who cancels it, for the ledger; 1 to 255 printable characters. Default: the
      application's actor.
    - `reason`: why, for the ledger; at most 500 characters. Default: None.

    Returns the job; with a tag, a `Bulk` that has ended: how many it `changed`. Raises JobNotFound,
    IllegalTransition if the job is settled, or InvalidInput.
    """
    if (job_id is None) == (tag is None):
        raise InvalidInput("give the id of a job, or a tag", path="$.tag")
    if job_id is None:
        bulk = app.bulk.start("cancel", Filter(tag=tag), actor=actor, reason=reason)
        while bulk.finished_at is None:
            bulk = app.bulk.step(bulk.id)
        return bulk
    by, why = app.core.signed(actor), check_reason(reason)
    return _apply(app, job_id, Cancelled(actor=by, reason=why))


def amend(
    app: Tenure,
    job_id: str,
    *,
    actor: str | None = None,
    reason: str | None = None,
    **changes: Unpack[Changes],
) -> Job:
    """Change a pending job; return it.

    - `payload`: the handler's arguments by name; only before the first attempt.
    - `priority`, `max_retries`, `timeout`, `backoff`, `run_at`, `delay`: as of `enqueue`. What is
      not given stays. A `delay` counts from now, and `delay=0` runs a job at once that is not due.
    - `actor`, `reason`: who changes it, and why; as of `cancel`.

    If nothing is different afterwards, the ledger has no entry. Raises JobNotFound,
    IllegalTransition if the job is not pending, if it was tried and the payload is to change, or if
    `max_retries` would leave it no attempt, and InvalidInput (PayloadTooLarge).
    """
    checked, delay = check_changes(changes)
    by, why = app.core.signed(actor), check_reason(reason)
    return _apply(app, job_id, Amended(changes=checked, delay=delay, actor=by, reason=why))


def retry(
    app: Tenure,
    job_id: str,
    *,
    more_retries: int = 1,
    from_scratch: bool = False,
    actor: str | None = None,
    reason: str | None = None,
) -> Job:
    """Run a failed job again; return it, pending.

    - `more_retries`: how many attempts to add to its `max_retries`, 1 to 1,000. Default: 1.
    - `from_scratch`: whether to delete its steps, its checkpoint and the signals that were sent to
      it. Default: False, it continues with them. The reason in the ledger says so.
    - `actor`, `reason`: who retries it, and why; as of `cancel`.

    Raises JobNotFound, IllegalTransition if the job is not failed, if its `start_by` has passed or
    if another one has its unique key, or InvalidInput.
    """
    more = whole(more_retries, 1, MAX_RETRIES, "$.more_retries")
    by, why = app.core.signed(actor), check_reason(reason)
    if from_scratch:
        why = f"{FROM_SCRATCH}: {why}"[:MAX_REASON_LENGTH] if why else FROM_SCRATCH
    event = Retried(more_retries=more, actor=by, reason=why)
    return _apply(app, job_id, event, from_scratch=from_scratch)


def unblock(app: Tenure, job_id: str, *, actor: str | None = None) -> Job:
    """Let a waiting job run now, whatever it waits for; return it, pending.

    - `job_id`: the job. Its handler finds what has come by then: a wait for a signal begins again.
    - `actor`: who releases it, for the ledger; as of `cancel`.

    Raises JobNotFound, IllegalTransition if the job is not waiting, or InvalidInput.
    """
    return _apply(app, job_id, Unblocked(actor=app.core.signed(actor)))


def _apply(app: Tenure, job_id: str, event: Event, *, from_scratch: bool = False) -> Job:
    if not is_id(job_id):
        raise JobNotFound(job_id)
    if app.core.queues is not None:
        app.core.get(job_id)  # a job of another queue is not found
    job = app.core.limited_store.apply(job_id, event, from_scratch=from_scratch).result()
    logs.log_steps(log, [job])
    return job
