"""The verbs of `Tenure` that change a job."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tenure.events import Cancelled, Event, Retried
from tenure.jobs.enqueue import MAX_RETRIES, whole
from tenure.jobs.names import check_reason
from tenure.lifecycle import Job
from tenure.telemetry import logs

if TYPE_CHECKING:
    from tenure.app.app import Tenure

log = logging.getLogger(__name__)


def cancel(app: Tenure, job_id: str, *, actor: str | None = None, reason: str | None = None) -> Job:
    """Cancel a pending or processing job; return it.

    A handler that is running is asked to stop (`JobContext.stopped`), and its result is not
    recorded.

    - `actor`: who cancels it, for the ledger. Default: the application's actor.
    - `reason`: why, for the ledger; at most 500 characters. Default: None.

    Raises JobNotFound, IllegalTransition if the job is settled, or InvalidInput.
    """
    why = check_reason(reason)
    return _apply(app, job_id, Cancelled(actor=actor or app.actor, reason=why))


def retry(
    app: Tenure,
    job_id: str,
    *,
    more_retries: int = 1,
    actor: str | None = None,
    reason: str | None = None,
) -> Job:
    """Run a failed job again; return it, pending.

    - `more_retries`: how many attempts to add to its `max_retries`, 1 to 1,000. Default: 1.
    - `actor`: who retries it, for the ledger. Default: the application's actor.
    - `reason`: why, for the ledger; at most 500 characters. Default: None.

    Raises JobNotFound, IllegalTransition if the job is not failed, or InvalidInput.
    """
    more = whole(more_retries, 1, MAX_RETRIES, "$.more_retries")
    by, why = actor or app.actor, check_reason(reason)
    return _apply(app, job_id, Retried(more_retries=more, actor=by, reason=why))


def _apply(app: Tenure, job_id: str, event: Event) -> Job:
    if app.core.queues is not None:
        app.core.get(job_id)  # a job of another queue is not found
    job = app.core.limited_store.apply(job_id, event).result()
    logs.log_steps(log, [job])
    return job
