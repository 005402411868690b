"""One batch of an action on all jobs of a filter.

An action goes along the ids of its jobs, oldest first. A batch looks for the next few outside any
transaction. One transaction then changes them by the lifecycle and advances the action's cursor.
The batch is numbered, and that transaction tests the number: of two batches that were prepared side
by side only one is applied. So a crash neither loses nor repeats anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tenure import failpoints
from tenure.errors import IllegalTransition
from tenure.jobs.bulk_actions import Action, Bulk
from tenure.jobs.queries import Filter, Query, query_of
from tenure.lifecycle import Cancelled, Event, Job, Retried, Status, follow
from tenure.store import transitions
from tenure.store.protocol import Database
from tenure.store.reader import Reader
from tenure.store.search import fits, some_ids
from tenure.store.tables import bulk as table

if TYPE_CHECKING:
    from tenure.store import Store

BATCH = 500
"""Jobs of one batch."""
BEFORE_ALL = "00000000-0000-0000-0000-000000000000"
"""No job has a smaller id."""


def about(filter: Filter, sources: Sequence[Status], **more: Any) -> Query:
    """Return the query for the jobs of a filter whose status is one of `sources`."""
    if filter.status is not None and filter.status not in sources:
        more["before"] = BEFORE_ALL
    if filter.status is None and len(sources) == 1:
        filter = replace(filter, status=sources[0])
    among = tuple(sources) if filter.status is None else ()
    return query_of(filter, among=among, **more)


def next_ids(
    read: Reader, bulk: Bulk, sources: Sequence[Status]
) -> tuple[Sequence[str], str | None]:
    """Return the jobs of the next batch, and the last id it looks at, None if there are no more."""
    query = about(bulk.filter, sources, after=bulk.cursor, oldest_first=True, limit=BATCH)
    failed = query.status == Status.FAILED
    start = bulk.created_at
    query = replace(query, created_by=start, settled_by=start if failed else None)
    return some_ids(read, query)


def step(store: Store, bulk: Bulk, sources: Sequence[Status]) -> bool:
    """Do the next batch of an action, unless another process has done it since `bulk` was read.

    `sources` are the statuses that allow the action. Returns whether this batch was the last one.
    """
    ids, cursor = next_ids(store.read, bulk, sources)
    return store.write("bulk", lambda db: batch(db, bulk, ids, cursor)).result()


def batch(db: Database, bulk: Bulk, job_ids: Sequence[str], cursor: str | None) -> bool:
    """Change these jobs and advance the cursor, unless another process has done this batch.

    Returns whether this batch was the last one.
    """
    if not table.hold(db, bulk):
        return False
    jobs = db.lock(sorted(job_ids))
    now = db.now()
    changes = []
    for job in jobs.values():
        try:
            if fits(bulk.filter, job) and _had_settled(job, bulk):
                changes.append((job, follow(job, _event(bulk), now)))
        except IllegalTransition:
            continue
    transitions.save(db, changes)
    failpoints.hit("bulk.between_jobs_and_cursor")
    done = replace(
        bulk,
        cursor=cursor or bulk.cursor,
        changed=bulk.changed + len(changes),
        refused=bulk.refused + len(job_ids) - len(changes),
    )
    ended = cursor is None
    table.advance(db, done, ended=ended)
    return ended


def _had_settled(job: Job, bulk: Bulk) -> bool:
    """Whether a job that is settled now was so when the action started."""
    return job.finished_at is None or job.finished_at <= bulk.created_at


def _event(bulk: Bulk) -> Event:
    match bulk.action:
        case Action.RETRY:
            return Retried(more_retries=bulk.more_retries, actor=bulk.signature)
        case Action.CANCEL:
            return Cancelled(actor=bulk.signature)
