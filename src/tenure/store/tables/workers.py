"""The table of workers that asked for jobs."""

from __future__ import annotations

from tenure.jobs.stats import WorkerState
from tenure.jobs.work import ClaimRequest
from tenure.store.dialect import Reads, Statements
from tenure.store.rows import read_names, write_names

SHOWN_SECONDS = 600
"""How long a worker is listed after it last asked."""
KEPT_SECONDS = 86_400


def see(db: Statements, request: ClaimRequest) -> None:
    d = db.dialect
    db.changed(
        f"INSERT INTO {d.table('worker')} (id, label, queues, types, seen_at)"
        f" VALUES ({d.values(4)}, {d.now}) ON CONFLICT (id) DO UPDATE SET"
        " seen_at = excluded.seen_at, queues = excluded.queues, types = excluded.types",
        (request.worker, request.label, write_names(request.queues), write_names(request.types)),
    )


def forget(db: Statements) -> None:
    """Delete the workers that have not asked for a day."""
    d = db.dialect
    db.changed(f"DELETE FROM {d.table('worker')} WHERE seen_at < {d.later(-KEPT_SECONDS)}")


def seen(db: Reads) -> list[WorkerState]:
    """Return the workers of the last ten minutes and how many leases each holds, newest first."""
    d = db.dialect
    rows = db.rows(f"""
SELECT w.id, w.label, w.queues, w.types, {d.time("w.seen_at")}, coalesce(held.leases, 0)
FROM {d.table("worker")} AS w LEFT JOIN (
    SELECT worker, count(*) AS leases FROM {d.table("job")} WHERE status = 'processing'
    GROUP BY worker
) AS held ON held.worker = w.id
WHERE w.seen_at > {d.later(-SHOWN_SECONDS)} ORDER BY w.seen_at DESC
""")
    return [
        WorkerState(id, label, read_names(queues), read_names(types), d.to_time(at), leases)
        for id, label, queues, types, at, leases in rows
    ]
