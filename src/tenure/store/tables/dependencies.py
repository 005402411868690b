"""The table of dependencies: jobs that wait until others are settled.

The triggers of the jobs let them run, in the transaction that settles the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from tenure.jobs.enqueue import CheckedJob
from tenure.store.dialect import Reads
from tenure.store.protocol import Database
from tenure.store.rows import ADDED, write_policy

COLUMNS = (*ADDED, "backoff", "run_at", "start_by", "created_at", "status", "need", "spare")


def add(db: Database, jobs: Sequence[tuple[CheckedJob, str]]) -> None:
    """Add jobs that wait, each for another one (its id), which is locked and not settled."""
    d = db.dialect
    table, now = d.table("job"), db.now()
    values = [d.id_value if column in ("id", "again_of") else d.value for column in COLUMNS]
    insert = f"INSERT INTO {table} ({', '.join(COLUMNS)}) VALUES ({', '.join(values)})"
    follow = f"UPDATE {table} SET followed = coalesce(followed, 0) + 1 WHERE id = {d.id_value}"
    depend = (
        f"INSERT INTO {d.table('dependency')} (parent, child, meets)"
        f" VALUES ({d.id_value}, {d.id_value}, 'settled')"
    )
    for job, parent in jobs:
        due = job.run_at or now + timedelta(seconds=job.delay)
        times = [time and d.to_bound(time) for time in (due, job.start_by, now)]
        given = [getattr(job, column) for column in ADDED]
        db.changed(insert, (*given, write_policy(job.backoff), *times, "waiting", 1, 0))
        db.changed(follow, (parent,))
        db.changed(depend, (parent, job.id))


def parents(db: Reads, job_id: str) -> list[tuple[str, str, str]]:
    """Return each job that a job waits or waited for: id, status, and which ending of it counts."""
    d = db.dialect
    found = db.rows(
        f"SELECT {d.id('job.id')}, job.status, meets"
        f" FROM {d.table('dependency')} AS dependency"
        f" JOIN {d.table('job')} AS job ON job.id = dependency.parent"
        f" WHERE dependency.child = {d.id_value} AND meets <> 'past' ORDER BY dependency.parent",
        (job_id,),
    )
    return [(id, status, meets) for id, status, meets in found]
