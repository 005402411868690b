"""The table of how far attempts have come, as their handlers say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tenure.rules.steps import JobProgress
from tenure.store.database import Reads, Statements

Entry = tuple[str, str, JobProgress]
"""Job id, lease id, and what its holder says."""


def record(db: Statements, entries: Sequence[Entry]) -> int:
    """Store the progress of attempts whose lease is held; return how many these were.

    Of several entries of an attempt the last one counts.
    """
    d = db.dialect
    # Each attempt once: PostgreSQL changes no row twice in a statement.
    stored = {(job, lease): p for job, lease, p in entries if d.is_id(job) and d.is_id(lease)}
    rows = [[*attempt, p.done, p.total, p.message] for attempt, p in stored.items()]
    job, lease = (d.as_id(f"(new.value ->> {place})") for place in (0, 1))
    done, total = (f"CAST(new.value ->> {place} AS double precision)" for place in (2, 3))
    # In the order of the ids, so that no two wait in a circle. A claim may have been committed
    # since the statement began, hence the look at the token.
    statement = f"""
INSERT INTO {d.table("progress")} AS old (job_id, token, done, total, message, at)
SELECT job.id, job.token, {done}, {total}, new.value ->> 4, {d.now}
FROM {d.json_rows} JOIN {d.table("job")} AS job ON job.id = {job} AND job.lease_id = {lease}
WHERE true ORDER BY job.id
ON CONFLICT (job_id) DO UPDATE SET token = excluded.token, done = excluded.done,
    total = excluded.total, message = excluded.message, at = excluded.at
WHERE old.token <= excluded.token"""
    return db.changed(statement, (json.dumps(rows),))


def of(db: Reads, job_ids: Sequence[str]) -> Mapping[str, JobProgress]:
    """Return the progress of jobs, by id; while one runs, only what this attempt has said."""
    d = db.dialect
    ids = d.ids(len(job_ids))
    statement = f"""
SELECT {d.id("job.id")}, p.done, p.total, p.message, {d.time("p.at")}
FROM {d.table("progress")} AS p JOIN {d.table("job")} AS job ON job.id = p.job_id
WHERE p.job_id IN ({ids}) AND (p.token = job.token OR job.status <> 'processing')"""
    return {
        id: JobProgress(done, total, message, d.to_time(at))
        for id, done, total, message, at in db.rows(statement, job_ids)
    }
