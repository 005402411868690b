"""Adding jobs to PostgreSQL, in a transaction or alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any

from tenure.jobs.enqueue import CheckedJob
from tenure.lifecycle import Job
from tenure.store.postgres import statements as sql
from tenure.store.postgres.connection import to_time
from tenure.store.postgres.session import PostgresSession
from tenure.store.rows import added_job, write_policy

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def enqueue(
    session: PostgresSession,
    checked_jobs: Sequence[CheckedJob],
    *,
    sparing: bool = False,
    whole: bool = False,
) -> Mapping[str, Job]:
    """Add the jobs whose id and key are new; id -> job for those that were added.

    `sparing` adds none if one of their queues has a limit, `whole` none if one of them is not new.
    """
    # Keys in the same order everywhere, or two batches could wait for each other.
    rows = [_row(a) for a in sorted(checked_jobs, key=_by_key)]
    values = (*sql.arrays(sql.NEW, rows), sparing, whole)
    ((at, made, later, later_at),) = session.rows(sql.ENQUEUE, values)
    now = to_time(at)
    run_at = dict(zip(later or (), later_at or (), strict=True))
    wanted = None if made is None else set(made)
    return {
        a.id: added_job(a, now, to_time(run_at[a.id]) if a.id in run_at else now)
        for a in checked_jobs
        if wanted is None or a.id in wanted
    }


def enqueue_one(session: PostgresSession, checked_job: CheckedJob) -> Mapping[str, Job]:
    """Add one job, alone, unless its queue has a limit or its id or key is not new."""
    values = [None if v is None else str(v).encode() for v in _row(checked_job)]
    result = session.execute_directly(sql.ENQUEUE_ONE, values)
    created, runs = result.get_value(0, 0), result.get_value(0, 1)
    if created is None or runs is None:
        return {}
    return {checked_job.id: added_job(checked_job, _time(created), _time(runs))}


_values = attrgetter(*sql.ADDED, "run_at", "delay")


def _row(checked_job: CheckedJob) -> tuple[Any, ...]:
    return (*_values(checked_job), write_policy(checked_job.backoff))


def _by_key(checked_job: CheckedJob) -> str:
    return checked_job.idempotency_key or ""


def _time(micros: bytes) -> datetime:
    return EPOCH + timedelta(microseconds=int(micros))
