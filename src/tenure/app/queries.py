"""The verbs of `Tenure` that read jobs."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Unpack

from msgspec.structs import replace

from tenure.app.shown import progress_shown, steps_shown
from tenure.app.signals import waited_for
from tenure.errors import StoreUnavailable
from tenure.events import Amended, Snoozed
from tenure.jobs.enqueue import whole
from tenure.jobs.explain import (
    ELSEWHERE,
    MAY_BE_LOCKED,
    RATE_MINUTES,
    Explanation,
    Facts,
    rate,
)
from tenure.jobs.explain import explain as explanation
from tenure.jobs.ledger import MAX_LAST, Transition
from tenure.jobs.progress import JobProgress
from tenure.jobs.queries import Counted, Fields, Filter, Order, checked_query
from tenure.jobs.queue_rights import includes
from tenure.jobs.stats import QueueQuery
from tenure.jobs.steps import JobSteps
from tenure.lifecycle import Job, Status
from tenure.store import search
from tenure.store.tables import dependencies, limits, schedules, types, unique_keys
from tenure.store.tables import steps as stored_steps

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from tenure.app.app import Tenure
    from tenure.app.core import Core
    from tenure.jobs.lock_holders import LockHolder

ASLEEP = (Snoozed.name, Amended.name)
"""The last events of a job that may be asleep: one that was changed sleeps on."""


def get(app: Tenure, job_id: str) -> Job:
    """Return the job with this id, in its current state. Raises JobNotFound."""
    return app.core.get(job_id)


def progress(app: Tenure, job_id: str) -> JobProgress | None:
    """Return how far a job has come, as its handler said last (`JobContext.progress`).

    Returns None if it has said nothing in the attempt that runs, or in any that ran before. Raises
    JobNotFound.
    """
    return progress_shown(app.core, [app.core.get(job_id)]).get(job_id)


def steps(app: Tenure, job_id: str) -> JobSteps:
    """Return the steps that a job has on record, and its last checkpoint (`JobContext.step`).

    Raises JobNotFound.
    """
    return steps_shown(app.core, app.core.get(job_id))


def find(
    app: Tenure,
    *,
    limit: int = 50,
    before: str | None = None,
    after: str | None = None,
    order: Order = "newest",
    **filter: Unpack[Fields],
) -> list[Job]:
    """Return jobs that match every filter given, newest first.

    - `limit`: at most this many jobs, 1 to 500. Default: 50.
    - `before`: only jobs older than the one with this id, for the next page. Default: None.
    - `after`: only jobs newer than that, for the next page where the oldest come first.
    - `order`: which come first, `newest` or `oldest`. Default: `newest`.

    Filters, all by keyword:

    - `status`: `waiting`, `pending`, `processing`, `completed`, `failed` or `cancelled`.
    - `state`: `scheduled` (pending, with a time to come, and never failed), `ready` (pending and
      due), `retrying` (pending after a failure), `snoozed` (pending, with a time to come that its
      handler chose: by `context.sleep`, `Snooze` or `RateLimited`) or `blocked` (waiting).
    - `running_longer_than`: a duration above 0 since the job was claimed; it is processing.
    - `type`, `queue`, `tag`, `partition`: the whole name. `workflow`: its id.
    - `created_after`, `created_before`: aware datetimes, by the store's clock. A job created at
      exactly `created_after` matches, one created at exactly `created_before` does not.
    - `finished_after`, `finished_before`: likewise, when the job completed, failed for good or was
      cancelled.
    - `error`: text in the last error, 1 to 200 characters; ASCII case does not matter.
    - `text`: text in the JSON of the payload, likewise.
    - `hidden`: keys whose values `error` and `text` must not find. Default: none.

    Looks at as many rows as it takes to find `limit` jobs. Raises InvalidInput.
    """
    wanted = app.core.limited(Filter(**filter))
    query = checked_query(wanted, limit, before=before, after=after, order=order)
    return search.all_of(app.core.limited_store.read, query)


def count(app: Tenure, *, at_most: int = 10_000, **filter: Unpack[Fields]) -> Counted:
    """Count the jobs that match every filter given, within bounds.

    - `at_most`: stop counting there, 1 to 1,000,000. Default: 10,000.

    Filters are those of `find`. Returns a `Counted`: `jobs`, and `exact`, which is False if
    there may be more, because `at_most` or the bound of rows looked at was reached. Raises
    InvalidInput.
    """
    return app.core.count(Filter(**filter), at_most=at_most)


def history(
    app: Tenure, job_id: str, *, last: int | None = None, before: str | None = None
) -> list[Transition]:
    """Return the transitions of a job, oldest first.

    - `last`: only so many of the newest, 1 to 1,000,000. Default: None, all.
    - `before`: a `position`: only of the transitions before that one. Default: None, of all.

    A job that was snoozed each minute for a month has 86,000. Raises JobNotFound and InvalidInput.
    """
    app.core.get(job_id)
    if last is not None:
        whole(last, 1, MAX_LAST, "$.last")
    return app.core.limited_store.read.history(job_id, last=last, before=before)


def explain(app: Tenure, job_id: str) -> Explanation:
    """Say why a job is not running, or what happened to it.

    Returns an `Explanation`, with a sentence for people. Raises JobNotFound.
    """
    job = app.core.get(job_id)
    facts = _facts(app.core, job)
    explained = explanation(job, facts)
    if explained.reason not in MAY_BE_LOCKED:
        return explained
    holders: Sequence[LockHolder] = ()
    with suppress(StoreUnavailable):  # a role may lack rights to look at locks
        holders = app.core.limited_store.read.lock_holders(job.id)
    if not holders:
        return explained
    return explanation(job, replace(facts, locked=holders if app.core.queues is None else ()))


def _asleep_until(core: Core, job: Job) -> datetime | None:
    """Return when the sleep ends that a job began last; None if it cannot be asleep."""
    if job.status is not Status.PENDING or job.event not in ASLEEP:
        return None
    step = stored_steps.last_sleep(core.limited_store.read, job.id)
    try:
        return None if step is None else step.until
    except (TypeError, ValueError, OverflowError):  # a worker over HTTP may record anything
        return None


def _facts(core: Core, job: Job) -> Facts:
    read = core.limited_store.read
    now = read.clock()
    due = job.status is Status.PENDING and job.run_at <= now
    blocked = job.status is Status.WAITING
    linked = blocked or job.event == "skipped"
    keyless = [job.id] if job.status is Status.FAILED or job.event == "skipped" else []
    _, holder = unique_keys.keys_of(read, keyless).get(job.id, ("", None))
    if holder is not None and core.queues is not None:
        other = read.get(holder)
        holder = holder if other and includes(core.queues, other.queue) else ELSEWHERE
    by_schedule = f"WHERE job_id = {read.dialect.id_value}"
    return Facts(
        now=now,
        queue=next(iter(read.queues(QueueQuery(name=job.queue))), None),
        type=types.every(read, types.PLAIN).get(job.type),
        workers=read.workers(core.queues),
        ahead=read.ahead(job) if due else 0,
        counted_until=read.stats.until() if due else None,
        rate=rate(read.stats.activity(RATE_MINUTES), job.queue, now) if due else 0.0,
        fire=next(iter(schedules.fires(read, by_schedule, (job.id,))), None),
        parents=[
            (id if includes(core.queues, queue) else ELSEWHERE, status, meets)
            for id, queue, status, meets in (dependencies.parents(read, job.id) if linked else ())
        ],
        wait=waited_for(core, job),
        asleep_until=None if due else _asleep_until(core, job),
        holder=holder,
        limits=limits.facts(read, job) if due else None,
    )
