"""Work that one statement does and commits: one round trip to PostgreSQL instead of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from tenure.jobs.enqueue import CheckedJob
from tenure.jobs.work import ClaimRequest, Lease
from tenure.lifecycle import Job
from tenure.store.postgres import statements as sql
from tenure.store.postgres.connection import to_time
from tenure.store.postgres.enqueue import enqueue, enqueue_one
from tenure.store.postgres.lanes import Lanes
from tenure.store.postgres.session import PostgresSession


class OneStatement:
    def __init__(self, session: PostgresSession, lanes: Lanes) -> None:
        self._session = session
        self._lanes = lanes

    def enqueue(self, checked_jobs: Sequence[CheckedJob], *, whole: bool) -> Mapping[str, Job]:
        if not checked_jobs or not self._session.commits_alone():
            return {}
        if any(checked_job.traceparent for checked_job in checked_jobs):
            return {}  # that is another table, and so a transaction of several statements
        if len(checked_jobs) == 1:
            made = enqueue_one(self._session, checked_jobs[0])
        else:
            made = enqueue(self._session, checked_jobs, sparing=True, whole=whole)
        self._session.check_confirmed()
        return made

    def claim(self, request: ClaimRequest) -> list[Lease] | None:
        if not self._lanes.are_plain(request) or not self._session.commits_alone():
            return None
        queues = None if request.queues is None else list(set(request.queues))
        types = None if request.types is None else list(request.types)
        values = (queues, request.lease_seconds, request.worker, types, request.limit)
        rows = self._session.rows(sql.CLAIM_ALONE, values)
        self._session.check_confirmed()
        if not rows:
            return None
        *_, at, walked = rows[0]
        self._lanes.noticed(request, walked)
        until = to_time(at) + timedelta(seconds=request.lease_seconds)
        return [Lease(*[*row[:9], until]) for row in rows if row[0] is not None]
